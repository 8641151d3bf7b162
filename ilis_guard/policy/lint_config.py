"""What a policy would do in one guard that neither its author nor the operator may mean."""

from collections.abc import Iterator

from ilis_guard.config.guard_yaml import GuardConfig
from ilis_guard.config.strict_yaml import suggest
from ilis_guard.policy import DEFAULT_QUEUE, Notice, Policy, Rule
from ilis_guard.policy.cells import literals_of
from ilis_guard.types import Action


def notices(policy: Policy, config: GuardConfig) -> tuple[Notice, ...]:
    """All there is to say of a policy and a guard.yaml that go with one another; see `ground.check_config`."""
    return (
        *(found for rule in policy.rules for found in _of_rule(policy, rule, [tier.name for tier in config.tiers])),
        *_passed_on(policy, config),
        *_unheard(policy, config),
    )


def _of_rule(policy: Policy, rule: Rule, tiers: list[str]) -> Iterator[Notice]:
    if rule.do is Action.RETRY and len(tiers) == 1:
        what = f"never retries: this guard has one tier, {tiers[0]!r}, so the rule is always passed over"
        yield Notice("warning", policy.place(rule.id, "do"), f"rule '{rule.id}': {what}")
    elif rule.do is Action.RETRY and rule.to == tiers[0]:
        what = f"never retries: {rule.to!r} is the smallest tier, and a retry goes to a larger one"
        yield Notice("warning", policy.place(rule.id, "to"), f"rule '{rule.id}': {what}")
    for name in sorted((literals_of(rule.when or "true") or {}).get("tier", ())):
        if name not in tiers:
            what = f"there is no tier {name!r}{suggest(name, tiers) or f'; there are {tiers!r}'}"
            yield Notice("warning", policy.place(rule.id, "when"), f"rule '{rule.id}': {what}")


def _passed_on(policy: Policy, config: GuardConfig) -> Iterator[Notice]:
    """Tiers whose guarantee rests on rows of all requests, where they see only what smaller ones didn't answer."""
    retrying = [rule.to for rule in policy.rules if rule.do is Action.RETRY]
    later = [
        tier.name
        for tier in config.tiers[1:]
        if tier.bundle is not None and any(to is None or to == tier.name for to in retrying)
    ]
    if policy.guarantee is not None and later:
        what = (
            f"the tiers {later!r} see only what rules pass on to them, mostly harder requests, and are certified on "
            "their bundles' calibration rows: there the guarantee holds only if these rows are such requests too, not "
            "all (docs/risk-control.md)"
        )
        yield Notice("note", policy.key_place("guarantee"), what)


def _unheard(policy: Policy, config: GuardConfig) -> Iterator[Notice]:
    """Queues whose tickets nobody hears of."""
    review = config.review
    if review is None or review.page is not None:
        return
    sent = {policy.key_place("audit", "queue"): policy.audit.queue} if policy.audit is not None else {}
    for rule in policy.rules:
        if rule.do is Action.ESCALATE:
            sent.setdefault(policy.place(rule.id, "do" if rule.to is None else "to"), rule.to or DEFAULT_QUEUE)
    told = set[str]()
    for place, queue in sent.items():
        if queue not in told and not any(endpoint.receives("ticket.created", [queue]) for endpoint in review.endpoints):
            what = (
                f"nobody is told of tickets in the queue {queue!r}: guard.yaml has no endpoint that hears of them, and "
                "no page where people look; add one, or look with `ilis-guard queue list`"
            )
            yield Notice("warning", place, what)
        told.add(queue)
