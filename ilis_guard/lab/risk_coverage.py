"""The risk-coverage picture as SVG, in the colours of the page that it stands in."""

import io
from collections.abc import Mapping
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ilis_guard.lab.comparison import Comparison, Estimate

_TEXT: Final = "#010203"
"""Drawn in this colour, shown in the page's own."""
_POLICIES: Final = (("old", "#040506", "o"), ("new", "#070809", "s"))
"""A policy, the colour that stands for the page's, and a marker: the colour isn't all that tells them apart."""
_LINES: Final = ("-", "--", ":", "-.")
_ALTERNATIVE: Final = "Error of answered by coverage: each tier alone, and both policies; the figures are in the table"
_SETTINGS: Final[Mapping[Any, Any]] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ilis_guard",  # the same comparison gives the same file
    "font.family": "sans-serif",
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
}


def drawn_as_svg(compared: Comparison) -> str:
    """An ``<svg>`` element that needs nothing else; texts in it are escaped."""
    with mpl.rc_context(dict(_SETTINGS)):
        figure = Figure(figsize=(7, 4), layout="constrained")
        _draw(figure.add_subplot(), compared)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{_ALTERNATIVE}"', 1)
    svg = svg.replace(_TEXT, "currentColor")
    for name, colour, _ in _POLICIES:
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def _draw(axes: Axes, compared: Comparison) -> None:
    for index, curve in enumerate(compared.curves):
        name = curve.tier.replace("$", r"\$")  # matplotlib sees mathematics between dollars
        axes.plot(curve.coverage, curve.risk, _LINES[index % len(_LINES)], color=_TEXT, lw=1, label=f"{name} alone")
    for (name, colour, marker), point in zip(_POLICIES, compared.points, strict=True):
        if point is not None:
            coverage, error = point
            axes.errorbar(
                coverage.value,
                error.value,
                xerr=_away(coverage),
                yerr=_away(error),
                fmt=marker,
                color=colour,
                ms=7,
                capsize=3,
                label=f"{name} policy",
            )
    axes.set(xlim=(0, 1.02), xlabel="coverage: share of requests answered", ylabel="error of answered")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def _away(estimate: Estimate) -> list[list[float]]:
    """How far the interval goes below and above."""
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
