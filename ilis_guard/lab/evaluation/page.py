"""An evaluation as one HTML file that fetches nothing and runs nothing."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata, resources
from typing import Final

import jinja2

from ilis_guard.lab.evaluation import pictures
from ilis_guard.lab.evaluation.evaluate import REFERENCE, Evaluation
from ilis_guard.lab.evaluation.headlines import PROTOCOL_NAMES, ahead, by_protocol, of_protocol, protocols
from ilis_guard.lab.evaluation.shifting import LEVELS
from ilis_guard.lab.evaluation.svg import Drawer
from ilis_guard.lab.fit import COUNTED, LEAST_OF_A_CLASS, SHARES

PACKAGES: Final = ("ilis-guard", "numpy", "scipy", "scikit-learn", "lightgbm")
NEAR: Final = 3
"""Layers that lie so near each other are neighbours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shifted:
    """A row of the table of typicality."""

    name: str
    own: tuple[float, ...]
    others: tuple[float, ...]
    auroc: float
    of_others: float | None
    """AUROC at telling this set's rows from those of all others, that the reference was made of."""


def page(evaluation: Evaluation, *, command: str) -> str:
    """The page.

    Args:
        evaluation: what came of it.
        command: what was called.
    """
    drawer = Drawer()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        (resources.files("ilis_guard.lab.evaluation") / "evaluation.html").read_text("utf-8")
    )
    return template.render(
        evaluation=evaluation,
        headlines=[by_protocol(evaluation), *([ahead(evaluation)] if evaluation.differences else [])],
        by_protocol={PROTOCOL_NAMES[name]: of_protocol(evaluation, name) for name in protocols(evaluation)},
        counted=COUNTED,
        least=LEAST_OF_A_CLASS,
        shares=SHARES,
        levels=LEVELS,
        reference=REFERENCE,
        matrices=pictures.matrices(evaluation, drawer),
        reliability=pictures.reliability(evaluation, drawer),
        risk_coverage=pictures.risk_coverage(evaluation, drawer),
        typicality_matrix=pictures.typicality_matrix(evaluation, drawer),
        shifted=_shifted(evaluation),
        maps=pictures.typical_maps(evaluation, drawer),
        importance=pictures.importance_maps(evaluation, drawer),
        near=NEAR,
        near_gain=float(evaluation.importance.by_distance[:NEAR].mean()),
        far_gain=float(evaluation.importance.by_distance[-(len(evaluation.importance.by_distance) // 3) :].mean()),
        map_share=float(evaluation.importance.pairs.sum()),
        command=command,
        versions={package: metadata.version(package) for package in PACKAGES} | {"python": platform.python_version()},
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _shifted(evaluation: Evaluation) -> list[Shifted]:
    """A row a set: shares of its own rows and of all other sets' that lie below the levels."""
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
            Shifted(
                name=name,
                own=by_pair[name, name].below,
                others=tuple(sum(one.below[at] for one in others) / len(others) for at in range(len(LEVELS))),
                auroc=sum(one.auroc for one in others) / len(others),
                of_others=None if left_out is None else left_out.auroc,
            )
        )
    return rows
