"""The sentences that `policy.explain` makes of decisions, for tests that read them."""

from collections.abc import Sequence

from ilis_guard.policy.explain import attempt_reasons, error_text, obstacle_text, reasons, shadow_note
from ilis_guard.types import Action, Attempt, Decision, Obstacle, PromptRuling, Ruling, ShadowRuling


def why(made: Decision | ShadowRuling | Ruling | PromptRuling) -> tuple[str, ...]:
    """The reasons of a decision or a ruling, in order."""
    if isinstance(made, Decision):
        return tuple(reasons(made))
    if isinstance(made, PromptRuling):
        ruling = made.ruling or Ruling(action=Action.ABSTAIN, rule="", outcomes=made.outcomes)
        return tuple(attempt_reasons((), [ruling]))
    rulings: Sequence[Ruling] = [made] if isinstance(made, Ruling) else made.rulings
    notes = [] if isinstance(made, Ruling) else map(shadow_note, made.notes)
    return (*attempt_reasons((), rulings), *notes)


def problem(attempt: Attempt) -> str:
    """An attempt's error with its details; empty where there is none."""
    return "" if attempt.error is None else error_text(attempt.error)


def blocked(obstacle: Obstacle | None) -> str:
    """Why no rule may answer; empty where one may."""
    return "" if obstacle is None else obstacle_text(obstacle)
