"""Tables and texts of the lab: fitted bundles, evaluations and simulations."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ilis_guard.cli.console import color_action, escape, make_table
from ilis_guard.lab.comparison import Change, Comparison, format_difference, format_estimate, format_wrong
from ilis_guard.lab.questions import Question
from ilis_guard.lab.simulate import SimulationResult
from ilis_guard.lab.wordings import NamedWording, draw_wording
from ilis_guard.scoring.bundle import BundleMetadata, HeldOut, Recalibration
from ilis_guard.scoring.figures import Figure
from ilis_guard.scoring.findings import BundleFinding, describe
from ilis_guard.scoring.profile import AdaptedProfile
from ilis_guard.types import Action

if TYPE_CHECKING:  # with the methods of the evaluation, which simulations don't need
    from ilis_guard.lab.evaluation.evaluate import Evaluation
    from ilis_guard.lab.evaluation.tables import Table as MethodTable

WIDTH: Final = 60
HEIGHT: Final = 15
SHOWN_CHANGES: Final = 20
_CURVES: Final = "·:+*"
"""The signs of the tiers' curves, from small to large."""


def held_out_table(metadata: BundleMetadata) -> Table:
    """A bundle's figures beside those of the output statistics alone, on the same rows."""
    rows, groups = metadata.held_out.rows, metadata.held_out.groups
    independent = "" if groups == rows else f", {groups} of them independent"
    title = f"{rows} held-out rows{independent}, {metadata.held_out.wrong / rows:.0%} of the answers wrong"
    alone = "output statistics alone" if metadata.stage == "answer" else "output statistics, once it answered"
    table = make_table("figure", "this bundle", alone, title=title)
    for name in HeldOut.model_fields:
        value = getattr(metadata.held_out, name)
        if isinstance(value, Figure):
            table.add_row(name, _interval(value), _interval(getattr(metadata.baseline, name)))
    return table


def _interval(figure: Figure) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def profile_table(profile: AdaptedProfile) -> Table:
    """The kinds of requests that a profile has."""
    rows = sum(kind.rows for kind in profile.traffic.kinds)
    label = profile.traffic.label
    title = f"{rows} answers; kinds by {'their prompts' if label is None else f'the label {label!r}'}"
    table = make_table("kind", "answers", "share", title=title, right=["answers", "share"])
    for kind in profile.traffic.kinds:
        table.add_row(escape(kind.name), str(kind.rows), f"{kind.rows / rows:.0%}")
    return table


def correction_table(learned: Recalibration) -> Table:
    """What few rows taught a bundle, and how far that can be trusted."""
    table = make_table("independent rows", "learned from", "kept for guarantees", "AUROC", "Brier skill")
    auroc, skill = _interval(learned.auroc), _interval(learned.brier_skill)
    table.add_row(str(learned.groups), str(learned.corrected_by), str(learned.kept), auroc, skill)
    return table


def dependence_line(rows: int, groups: int) -> str:
    """How many rows depend on others, which count once in guarantees."""
    if groups == rows:
        return f"rows: {rows}, none of which repeats another"
    return (
        f"rows: {rows} in {groups} groups; {rows - groups} repeat others, or have the same owner, and don't count in "
        "guarantees"
    )


def wording_lines(questions: Sequence[Question], wordings: Sequence[NamedWording]) -> Iterator[str]:
    """How many questions were put in each wording."""
    drawn = Counter(draw_wording(wordings, question).name for question in questions if wordings)
    for wording in wordings:
        yield f"in the wording {escape(repr(wording.name))}: {drawn[wording.name]}"


def listed_wordings_line(metadata: BundleMetadata) -> str:
    """In which wordings a bundle's scores are calibrated."""
    described = [
        f"prompt {one.prompt or 'unchanged'}, {f'system message {one.system}' if one.system else 'no system message'}, "
        f"{'after' if one.history else 'without'} earlier turns"
        for one in metadata.wordings
    ]
    rare = metadata.rows.get("rare_wordings", 0)
    return f"calibrated in {len(described)} wordings: {'; '.join(described)}" + (
        f"; {rare} rows in rarer ones have no part in calibration and figures" if rare else ""
    )


def finding_lines(findings: Sequence[BundleFinding]) -> Iterator[str]:
    """A bundle's findings, a line each; one line where there are none."""
    for finding in findings:
        color = "red" if finding.is_error else "yellow"
        label = "accepted" if finding.is_error else "warning"
        yield f"[{color}]{label}:[/] {escape(describe(finding))}"
    if not findings:
        yield "[green]ok:[/] the score ranks better than chance and knows more than the base rate"


def candidates_table(metadata: BundleMetadata) -> Table:
    """The candidates and their log-loss; the first row is the bundle's."""
    numbers = ("leaves", "columns a tree", "trees", "log-loss")
    table = make_table("features", *numbers, title="tried, by log-loss on the validation rows", right=numbers)
    for one in metadata.candidates:
        fraction, loss = f"{one.feature_fraction:.0%}", f"{one.loss:.4f}"
        table.add_row(", ".join(one.features), str(one.num_leaves), fraction, str(one.trees), loss)
    return table


def evaluation_view(evaluation: "Evaluation") -> RenderableType:
    """The headline, the reference's lead over the other methods, and last the caveats."""
    from ilis_guard.lab.evaluation.tables import ahead, by_protocol

    left_out = [(one, "left out") for one in evaluation.sets if not one.counts]
    left_out += [(one, "left out at the other precision") for one in evaluation.applied_sets if not one.counts]
    return Group(
        _method_table(by_protocol(evaluation)),
        *([_method_table(ahead(evaluation))] if evaluation.differences else []),
        *(f"[dim]{where}:[/] {escape(one.name)}: {escape(one.why_left_out)}" for one, where in left_out),
        *(f"[yellow]note:[/] {escape(note)}" for note in evaluation.notes),
    )


def _method_table(methods: "MethodTable") -> Table:
    from ilis_guard.lab.evaluation.evaluate import REFERENCE

    columns = [escape(name) for name in methods.columns]
    table = make_table(*columns, title=escape(methods.title), right=columns[1:])
    for row in methods.rows:
        table.add_row(*map(escape, row), style="bold" if row[0] == REFERENCE else None)
    return table


def simulation_view(simulated: SimulationResult) -> RenderableType:
    """A simulation's tables and its plot, and last the caveats."""
    compared = simulated.comparison
    return Group(
        _figures_table(compared),
        _outcomes_table(compared),
        _changes_table(compared, simulated.first_changes(SHOWN_CHANGES)),
        _risk_coverage_plot(compared),
        *(f"[yellow]note:[/] {escape(caveat)}" for caveat in simulated.caveats),
    )


def _figures_table(compared: Comparison) -> Table:
    """Both policies' figures with their intervals, and the difference."""
    independent = "" if compared.groups == compared.requests else f" ({compared.groups} of them independent)"
    title = f"{compared.requests} requests{independent}, 95 % bootstrap intervals"
    table = make_table("figure", "old", "new", "new - old", title=title, right=("old", "new", "new - old"))
    for one in compared.measures:
        table.add_row(one.name, format_estimate(one, one.old), format_estimate(one, one.new), format_difference(one))
    return table


def _outcomes_table(compared: Comparison) -> Table:
    """Requests by their outcome under the old policy (rows) and under the new one (columns)."""
    seen = {action for pair in compared.transitions for action in pair}
    actions = [action for action in (Action.ANSWER, Action.ABSTAIN, Action.ESCALATE, None) if action in seen]
    columns = [*map(_action, actions)]
    table = make_table("old \\ new", *columns, title="requests by what becomes of them", right=columns)
    for old in actions:
        counts = {new: str(compared.transitions.get((old, new), 0)) for new in actions}
        cells = (f"[bold]{count}[/]" if old != new else count for new, count in counts.items())
        table.add_row(_action(old), *cells)
    return table


def _changes_table(compared: Comparison, changes: Sequence[Change]) -> RenderableType:
    """The first requests whose action changes."""
    if not compared.changed:
        return "no request's action changes"
    more = "" if len(changes) == compared.changed else f", the first {len(changes)}"
    title = f"{compared.changed} requests whose action changes{more}"
    table = make_table("request", "old", "rule", "tier", "new", "rule", "tier", "wrong", title=title)
    for change in changes:
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


def _risk_coverage_plot(compared: Comparison) -> RenderableType:
    """Risk by coverage: a curve for each tier alone, and the points of the old (o) and the new (n) policy."""
    signs = [_CURVES[min(index, len(_CURVES) - 1)] for index in range(len(compared.curves))]
    marks = [
        (coverage, risk, sign)
        for curve, sign in zip(compared.curves, signs, strict=True)
        for coverage, risk in zip(curve.coverage, curve.risk, strict=True)
    ]
    points = zip(compared.points, "on", strict=True)
    marks += [(point[0].value, point[1].value, sign) for point, sign in points if point]
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
    return "[dim]undecided[/]" if action is None else color_action(action)
