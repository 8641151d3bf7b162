"""Shadow rulings: what a policy would have decided from attempts made under another. No model is called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ilis_guard import events
from ilis_guard.policy.binding import BoundPolicy
from ilis_guard.policy.state import AttemptSummary, CascadeState
from ilis_guard.types import Action, Attempt, ErrorInfo, PromptRuling, Request, Ruling, ShadowNote, ShadowRuling


def shadow_ruling(
    bound: BoundPolicy, request: Request, tiers: Sequence[str], attempts: Sequence[Attempt], *, decision: str
) -> ShadowRuling:
    """Evaluate a policy on attempts that were made under another one. Nothing is raised.

    It goes from tier to tier as it would have, as far as there are attempts.

    Args:
        bound: the policy.
        request: the request.
        tiers: names, from small to large.
        attempts: those made, in order.
        decision: the decision's id.
    """
    fingerprint = bound.policy.fingerprint
    replay = _Replay({attempt.tier: attempt for attempt in attempts})
    try:
        ruling = replay.run(bound.initial_state(request, tiers, sampling_key=decision))
    except Exception as error:  # noqa: BLE001 - a shadow policy never affects the decision
        events.log().error(events.SHADOW_FAILED, decision=decision, error=type(error).__name__)
        return ShadowRuling(
            policy=fingerprint,
            action=None,
            rule=None,
            rulings=tuple(replay.rulings),
            notes=tuple(replay.notes),
            error=ErrorInfo.of(error),
        )
    return ShadowRuling(
        policy=fingerprint,
        action=None if ruling is None else ruling.action,
        rule=None if ruling is None else ruling.rule,
        rulings=tuple(replay.rulings),
        notes=tuple(replay.notes),
    )


@dataclass(slots=True)
class _Replay:
    """A cascade over attempts that were made."""

    attempts: Mapping[str, Attempt]
    """By tier."""
    rulings: list[Ruling] = field(default_factory=list)
    notes: list[ShadowNote] = field(default_factory=list)

    def run(self, state: CascadeState) -> Ruling | None:
        """The last ruling; None where that depends on an answer that was never made."""
        while True:
            attempt = self.attempts[state.tiers[0]]
            ruling, summary = self._rule(state, attempt)
            if ruling is None:
                self.notes.append(_no_answer(attempt))
                return None
            self.rulings.append(ruling)
            if ruling.action is not Action.RETRY:
                return ruling
            state = state.after_retry(summary, ruling.to)
            if state.tiers[0] not in self.attempts:
                self.notes.append(ShadowNote(kind="tier_not_tried", tier=state.tiers[0]))
                return ruling

    def _rule(self, state: CascadeState, attempt: Attempt) -> tuple[Ruling | None, AttemptSummary]:
        """The ruling on one attempt, and the attempt as it would be under this policy.

        None where the policy would have let the model answer, but the model never did or was stopped early.
        """
        summary, prompt = AttemptSummary.of(attempt), PromptRuling()
        if state.policy.prompt_rules:
            if attempt.prompt_score is None and state.policy.scored_prompt_rules:
                # Prompts are scored only for the active policy.
                self.notes.append(ShadowNote(kind="prompt_not_scored", tier=attempt.tier))
            at_prompt = AttemptSummary.at_prompt(attempt)
            prompt = state.evaluate_prompt(at_prompt)
            if prompt.ruling is not None:
                return prompt.ruling, summary if attempt.stage == "prompt" else at_prompt
        if attempt.stage == "prompt" or attempt.stopped_at is not None:
            return None, summary
        ruling = state.evaluate_answer(summary, answer_blocked_by=prompt.answer_blocked_by)
        return replace(ruling, outcomes=(*prompt.outcomes, *ruling.outcomes)), summary


def _no_answer(attempt: Attempt) -> ShadowNote:
    if attempt.stopped_at is None:
        return ShadowNote(kind="answer_spared", tier=attempt.tier)
    return ShadowNote(kind="answer_stopped_early", tier=attempt.tier, tokens=attempt.stopped_at)
