"""The picture: AUROC, calibration error and certified coverage by labels, and by the size of the profile."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.learning_curve.figures import CurveFigure, find
from benchmarks.learning_curve.trials import BUNDLE, MAX_ERROR, OUTPUT_STATISTICS, UNSUPERVISED, Setting, Sizes
from ilis_guard.lab.evaluation.bootstrap import MEAN, POOLED
from ilis_guard.lab.recalibrate import KEPT

COLOURS: Final = {BUNDLE: "#1f6feb", OUTPUT_STATISTICS: "#bf8700", "perplexity": "#57606a", "log-probability": "#9aa5b1"}


def draw(found: Sequence[CurveFigure], sizes: Sizes, title: str, to: Path) -> None:
    """Draw the curves as one picture, PNG or SVG by its name."""
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.8), layout="constrained")
    by_profile, by_labels, calibration, coverage = axes
    _profiles(by_profile, found, sizes)
    for method in (BUNDLE, OUTPUT_STATISTICS):
        for kept, style in ((0.0, "-"), (KEPT, ":")):
            name = method if not kept else f"{method}, {kept:.0%} kept"
            _by_labels(by_labels, found, sizes, method, kept, "auroc", MEAN, style, name)
            _by_labels(calibration, found, sizes, method, kept, "ece", POOLED, style, name)
        _by_labels(coverage, found, sizes, method, KEPT, "certified coverage", MEAN, ":", f"{method}, {KEPT:.0%} kept")
    for axis, what in (
        (by_profile, "AUROC without labels"),
        (by_labels, "AUROC"),
        (calibration, "calibration error, all sets' rows"),
        (coverage, f"share answered, certified {1 - MAX_ERROR:.0%} right"),
    ):
        axis.set_title(what, fontsize=10)
        axis.set_xlabel("unlabelled rows of the profile" if axis is by_profile else "labels")
        axis.grid(alpha=0.3)
    by_labels.set_ylim(by_profile.get_ylim()[0], None)
    by_profile.set_ylim(by_labels.get_ylim())
    for axis in (by_profile, by_labels):
        axis.legend(fontsize=7, loc="lower right")
    figure.suptitle(title, fontsize=11)
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=110, metadata={"Software": None} if to.suffix == ".png" else None)
    plt.close(figure)


def _profiles(axis: Axes, found: Sequence[CurveFigure], sizes: Sizes) -> None:
    places = range(len(sizes.profiles))
    for method in (BUNDLE, OUTPUT_STATISTICS):
        values = [find(found, Setting(method=method, profile=size), "auroc") for size in sizes.profiles]
        _line(axis, places, values, COLOURS[method], "-", method)
    for method in UNSUPERVISED:
        known = find(found, Setting(method=method), "auroc")
        _line(axis, places, [known] * len(places), COLOURS[method], "--", method)
    axis.set_xticks(list(places), [str(size) for size in sizes.profiles])


def _by_labels(
    axis: Axes,
    found: Sequence[CurveFigure],
    sizes: Sizes,
    method: str,
    kept: float,
    name: str,
    left_out: str,
    style: str,
    label: str,
) -> None:
    without = find(found, Setting(method=method, profile=sizes.pool), name, left_out)
    values = [
        find(found, Setting(method=method, labels=labels, kept=kept, profile=sizes.pool), name, left_out)
        for labels in sizes.labels
    ]
    _line(axis, (0, *sizes.labels), [without, *values], COLOURS[method], style, label)
    axis.set_xticks([0, *sizes.labels])


def _line(
    axis: Axes, places: Sequence[int], values: Sequence[CurveFigure | None], colour: str, style: str, label: str
) -> None:
    known = [(place, one) for place, one in zip(places, values, strict=True) if one is not None]
    axis.plot([place for place, _ in known], [one.value for _, one in known], style, color=colour, label=label, marker=".")
    if style == "-":
        low, high = ([getattr(one, end) for _, one in known] for end in ("low", "high"))
        axis.fill_between([place for place, _ in known], low, high, color=colour, alpha=0.12, linewidth=0)
