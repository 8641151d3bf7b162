"""Render an evaluation as one HTML file that loads nothing and runs no scripts."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata, resources
from typing import Final

import jinja2

from ilis_guard.lab.evaluation import plots
from ilis_guard.lab.evaluation.evaluate import REFERENCE, Evaluation
from ilis_guard.lab.evaluation.ood import LEVELS
from ilis_guard.lab.evaluation.tables import PROTOCOL_NAMES, ahead, by_protocol, protocol_tables, protocols
from ilis_guard.lab.fit import ACCURACY_RANGE, MIN_PER_CLASS
from ilis_guard.lab.splits import SHARES
from ilis_guard.lab.svg import SvgRenderer

PACKAGES: Final = ("ilis-guard", "numpy", "scipy", "scikit-learn", "lightgbm")
NEAR: Final = 3
"""Layers at most this far apart are neighbours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypicalityRow:
    """A row of the table of typicality."""

    name: str
    own: tuple[float, ...]
    others: tuple[float, ...]
    auroc: float
    of_others: float | None
    """AUROC at distinguishing this set's rows from those of all other sets, to which the reference was fitted."""


def page(evaluation: Evaluation, *, command: str) -> str:
    """Render the page.

    Args:
        evaluation: the results.
        command: the command line that made them.
    """
    renderer = SvgRenderer()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        (resources.files("ilis_guard.lab.evaluation") / "evaluation.html").read_text("utf-8")
    )
    return template.render(
        evaluation=evaluation,
        headlines=[by_protocol(evaluation), *([ahead(evaluation)] if evaluation.differences else [])],
        by_protocol={PROTOCOL_NAMES[name]: protocol_tables(evaluation, name) for name in protocols(evaluation)},
        accuracy_range=ACCURACY_RANGE,
        min_per_class=MIN_PER_CLASS,
        shares=SHARES,
        levels=LEVELS,
        reference=REFERENCE,
        matrices=plots.matrices(evaluation, renderer),
        reliability=plots.reliability(evaluation, renderer),
        risk_coverage=plots.risk_coverage(evaluation, renderer),
        typicality_matrix=plots.typicality_matrix(evaluation, renderer),
        typicality=_typicality(evaluation),
        maps=plots.typical_maps(evaluation, renderer),
        importance=plots.importance_maps(evaluation, renderer),
        near=NEAR,
        near_gain=float(evaluation.importance.by_distance[:NEAR].mean()),
        far_gain=float(evaluation.importance.by_distance[-(len(evaluation.importance.by_distance) // 3) :].mean()),
        map_share=float(evaluation.importance.pairs.sum()),
        command=command,
        versions={package: metadata.version(package) for package in PACKAGES} | {"python": platform.python_version()},
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _typicality(evaluation: Evaluation) -> list[TypicalityRow]:
    """A row for each set: the shares of its own rows and of all other sets' below the levels."""
    rows = []
    names = [one.name for one in evaluation.sets if one.counts]
    by_pair = {(one.trained_on, one.tested_on): one for one in evaluation.typicality}
    for name in names:
        others = [by_pair[name, other] for other in names if other != name]
        if not others:
            continue
        left_out = next(
            (one for one in evaluation.typicality if one.trained_on not in names and one.tested_on == name), None
        )
        rows.append(
            TypicalityRow(
                name=name,
                own=by_pair[name, name].below,
                others=tuple(sum(one.below[at] for one in others) / len(others) for at in range(len(LEVELS))),
                auroc=sum(one.auroc for one in others) / len(others),
                of_others=None if left_out is None else left_out.auroc,
            )
        )
    return rows
