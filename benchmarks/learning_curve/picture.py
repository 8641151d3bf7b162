"""The picture: AUROC, calibration error and certified coverage by labels, and by the size of the profile."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.learning_curve.figures import CurveFigure, find
from benchmarks.learning_curve.rivals import OUTPUT_STATISTICS
from benchmarks.learning_curve.trials import BUNDLE, FUSED, MAX_ERROR, UNSUPERVISED, Setting, Sizes
from ilis_guard.lab.evaluation.bootstrap import MEAN, POOLED
from ilis_guard.lab.recalibrate import KEPT

BLUE, OCHRE = "#1f6feb", "#bf8700"
COLOURS: Final = {BUNDLE: BLUE, OUTPUT_STATISTICS: OCHRE, "perplexity": "#57606a", "log-probability": "#9aa5b1"}
Values = Sequence[CurveFigure | None]


def draw(found: Sequence[CurveFigure], sizes: Sizes, title: str, to: Path) -> None:
    """Draw the curves as one picture, PNG or SVG by its name."""
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.8), layout="constrained")
    by_profile, by_labels, calibration, coverage = axes
    _profiles(by_profile, found, sizes)
    for method in (BUNDLE, OUTPUT_STATISTICS):
        for kept, style in ((0.0, "-"), (KEPT, ":")):
            label = method if not kept else f"{method}, {kept:.0%} kept"
            curve = _Curve(found=found, sizes=sizes, method=method, kept=kept)
            _line(by_labels, curve.places, curve.values("auroc", MEAN), COLOURS[method], style, label)
            _line(calibration, curve.places, curve.values("ece", POOLED), COLOURS[method], style, label)
            if kept:
                covered = curve.values("certified coverage", MEAN)
                _line(coverage, curve.places, covered, COLOURS[method], style, label)
    for axis, what in (
        (by_profile, "AUROC without labels"),
        (by_labels, "AUROC"),
        (calibration, "calibration error, all sets' rows"),
        (coverage, f"share answered, certified {1 - MAX_ERROR:.0%} right"),
    ):
        axis.set_title(what, fontsize=10)
        axis.set_xlabel("unlabelled rows of the profile" if axis is by_profile else "labels")
        axis.grid(alpha=0.3)
    for axis in (by_labels, calibration, coverage):
        axis.set_xticks([0, *sizes.labels])
    for axis in (calibration, coverage):
        axis.set_ylim(bottom=0)
    low, high = zip(by_profile.get_ylim(), by_labels.get_ylim(), strict=True)
    for axis in (by_profile, by_labels):
        axis.set_ylim(min(low), max(high))
        axis.legend(fontsize=7, loc="lower right")
    figure.suptitle(title, fontsize=11)
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=110, metadata={"Software": None} if to.suffix == ".png" else None)
    plt.close(figure)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curve:
    """A method's figures by labels, from none."""

    found: Sequence[CurveFigure]
    sizes: Sizes
    method: str
    kept: float

    @property
    def places(self) -> Sequence[int]:
        return (0, *self.sizes.labels)

    def values(self, name: str, left_out: str) -> Values:
        profile = self.sizes.pool
        settings = [
            _ranking(self.method, profile) if name == "auroc" else Setting(method=self.method, profile=profile),
            *(
                Setting(method=self.method, labels=labels, kept=self.kept, profile=profile)
                for labels in self.sizes.labels
            ),
        ]
        return [find(self.found, setting, name, left_out) for setting in settings]


def _ranking(method: str, profile: int) -> Setting:
    """What ranks best without labels: with a profile, rivals count improbability as the bundle does."""
    return Setting(method=method if method == BUNDLE or not profile else FUSED.format(method=method), profile=profile)


def _profiles(axis: Axes, found: Sequence[CurveFigure], sizes: Sizes) -> None:
    places = range(len(sizes.profiles))
    for method in (BUNDLE, OUTPUT_STATISTICS):
        values = [find(found, _ranking(method, size), "auroc") for size in sizes.profiles]
        _line(axis, places, values, COLOURS[method], "-", method)
    for method in UNSUPERVISED:
        known = find(found, Setting(method=method), "auroc")
        _line(axis, places, [known] * len(places), COLOURS[method], "--", method)
    axis.set_xticks(list(places), [str(size) for size in sizes.profiles])


def _line(axis: Axes, places: Sequence[int], values: Values, colour: str, style: str, label: str) -> None:
    known = [(place, one) for place, one in zip(places, values, strict=True) if one is not None]
    at = [place for place, _ in known]
    axis.plot(at, [one.value for _, one in known], style, color=colour, label=label, marker=".")
    if style == "-":
        low, high = ([getattr(one, end) for _, one in known] for end in ("low", "high"))
        axis.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
