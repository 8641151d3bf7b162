"""The sentences that say what a rule did, and the paragraph for reviewers that is made of them.

The engine writes these sentences into a ruling's reasons. Decisions and tickets keep the reasons, so what a paragraph
needs is read from them again. A paragraph quotes no prompt, no answer, and of an error only its kind.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

NO_RULE_HELD: Final = "no rule held: abstained"
MAX_PASSED_OVER: Final = 3
"""So many rules that were passed over are told in a paragraph; the reasons hold them all."""

_DONE: Final = {
    "answer": "the answer is given",
    "abstain": "nothing is answered (abstain)",
    "retry": "a larger tier is asked (retry)",
    "escalate": "a person is asked (escalate)",
}
_AT_PROMPT: Final = " at the prompt"
_HAS_DECIDED: Final = re.compile(rf"rule '([^']+)' decided({_AT_PROMPT})?: (\w+), because (.*)", re.DOTALL)
_WAS_PASSED_OVER: Final = re.compile(r"rule '([^']+)' passed over: (.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the policy said to one attempt, as its reasons tell it."""

    action: str
    rule: str | None
    """None where no rule held."""
    because: str
    """Empty where no rule held."""
    passed_over: tuple[tuple[str, str], ...]
    """The rules that were passed over, and why, in order."""


def decided(rule: str, action: str, because: str, *, at_prompt: bool) -> str:
    """Why a rule decided."""
    return f"rule '{rule}' decided{_AT_PROMPT if at_prompt else ''}: {action}, because {because}"


def passed_over(rule: str, why: str) -> str:
    """Why a rule didn't."""
    return f"rule '{rule}' passed over: {why}"


def said_in(reasons: Sequence[str]) -> Iterator[Said]:
    """What the policy said to each attempt; reasons that say something else, such as errors met, are left out."""
    before: list[tuple[str, str]] = []
    for reason in reasons:
        if match := _WAS_PASSED_OVER.fullmatch(reason):
            before.append((match[1], match[2]))
        elif match := _HAS_DECIDED.fullmatch(reason):
            yield Said(action=match[3], rule=match[1], because=match[4], passed_over=tuple(before))
            before = []
        elif reason == NO_RULE_HELD:
            yield Said(action="abstain", rule=None, because="", passed_over=tuple(before))
            before = []


def paragraph(*, action: str, attempts: Sequence[Mapping[str, Any]], reasons: Sequence[str], queue: str = "") -> str:
    """What happened to a request and why, for a person who reviews it.

    Args:
        action: what was done in the end.
        attempts: `tier`, `stage`, `uncertainty` and `error` of each, named as in `Attempt.to_dict`.
        reasons: why, in the order it came about.
        queue: where it waits for a person; empty where it doesn't.
    """
    said = list(said_in(reasons))
    if len(said) == len(attempts):
        told = [text for pair in zip(map(_tried, attempts), map(_ruled, said), strict=True) for text in pair]
    else:  # redacted by now, or not written by the engine
        told = [*map(_tried, attempts), f"In the end {_DONE[action]}."]
    if said and said[-1].action == "escalate" and action == "abstain":
        told.append(f"The ticket couldn't be stored, so {_DONE[action]}.")
    if queue:
        told.append(f"It waits in the queue '{queue}' for a person.")
    if said and said[-1].passed_over:
        told.append(_passed_over(said[-1].passed_over))
    return " ".join(told)


def kind_of(error: str) -> str:
    """An attempt's error without what follows its kind, which may quote the prompt."""
    return error.partition(":")[0]


def _tried(attempt: Mapping[str, Any]) -> str:
    tier = f"The tier '{attempt['tier']}'" if attempt["tier"] else "The model"
    uncertainty = attempt["uncertainty"]
    # Tickets of older releases have no stage.
    if attempt.get("stage") == "prompt":
        because_of = "" if uncertainty is None else f"; the prompt's uncertainty was {uncertainty:.3g}"
        return f"{tier} was stopped before it answered{because_of}."
    if attempt["error"]:
        return f"{tier} failed ({kind_of(attempt['error'])})."
    scored = "; its answer has no uncertainty" if uncertainty is None else f" with an uncertainty of {uncertainty:.3g}"
    return f"{tier} answered{scored}."


def _ruled(said: Said) -> str:
    if said.rule is None:
        return f"No rule held, so {_DONE[said.action]}."
    return f"By rule '{said.rule}' {_DONE[said.action]}, because {said.because}."


def _passed_over(rules: Sequence[tuple[str, str]]) -> str:
    told = "; ".join(f"rule '{rule}', as {why}" for rule, why in rules[:MAX_PASSED_OVER])
    more = len(rules) - MAX_PASSED_OVER
    return f"Passed over before it: {told}{f'; and {more} more' if more > 0 else ''}."
