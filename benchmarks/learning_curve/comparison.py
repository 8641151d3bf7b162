"""The bundle beside its rivals: mean AUROC without a label, by profile, with improbability, and by labels."""

from collections.abc import Sequence
from typing import Final

from benchmarks.learning_curve.figures import CurveFigure, find
from benchmarks.learning_curve.rivals import OUTPUT_STATISTICS, PROBES
from benchmarks.learning_curve.trials import BUNDLE, FUSED, IMPROBABILITY, OBSERVED, UNSUPERVISED, Setting, Sizes

BEST_UNSUPERVISED: Final = "best without labels"
BEST_PROBE: Final = "best probe"
COUNT_IT: Final = (BUNDLE, IMPROBABILITY)
"""With a profile these have no score without improbability."""


def headings(sizes: Sizes) -> list[str]:
    """Of `comparison`."""
    profiles = [size for size in sizes.profiles if size]
    return [
        "method",
        "as it is",
        *(f"profile {size}" for size in profiles),
        *(f"{size} + improbability" for size in profiles),
        *(f"{labels} labels" for labels in sizes.labels),
    ]


def comparison(found: Sequence[CurveFigure], sizes: Sizes) -> list[list[str]]:
    """A row a method; of those that need no label the best by this mean, and of probes the best in each column."""
    unsupervised = {name: _mean(found, Setting(method=name)) for name in (*UNSUPERVISED, *OBSERVED)}
    known = {name: value for name, value in unsupervised.items() if value is not None}
    best = max(known, key=lambda name: known[name])
    columns = len(headings(sizes)) - 1
    of_methods = {name: _values(found, name, sizes) for name in (BUNDLE, IMPROBABILITY, OUTPUT_STATISTICS, *PROBES)}
    measured = {name: values for name, values in of_methods.items() if any(value is not None for value in values)}
    of_probes = [values for name, values in measured.items() if name in PROBES]
    rows = [
        [BUNDLE, *map(_digits, measured[BUNDLE])],
        [f"{BEST_UNSUPERVISED}: {best}", _digits(known[best]), *[""] * (columns - 1)],
    ]
    if of_probes:
        rows.append([BEST_PROBE, *(_digits(_largest(column)) for column in zip(*of_probes, strict=True))])
    return rows + [[name, *map(_digits, values)] for name, values in measured.items() if name != BUNDLE]


def _values(found: Sequence[CurveFigure], method: str, sizes: Sizes) -> list[float | None]:
    profiles = [size for size in sizes.profiles if size]
    alone = [Setting(method=method, profile=size) for size in profiles]
    fused = [Setting(method=FUSED.format(method=method), profile=size) for size in profiles]
    labelled = [Setting(method=method, labels=labels, profile=sizes.pool) for labels in sizes.labels]
    by_profile: list[Setting | None] = [*[None] * len(alone), *alone] if method in COUNT_IT else [*alone, *fused]
    settings = [Setting(method=method), *by_profile, *labelled]
    return [None if setting is None else _mean(found, setting) for setting in settings]


def _mean(found: Sequence[CurveFigure], setting: Setting) -> float | None:
    one = find(found, setting, "auroc")
    return None if one is None else one.value


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
