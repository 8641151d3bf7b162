"""The sentences that say what a rule did, and the paragraph for reviewers that is made of them.

The engine writes these sentences into a ruling's reasons. Decisions and tickets keep the reasons, so what a paragraph
needs is read from them again. A paragraph quotes no prompt, no answer, and of an error only its kind.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

NO_RULE_HELD: Final = "no rule held: abstained"
GOES_ON: Final = "no rule held at the prompt: the model goes on to answer"
"""Of an explanation; a decision's reasons go on themselves."""
MAX_PASSED_OVER: Final = 3
"""So many rules that were passed over are told in a paragraph; the reasons hold them all."""

_DONE: Final = {
    "answer": "the answer is given",
    "abstain": "nothing is answered (abstain)",
    "retry": "a larger tier is asked (retry)",
    "escalate": "a person is asked (escalate)",
    "": "the model goes on to answer",
}
_WOULD_HAVE: Final = {
    "answer": "have answered",
    "abstain": "have abstained",
    "retry": "have asked a larger tier (retry)",
    "escalate": "have escalated",
}
_AT_PROMPT: Final = " at the prompt"
_HAS_DECIDED: Final = re.compile(
    rf"rule '(?P<rule>[^']+)' decided(?P<early>{_AT_PROMPT})?: (?P<do>\w+), because (?P<why>.*)", re.DOTALL
)
_WAS_PASSED_OVER: Final = re.compile(r"rule '(?P<rule>[^']+)' passed over: (?P<why>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the policy said to one attempt, as its reasons tell it."""

    action: str
    """Empty where the model goes on to answer."""
    rule: str | None
    """None where no rule held."""
    at_prompt: bool
    """Whether no token had been generated yet."""
    because: str
    """Empty where no rule held."""
    passed_over: tuple[tuple[str, str], ...]
    """The rules that were passed over, and why, in order."""


def came_to(condition: str, value: bool, facts: str) -> str:
    """What a condition, or a part of one, came to, with the facts that it looks at."""
    return f"`{condition}` is {'true' if value else 'false'}{f' ({facts})' if facts else ''}"


def decided(rule: str, action: str, because: str, *, at_prompt: bool) -> str:
    """Why a rule decided."""
    return f"rule '{rule}' decided{_AT_PROMPT if at_prompt else ''}: {action}, because {because}"


def passed_over(rule: str, why: str) -> str:
    """Why a rule didn't."""
    return f"rule '{rule}' passed over: {why}"


def cut_after(tokens: int) -> str:
    """Where a stream gave up an answer."""
    return f"cut after {tokens} token{'' if tokens == 1 else 's'}"


def why_of(reason: str) -> str:
    """What a sentence of `decided` or `passed_over` gives as the reason."""
    match = _HAS_DECIDED.fullmatch(reason) or _WAS_PASSED_OVER.fullmatch(reason)
    return match["why"] if match else reason


def said_in(reasons: Sequence[str]) -> Iterator[Said]:
    """What the policy said to each attempt; reasons that say something else, such as errors met, are left out."""
    before: list[tuple[str, str]] = []
    for reason in reasons:
        if match := _WAS_PASSED_OVER.fullmatch(reason):
            before.append((match["rule"], match["why"]))
        elif said := _said(reason, tuple(before)):
            yield said
            before = []


def action_behind(reasons: Sequence[str]) -> str:
    """What was done in the end with a request that has a ticket: escalated, unless its reasons tell something else."""
    said = list(said_in(reasons))
    return said[-1].action if said else "escalate"


def _said(reason: str, before: tuple[tuple[str, str], ...]) -> Said | None:
    if match := _HAS_DECIDED.fullmatch(reason):
        is_early = match["early"] is not None
        return Said(
            action=match["do"], rule=match["rule"], at_prompt=is_early, because=match["why"], passed_over=before
        )
    if reason in (NO_RULE_HELD, GOES_ON):
        is_early = reason == GOES_ON
        return Said(action="" if is_early else "abstain", rule=None, at_prompt=is_early, because="", passed_over=before)
    return None


def paragraph(
    *,
    action: str,
    attempts: Sequence[Mapping[str, Any]],
    reasons: Sequence[str],
    queue: str = "",
    mode: str = "enforce",
    shadow: Mapping[str, Any] | None = None,
) -> str:
    """What happened to a request and why, for a person who reviews it.

    Args:
        action: what was done in the end.
        attempts: `tier`, `stage`, `uncertainty`, `stopped_at` and `error` of each, named as in `Attempt.to_dict`.
        reasons: why, in the order it came about.
        queue: where it waits for a person; empty where it doesn't.
        mode: of the policy in force.
        shadow: `action`, `reasons` and `error` of what a policy said that only looks on, named as in
            `ShadowRuling.to_dict`; None where none did.
    """
    told = _let_out(action, attempts) if mode == "shadow" else _enforced(action, attempts, list(said_in(reasons)))
    if queue:
        told.append(
            f"It also waits in the queue '{queue}' for a person's look."
            if action == "answer"
            else f"It waits in the queue '{queue}' for a person."
        )
    if shadow is not None:
        told += _looked_on(shadow, is_in_force=mode == "shadow")
    return " ".join(told)


def _let_out(action: str, attempts: Sequence[Mapping[str, Any]]) -> list[str]:
    went = "The answer is given, as it would be without a policy." if action == "answer" else "There's no answer."
    return [*map(_tried, attempts), went]


def _enforced(action: str, attempts: Sequence[Mapping[str, Any]], said: Sequence[Said]) -> list[str]:
    if len(said) == len(attempts):
        told = [text for pair in zip(map(_tried, attempts), map(_ruled, said), strict=True) for text in pair]
    else:  # redacted by now, or not written by the engine
        told = [*map(_tried, attempts), f"In the end {_DONE[action]}."]
    if said and said[-1].action == "escalate" and action == "abstain":
        told.append(f"The ticket couldn't be stored, so {_DONE[action]}.")
    if said and said[-1].passed_over:
        told.append(_passed_over(said[-1].passed_over))
    return told


def _looked_on(shadow: Mapping[str, Any], *, is_in_force: bool) -> list[str]:
    """What a policy that only looks on would have done."""
    who = "The policy only looks on" if is_in_force else "Another policy looks on"
    if shadow["error"]:
        return [f"{who}, and couldn't say what it would have done ({kind_of(shadow['error'])})."]
    said = list(said_in(shadow["reasons"]))
    if shadow["action"] is None or not said:
        return [f"{who}: what it would have done hangs on an answer that was never made."]
    would = _would_have(said[-1])
    # Of the policy in force it is told in full, as if it had decided.
    passed = [_passed_over(said[-1].passed_over)] if is_in_force and said[-1].passed_over else []
    return [f"{who}: {would}.", *passed]


def _would_have(said: Said) -> str:
    if said.rule is None:
        return f"no rule held, so it would {_WOULD_HAVE[said.action]}"
    early = ", before a token is generated" if said.at_prompt else ""
    return f"by rule '{said.rule}' it would {_WOULD_HAVE[said.action]}{early}, because {said.because}"


def kind_of(error: str) -> str:
    """An attempt's error without what follows its kind, which may quote the prompt."""
    return error.partition(":")[0]


def _tried(attempt: Mapping[str, Any]) -> str:
    tier = f"The tier '{attempt['tier']}'" if attempt["tier"] else "The model"
    value = attempt["uncertainty"]
    uncertainty = None if value is None or math.isnan(value) else value
    # Tickets of older releases have no stage.
    if attempt.get("stage") == "prompt":
        scored = "" if uncertainty is None else f"; the prompt has an uncertainty of {uncertainty:.3g}"
        return f"{tier} hadn't answered yet{scored}."
    if attempt["error"]:
        return f"{tier} failed ({kind_of(attempt['error'])})."
    # Nor have they, or those of a decision that wasn't streamed, been cut.
    if attempt.get("stopped_at") is not None:
        scored = "" if uncertainty is None else f", with an uncertainty of {uncertainty:.3g} so far"
        return f"{tier} was {cut_after(attempt['stopped_at'])}{scored}."
    scored = "; its answer has no uncertainty" if uncertainty is None else f" with an uncertainty of {uncertainty:.3g}"
    return f"{tier} answered{scored}."


def _ruled(said: Said) -> str:
    if said.rule is None:
        return f"No rule held, so {_DONE[said.action]}."
    early = ", before a token is generated" if said.at_prompt else ""
    return f"By rule '{said.rule}' {_DONE[said.action]}{early}, because {said.because}."


def _passed_over(rules: Sequence[tuple[str, str]]) -> str:
    # Those nearest to the rule that decided say most of why it came to that one.
    told = [f"rule '{rule}', as {why}" for rule, why in rules[-MAX_PASSED_OVER:]]
    others = len(rules) - len(told)
    first = [] if others == 0 else ["1 other" if others == 1 else f"{others} others"]
    return f"Passed over before it: {'; '.join(first + told)}."
