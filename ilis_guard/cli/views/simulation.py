"""What the command line shows of a simulation: two policies side by side, what changes, and a picture."""

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ilis_guard.cli.views.text import coloured, escape
from ilis_guard.lab.comparison import Change, Comparison, format_difference, format_estimate, format_wrong
from ilis_guard.lab.simulate import SimulationResult
from ilis_guard.types import Action

WIDTH: Final = 60
HEIGHT: Final = 15
SHOWN_CHANGES: Final = 20
_CURVES: Final = "·:+*"
"""The signs of the tiers' curves, from small to large."""


def simulation_view(simulated: SimulationResult) -> RenderableType:
    """All of it, and last what the reader must know."""
    compared = simulated.comparison
    return Group(
        figures_table(compared),
        became_table(compared),
        changes_table(compared, simulated.first_changes(SHOWN_CHANGES)),
        picture(compared),
        *(f"[yellow]note:[/] {escape(caveat)}" for caveat in simulated.caveats),
    )


def figures_table(compared: Comparison) -> Table:
    """Both policies' figures with their intervals, and the difference."""
    table = Table(title=f"{compared.requests} requests, 95 % bootstrap intervals", title_justify="left")
    for heading in ("figure", "old", "new", "new - old"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for measure in compared.measures:
        table.add_row(
            measure.name,
            format_estimate(measure, measure.old),
            format_estimate(measure, measure.new),
            format_difference(measure),
        )
    return table


def became_table(compared: Comparison) -> Table:
    """What becomes of requests under the new policy, by what became of them under the old one."""
    seen = {action for pair in compared.transitions for action in pair}
    actions = [action for action in (Action.ANSWER, Action.ABSTAIN, Action.ESCALATE, None) if action in seen]
    table = Table(title="requests by what becomes of them", title_justify="left")
    table.add_column("old \\ new")
    for action in actions:
        table.add_column(_action(action), justify="right")
    for old in actions:
        counts = {new: str(compared.transitions.get((old, new), 0)) for new in actions}
        cells = (f"[bold]{count}[/]" if old != new else count for new, count in counts.items())
        table.add_row(_action(old), *cells)
    return table


def changes_table(compared: Comparison, changes: Sequence[Change]) -> RenderableType:
    """The first requests whose action changes."""
    if not compared.changed:
        return "no request's action changes"
    shown = changes[:SHOWN_CHANGES]
    more = "" if len(shown) == compared.changed else f", the first {len(shown)}"
    table = Table(title=f"{compared.changed} requests whose action changes{more}", title_justify="left")
    for heading in ("request", "old", "rule", "tier", "new", "rule", "tier", "wrong"):
        table.add_column(heading, overflow="fold")
    for change in shown:
        table.add_row(
            escape(change.id),
            _action(change.old),
            escape(change.old_rule or ""),
            escape(change.old_tier),
            _action(change.new),
            escape(change.new_rule or ""),
            escape(change.new_tier),
            format_wrong(change),
        )
    return table


def picture(compared: Comparison) -> RenderableType:
    """Risk by coverage: a curve for each tier alone, and where the old (o) and the new (n) policy stand."""
    signs = [_CURVES[min(index, len(_CURVES) - 1)] for index in range(len(compared.curves))]
    marks = [
        (coverage, risk, sign)
        for curve, sign in zip(compared.curves, signs, strict=True)
        for coverage, risk in zip(curve.coverage, curve.risk, strict=True)
    ]
    stands = zip(compared.points, "on", strict=True)
    marks += [(point[0].value, point[1].value, sign) for point, sign in stands if point]
    top = max((risk for _, risk, _ in marks), default=0.0) or 0.01
    cells = [[" "] * WIDTH for _ in range(HEIGHT)]
    for coverage, risk, sign in marks:
        cells[round((1 - risk / top) * (HEIGHT - 1))][round(coverage * (WIDTH - 1))] = sign
    starts = [f"{top:7.1%} |", *[" " * 8 + "|"] * (HEIGHT - 2), f"{0:7.1%} |"]
    lines = [
        "error of answered, by coverage; o: the old policy, n: the new one",
        *(start + "".join(row) for start, row in zip(starts, cells, strict=True)),
        " " * 8 + "+" + "-" * WIDTH,
        " " * 8 + "0 %" + "100 % of requests answered".rjust(WIDTH - 2),
        *(
            f"{' ' * 8}{sign} the tier {curve.tier!r} alone, by its uncertainty"
            for curve, sign in zip(compared.curves, signs, strict=True)
        ),
    ]
    return Text("\n".join(lines))


def _action(action: Action | None) -> str:
    return "[dim]undecided[/]" if action is None else coloured(action)
