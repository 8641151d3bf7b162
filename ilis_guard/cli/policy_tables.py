"""Tables and texts of policies: their rules, notices, guarantees and explanations."""

from collections.abc import Iterator, Mapping
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table

from ilis_guard.cli.console import color_action, count, escape, make_table
from ilis_guard.policy import Budget, Explanation, Guarantee, Notice, Policy, Rule
from ilis_guard.policy.binding import shortfall
from ilis_guard.policy.explain import fact_text, outcome_text
from ilis_guard.policy.parts import Finding
from ilis_guard.policy.replay import Replay
from ilis_guard.scoring import Certificate

_LEVELS: Final = {"warning": "yellow", "note": "bold cyan"}
_MODES: Final = {
    "enforce": "enforce: what it says is done",
    "shadow": "[bold cyan]shadow: what it says is recorded, and not done[/bold cyan]",
}
_SHADOW: Final = "[bold cyan]SHADOW MODE: what the rules say is recorded, and not done[/bold cyan]"


def policy_view(policy: Policy) -> RenderableType:
    """A policy's rules in their order, and the settings that hold for all of them."""
    settings = Table.grid(padding=(0, 2))
    for key, words in _settings(policy):
        settings.add_row(f"[bold]{key}[/bold]", words)
    return Group(_rules_table(policy), settings)


def notice_line(notice: Notice) -> str:
    """A notice for a policy's author, with its place."""
    return f"[{_LEVELS[notice.level]}]{notice.level}:[/] {escape(f'{notice.place}: {notice.what}')}"


def certificates_table(certificates: Mapping[str, Certificate]) -> Table:
    """The threshold of a policy's guarantee on each tier, and what it costs in coverage."""
    title = "what the guarantee comes to on the calibration rows of each tier"
    numbers = ("threshold", "answered", "of them wrong", "rows", "confidence")
    table = make_table("tier", *numbers, "why none", title=title, right=numbers)
    for tier, found in certificates.items():
        table.add_row(
            escape(tier),
            "none" if found.threshold is None else f"{found.threshold:.4g}",
            f"{found.coverage:.1%}",
            "" if found.error is None else f"{found.error:.1%}",
            str(found.rows),
            _percent(found.confidence),
            escape(shortfall(found)),
        )
    return table


def explanation_view(explained: Explanation | Replay) -> RenderableType:
    """An explanation of facts or of a decision."""
    if isinstance(explained, Explanation):
        shadow = [] if explained.mode == "enforce" else [_SHADOW]
        return Group(_explanation(explained), *shadow)
    parts: list[RenderableType] = [escape(explained.record.paragraph)]
    for step in explained.steps:
        tier = escape(repr(step.explanation.facts.tier))
        parts += [f"\n[bold]attempt {step.attempt}[/bold], tier {tier}", _explanation(step.explanation)]
        if step.agrees is False:
            parts.append("[yellow]this isn't what was decided then[/yellow]")
    return Group(*parts, *(f"[yellow]note:[/yellow] {escape(note)}" for note in explained.notes))


def _explanation(explained: Explanation) -> RenderableType:
    """The outcome of each rule, the parts of the deciding condition, and the paragraph."""
    title = f"stage {explained.stage}: the first rule that holds decides"
    table = make_table("rule", "do", "outcome", "why", title=title)
    for one in explained.rules:
        outcome = None if one.outcome is None else one.outcome.outcome
        table.add_row(
            escape(one.rule.id),
            color_action(one.rule.do),
            "not reached" if outcome is None else "decided" if outcome == "decided" else "passed over",
            escape("" if one.outcome is None else outcome_text(one.outcome)),
            style="dim" if outcome is None else "bold" if outcome == "decided" else "",
        )
    parts = [] if explained.decisive is None else [_parts_table(explained.decisive)]
    return Group(table, *parts, escape(explained.paragraph))


def _parts_table(finding: Finding) -> Table:
    table = make_table("part", "value", "facts", title="what the deciding condition is made of")
    for depth, part in _indented(finding):
        facts = ", ".join(f"{name} is {fact_text(value)}" for name, value in part.facts.items())
        value = part.value if isinstance(part.value, str) else str(part.value).lower()
        table.add_row("  " * depth + escape(part.text), escape(value), escape(facts))
    return table


def _indented(finding: Finding, depth: int = 0) -> Iterator[tuple[int, Finding]]:
    yield depth, finding
    for part in finding.parts:
        yield from _indented(part, depth + 1)


def _rules_table(policy: Policy) -> Table:
    optional = [key for key in ("due", "sample") if any(getattr(rule, key) is not None for rule in policy.rules)]
    title = escape(f"{policy.name}: the first rule that holds decides")
    table = make_table("rule", "stage", "when", "do", "to", "say", *optional, title=title)
    for rule in policy.rules:
        texts = (rule.to or "", rule.say or "", *(_optional(rule, key) for key in optional))
        cells = (escape(rule.id), rule.stage, escape(rule.when or "always"), color_action(rule.do))
        table.add_row(*cells, *map(escape, texts))
    return table


def _optional(rule: Rule, key: str) -> str:
    if key == "due":
        return rule.due or ""
    return "" if rule.sample is None else _percent(rule.sample)


def _settings(policy: Policy) -> Iterator[tuple[str, str]]:
    yield "mode", _MODES[policy.mode]
    if policy.guarantee is not None:
        yield "guarantee", _guarantee(policy.guarantee)
    if policy.budget is not None:
        yield "budget", f"each request takes {', '.join(_limits(policy.budget))}"
    if policy.audit is not None:
        fraction, queue = _percent(policy.audit.fraction), escape(repr(policy.audit.queue))
        yield "audit", f"{fraction} of the answered requests also go to the queue {queue}"


def _guarantee(guarantee: Guarantee) -> str:
    confidence = f"with {_percent(guarantee.confidence)} confidence; nothing else is answered"
    if guarantee.max_error is not None:
        return f"of the certified requests, at most {_percent(guarantee.max_error)} are wrong, {confidence}"
    if guarantee.min_coverage is not None:
        return f"at least {_percent(guarantee.min_coverage)} of the requests are certified, {confidence}"
    of = f"{guarantee.max_reviews_per_hour:g} of {guarantee.requests_per_hour:g} requests an hour"
    return f"at most {of} aren't certified, {confidence}"


def _limits(budget: Budget) -> Iterator[str]:
    if budget.max_seconds is not None:
        yield f"at most {budget.max_seconds:g} s"
    if budget.max_attempts is not None:
        yield f"at most {count(budget.max_attempts, 'attempt')}"
    if budget.max_cost is not None:
        yield f"no larger tier once its cost is {budget.max_cost:g}"


def _percent(share: float) -> str:
    return f"{100 * share:g}%"
