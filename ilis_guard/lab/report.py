"""Report a simulation as one HTML file that loads nothing from elsewhere: no prompts, no answers, no scripts."""

from importlib import resources
from typing import Final

import jinja2
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ilis_guard.lab.comparison import (
    Comparison,
    Estimate,
    format_difference,
    format_estimate,
    format_wrong,
)
from ilis_guard.lab.simulate import SimulationResult
from ilis_guard.lab.svg import TEXT, SvgRenderer, escape_math
from ilis_guard.policy import Policy

MAX_CHANGES: Final = 500
_POLICIES: Final = (("old", "#040506", "o"), ("new", "#070809", "s"))
"""A policy, the placeholder of its colour in the page, and its marker: colour isn't the only difference."""
_DASHES: Final = ("-", "--", ":", "-.")


def report(result: SimulationResult, *, old: Policy, new: Policy) -> str:
    """Render the page.

    Args:
        result: of the simulation.
        old: the policy that is compared with.
        new: the policy that may replace it.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((resources.files("ilis_guard.lab") / "simulation.html").read_text("utf-8"))
    return template.render(
        comparison=result.comparison,
        caveats=result.caveats,
        changes=result.first_changes(MAX_CHANGES),
        old=old,
        new=new,
        picture=risk_coverage_svg(result.comparison),
        format_estimate=format_estimate,
        format_difference=format_difference,
        format_wrong=format_wrong,
    )


def risk_coverage_svg(comparison: Comparison) -> Markup:
    """Draw error by coverage, of each tier alone and of both policies, in the colours of the page."""
    alternative = "Error of answered by coverage: each tier alone, and both policies; the figures are in the table"
    svg = SvgRenderer().render((7, 4), alternative, lambda figure: _draw(figure, comparison))
    for name, colour, _ in _POLICIES:
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def _draw(figure: Figure, comparison: Comparison) -> None:
    axes: Axes = figure.add_subplot()
    for index, curve in enumerate(comparison.curves):
        label = f"{escape_math(curve.tier)} alone"
        axes.plot(curve.coverage, curve.risk, _DASHES[index % len(_DASHES)], color=TEXT, lw=1, label=label)
    for (name, colour, marker), point in zip(_POLICIES, comparison.points, strict=True):
        if point is not None:
            coverage, error = point
            axes.errorbar(
                coverage.value,
                error.value,
                xerr=_margins(coverage),
                yerr=_margins(error),
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


def _margins(estimate: Estimate) -> list[list[float]]:
    """How far the interval extends below and above the value."""
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
