"""What a policy that looks on would have decided, from the attempts that were made; it asks no model."""

from collections.abc import Sequence

from ilis_guard import events
from ilis_guard.policy import Ruling
from ilis_guard.policy.binding import BoundPolicy
from ilis_guard.policy.state import AttemptSummary, CascadeState
from ilis_guard.sentences import cut_after
from ilis_guard.types import Action, Attempt, Request, ShadowRuling


def looked_on(
    wired: BoundPolicy, request: Request, tiers: Sequence[str], attempts: Sequence[Attempt], *, decision: str
) -> ShadowRuling:
    """Let a policy look at attempts that were made under another one. Nothing is raised.

    It goes from tier to tier as it would have, as far as there are attempts.

    Args:
        wired: the policy.
        request: what was asked.
        tiers: names, from small to large.
        attempts: those made, in order.
        decision: the decision's id.
    """
    reasons: list[str] = []
    try:
        way = wired.way(request, tiers, sampling_key=decision)
        ruling = _last_ruling(way, {attempt.tier: attempt for attempt in attempts}, reasons)
    except Exception as error:  # noqa: BLE001 - who only looks on does no harm, whatever is wrong with them
        events.log().error(events.SHADOW_FAILED, decision=decision, error=type(error).__name__)
        return ShadowRuling(
            policy=wired.policy.fingerprint,
            action=None,
            rule=None,
            reasons=tuple(reasons),
            error=f"{type(error).__name__}: {error}",
        )
    return ShadowRuling(
        policy=wired.policy.fingerprint,
        action=None if ruling is None else ruling.action,
        rule=None if ruling is None else ruling.rule,
        reasons=tuple(reasons),
    )


def _last_ruling(way: CascadeState, made: dict[str, Attempt], reasons: list[str]) -> Ruling | None:
    """The ruling it comes to; None where that hangs on an answer that was never made. `reasons` grows on the way."""
    while True:
        attempt = made[way.left[0]]
        ruling, facts = _ruling(way, attempt, reasons)
        if ruling is None:
            kept = "spared its answer" if attempt.stopped_at is None else cut_after(attempt.stopped_at)
            reasons.append(f"the tier {attempt.tier!r} was {kept}, so what there was to say isn't known")
            return None
        if ruling.action is not Action.RETRY:
            return ruling
        way = way.after_retry(facts, ruling.to)
        if way.left[0] not in made:
            reasons.append(f"the tier {way.left[0]!r} wasn't asked, so what comes of it isn't known")
            return ruling


def _ruling(way: CascadeState, attempt: Attempt, reasons: list[str]) -> tuple[Ruling | None, AttemptSummary]:
    """What it says to one attempt, and that attempt as far as it would have come under it.

    It says nothing, None, where it would have let the model answer, which never did, or was cut on its way.
    """
    facts, answer_blocked_by = AttemptSummary.of(attempt), ""
    if way.policy.prompt_rules:
        if attempt.prompt_score is None and way.policy.scored_prompt_rules:
            reasons.append(
                f"the prompt wasn't scored on the tier {attempt.tier!r}: only the policy in force has that done"
            )
        at_prompt = AttemptSummary.at_prompt(attempt)
        early = way.at_prompt(at_prompt)
        reasons.extend(early.reasons)
        if early.ruling is not None:
            return early.ruling, facts if attempt.stage == "prompt" else at_prompt
        answer_blocked_by = early.answer_blocked_by
    if attempt.stage == "prompt":
        return None, facts
    if attempt.stopped_at is not None:
        return None, facts
    ruling = way.at_answer(facts, answer_blocked_by=answer_blocked_by)
    reasons.extend(ruling.reasons)
    return ruling, facts
