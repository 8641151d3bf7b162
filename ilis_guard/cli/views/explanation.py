"""What the command line shows of explanations."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table

from ilis_guard.cli.views.text import coloured, escape
from ilis_guard.policy import Explanation
from ilis_guard.policy.explain import fact_text, outcome_text
from ilis_guard.policy.parts import Finding
from ilis_guard.policy.replay import Replay
from ilis_guard.types import Outcome

_STYLES: dict[Outcome, str] = {"decided": "bold"}
_OUTCOMES: dict[Outcome, str] = {
    "decided": "decided",
    "not_held": "passed over",
    "not_sampled": "passed over",
    "failed": "passed over",
    "obstructed": "passed over",
}
_SHADOW = "[bold cyan]SHADOW MODE: what the rules say is recorded, and not done[/bold cyan]"


def explanation_view(explained: Explanation | Replay) -> RenderableType:
    """An explanation, of facts or of a decision."""
    if not isinstance(explained, Explanation):
        return _of_decision(explained)
    shadow = [] if explained.mode == "enforce" else [_SHADOW]
    return Group(_of_facts(explained), *shadow)


def _of_facts(explained: Explanation) -> RenderableType:
    """What became of each rule, what the deciding condition is made of, and the paragraph."""
    parts: list[RenderableType] = [_rules_table(explained)]
    if (finding := explained.decisive) is not None:
        parts.append(_parts_table(finding))
    return Group(*parts, escape(explained.paragraph))


def _of_decision(retraced: Replay) -> RenderableType:
    """A decision's way, step by step, and whether the policy still says what was decided."""
    parts: list[RenderableType] = [escape(retraced.record.paragraph)]
    for step in retraced.steps:
        tier = escape(repr(step.explanation.facts.tier))
        parts += [f"\n[bold]attempt {step.attempt}[/bold], tier {tier}", _of_facts(step.explanation)]
        if step.agrees is False:
            parts.append("[yellow]this isn't what was decided then[/yellow]")
    return Group(*parts, *(f"[yellow]note:[/yellow] {escape(note)}" for note in retraced.notes))


def _rules_table(explained: Explanation) -> Table:
    title = f"stage {explained.stage}: the first rule that holds decides"
    table = Table(title=title, title_justify="left")
    for heading in ("rule", "do", "outcome", "why"):
        table.add_column(heading, overflow="fold")
    for one in explained.rules:
        table.add_row(
            escape(one.rule.id),
            coloured(one.rule.do),
            "not reached" if one.outcome is None else _OUTCOMES[one.outcome.outcome],
            escape("" if one.outcome is None else outcome_text(one.outcome)),
            style="dim" if one.outcome is None else _STYLES.get(one.outcome.outcome, ""),
        )
    return table


def _parts_table(finding: Finding) -> Table:
    table = Table(title="what the deciding condition is made of", title_justify="left")
    for heading in ("part", "value", "facts"):
        table.add_column(heading, overflow="fold")
    for depth, part in _indented(finding):
        facts = ", ".join(f"{name} is {fact_text(value)}" for name, value in part.facts.items())
        value = part.value if isinstance(part.value, str) else str(part.value).lower()
        table.add_row("  " * depth + escape(part.text), escape(value), escape(facts))
    return table


def _indented(finding: Finding, depth: int = 0) -> Iterator[tuple[int, Finding]]:
    yield depth, finding
    for part in finding.parts:
        yield from _indented(part, depth + 1)
