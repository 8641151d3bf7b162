"""A comparison as one HTML file that fetches nothing: no prompts, no answers, no scripts."""

from importlib import resources
from typing import Final

import jinja2
from markupsafe import Markup

from ilis_guard.lab.figures import difference, shown, wrong
from ilis_guard.lab.risk_coverage import drawn_as_svg
from ilis_guard.lab.simulating import Simulated
from ilis_guard.policy import Policy

SHOWN_CHANGES: Final = 500


def report(simulated: Simulated, *, old: Policy, new: Policy) -> str:
    """The page.

    Args:
        simulated: what came of the simulation.
        old: the policy that is compared with.
        new: the policy that may take its place.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((resources.files("ilis_guard.lab") / "simulation.html").read_text("utf-8"))
    return template.render(
        compared=simulated.compared,
        caveats=simulated.caveats,
        changes=simulated.first_changes(SHOWN_CHANGES),
        old=old,
        new=new,
        picture=Markup(drawn_as_svg(simulated.compared)),  # noqa: S704 - drawn here; texts in it are escaped by matplotlib
        shown=shown,
        difference=difference,
        wrong=wrong,
    )
