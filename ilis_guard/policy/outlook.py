"""What may still become of an answer that is under way, as far as a policy goes."""

from collections.abc import Iterable
from typing import Final

from ilis_guard.policy.conditions import Situation
from ilis_guard.policy.engine import BoundRule, in_sample, invalid_labels, missing_facts, obstacle_to
from ilis_guard.policy.facts import Facts
from ilis_guard.types import Action

OPEN: Final = frozenset(
    {"cost", "finish_reason", "seconds", "typicality", "text_length", "tokens"}
    | {"statistics.entropy_mean", "statistics.logprob_mean"}
)
"""Facts that an answer has only at its end: until then they are unknown, however they stand. The other statistics only
fall on the way, so that a rule against low ones holds on."""


def may_answer(rules: Iterable[BoundRule], facts: Facts, *, tiers_may_go: bool) -> bool:
    """Whether some rule may still answer, if the uncertainty stays as it is.

    Conditions are looked at without the facts in `OPEN`: a rule that hangs on one of them may hold or not, and counts
    in favour of the answer both times. So nothing is ruled out that a full answer with this score might come to.

    Args:
        rules: of stage `answer`, in order.
        facts: of the attempt as far as it has come.
        tiers_may_go: whether a larger tier that is left now may be out of reach at the answer's end.
    """
    if facts.error or facts.answer_blocked_by or invalid_labels(facts):
        return False
    still_open = OPEN | {"last_tier"} if tiers_may_go and not facts.last_tier else OPEN
    situation = Situation(facts, still_open=still_open)
    for bound in rules:
        holds = bound.condition.outlook(situation) if in_sample(bound.rule, facts) else False
        if holds is False or obstacle_to(bound, facts):
            continue
        if bound.rule.do is Action.ANSWER:
            if not missing_facts(bound, situation):
                return True
        elif holds and not (bound.rule.do is Action.RETRY and "last_tier" in still_open):
            return False
    return False
