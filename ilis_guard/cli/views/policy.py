"""What the command line shows of a policy that is checked."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from rich.console import Group, RenderableType
from rich.table import Table

from ilis_guard.cli.views.text import coloured, escape
from ilis_guard.policy import Budget, Guarantee, Notice, Policy, Rule

if TYPE_CHECKING:  # importing it imports scipy, and every command imports this module
    from ilis_guard.scoring.risk_control import Certificate

_STYLES: Final = {"warning": "yellow", "note": "bold cyan"}
_MODES: Final = {
    "enforce": "enforce: what it says is done",
    "shadow": "[bold cyan]shadow: what it says is recorded, and not done[/bold cyan]",
}


def policy_view(policy: Policy) -> RenderableType:
    """A policy's rules in the order they are tried, and what holds for all of them."""
    frame = Table.grid(padding=(0, 2))
    for key, words in _frame(policy):
        frame.add_row(f"[bold]{key}[/bold]", words)
    return Group(_rules_table(policy), frame)


def notice_line(found: Notice) -> str:
    """What a policy's author should know, and where."""
    return f"[{_STYLES[found.level]}]{found.level}:[/] {escape(f'{found.place}: {found.what}')}"


def certificates_table(certificates: "Mapping[str, Certificate]") -> Table:
    """What a policy's guarantee comes to, one row a tier."""
    from ilis_guard.policy.guarantees import shortfall

    title = "what the guarantee comes to on the calibration rows of each tier"
    table = Table(title=title, title_justify="left")
    for heading in ("tier", "threshold", "answered", "of them wrong", "rows", "confidence", "why none"):
        table.add_column(heading, overflow="fold", justify="left" if heading in ("tier", "why none") else "right")
    for tier, found in certificates.items():
        table.add_row(
            escape(tier),
            "none" if found.threshold is None else f"{found.threshold:.4g}",
            f"{found.coverage:.1%}",
            "" if found.error is None else f"{found.error:.1%}",
            str(found.rows),
            _share(found.confidence),
            escape(shortfall(found)),
        )
    return table


def _rules_table(policy: Policy) -> Table:
    table = Table(title=escape(f"{policy.name}: the first rule that holds decides"), title_justify="left")
    optional = [key for key in ("due", "sample") if any(getattr(rule, key) is not None for rule in policy.rules)]
    for heading in ("rule", "stage", "when", "do", "to", "say", *optional):
        table.add_column(heading, overflow="fold")
    for rule in policy.rules:
        table.add_row(
            escape(rule.id),
            rule.stage,
            escape(rule.when or "always"),
            coloured(rule.do),
            escape(rule.to or ""),
            escape(rule.say or ""),
            *(_optional(rule, key) for key in optional),
        )
    return table


def _optional(rule: Rule, key: str) -> str:
    if key == "due":
        return rule.due or ""
    return "" if rule.sample is None else _share(rule.sample)


def _frame(policy: Policy) -> Iterator[tuple[str, str]]:
    """What stands beside the rules, in words."""
    yield "mode", _MODES[policy.mode]
    if policy.guarantee is not None:
        yield "guarantee", _promise(policy.guarantee)
    if policy.budget is not None:
        yield "budget", f"each request takes {', '.join(_limits(policy.budget))}"
    if policy.audit is not None:
        share = _share(policy.audit.fraction)
        yield "audit", f"{share} of the answered requests also go to the queue {escape(repr(policy.audit.queue))}"


def _promise(guarantee: Guarantee) -> str:
    confidence = f"with {_share(guarantee.confidence)} confidence; nothing else is answered"
    if guarantee.max_error is not None:
        return f"of the certified requests, at most {_share(guarantee.max_error)} are wrong, {confidence}"
    if guarantee.min_coverage is not None:
        return f"at least {_share(guarantee.min_coverage)} of the requests are certified, {confidence}"
    of = f"{guarantee.max_reviews_per_hour:g} of {guarantee.requests_per_hour:g} requests an hour"
    return f"at most {of} aren't certified, {confidence}"


def _limits(budget: Budget) -> Iterator[str]:
    if budget.max_seconds is not None:
        yield f"at most {budget.max_seconds:g} s"
    if budget.max_attempts is not None:
        yield f"at most {budget.max_attempts} attempt{'' if budget.max_attempts == 1 else 's'}"
    if budget.max_cost is not None:
        yield f"no larger tier once its cost is {budget.max_cost:g}"


def _share(share: float) -> str:
    return f"{100 * share:g}%"
