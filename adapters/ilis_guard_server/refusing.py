"""What OpenAI's clients may ask for and a guard doesn't do: refused by name, with what to do instead."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from ilis_guard_server.problems import RefusedError

_NO_TOOLS: Final = "a guard answers in text and calls no tools; leave it out"
_OWN_DECODING: Final = "how tokens are chosen is guard.yaml's (a tier's `decoding`), which scores are fitted to"
_OWN_LENGTH: Final = "how long answers may be is guard.yaml's (a tier's `max_new_tokens`), which scores are fitted to"
_NO_LOGPROBS: Final = "a guard tells one calibrated uncertainty instead (`ilis_guard.uncertainty`)"
REASONS: Final[Mapping[str, str]] = {
    "audio": "a guard answers in text",
    "best_of": "a guard decides on one answer",
    "echo": "an answer is told without its prompt",
    "frequency_penalty": _OWN_DECODING,
    "function_call": _NO_TOOLS,
    "functions": _NO_TOOLS,
    "logit_bias": _OWN_DECODING,
    "logprobs": _NO_LOGPROBS,
    "max_completion_tokens": _OWN_LENGTH,
    "max_tokens": _OWN_LENGTH,
    "modalities": "a guard answers in text",
    "n": "a guard decides on one answer",
    "parallel_tool_calls": _NO_TOOLS,
    "presence_penalty": _OWN_DECODING,
    "reasoning_effort": _OWN_DECODING,
    "response_format": "answers are plain text, as the tiers' models give them",
    "seed": _OWN_DECODING,
    "stop": "it is a string, or a list of one to four, and none of them empty",
    "store": "nothing is stored, but tickets",
    "suffix": "a guard answers prompts and fills no gaps",
    "temperature": _OWN_DECODING,
    "tool_choice": _NO_TOOLS,
    "tools": _NO_TOOLS,
    "top_logprobs": _NO_LOGPROBS,
    "top_p": _OWN_DECODING,
    "web_search_options": _NO_TOOLS,
}


def refused(problems: ValidationError) -> RefusedError:
    """The first problem of a body, by the name of its parameter, and never by what stood there."""
    first = min(problems.errors(include_url=False, include_context=False, include_input=False), key=_depth)
    names = [str(part) for part in first["loc"] if not _is_a_choice(part)]
    param = ".".join(names)
    if first["type"] == "extra_forbidden":
        why = REASONS.get(param, "there is no such parameter")
        code = "unsupported_parameter" if param in REASONS else "unknown_parameter"
        return RefusedError(400, f"The parameter {param!r} can't be used: {why}.", param=param, code=code)
    if not names:
        return RefusedError(400, "The body isn't a JSON object of the documented shape.", code="invalid_body")
    if first["type"] == "missing":
        return RefusedError(400, f"The parameter {param!r} is missing.", param=param, code="missing_parameter")
    if names[0] in REASONS:
        return unusable(param, REASONS[names[0]])
    return RefusedError(400, f"This value of {param!r} can't be used.", param=param, code="invalid_value")


def unusable(param: str, why: str) -> RefusedError:
    """A parameter whose value is of the right kind, and can't be used all the same."""
    return RefusedError(400, f"This value of {param!r} can't be used: {why}.", param=param, code="unsupported_value")


def _depth(error: Any) -> int:
    """Unknown parameters come first: they are what somebody wanted most."""
    return 0 if error["type"] == "extra_forbidden" else 1


def _is_a_choice(part: int | str) -> bool:
    """Whether it says which of several types pydantic tried, and no place in the body."""
    return isinstance(part, str) and (part in _CHOICES or "[" in part)


_CHOICES: Final = frozenset(
    {"str", "constrained-str", "bool", "int", "float", "system", "developer", "user", "assistant"}
)
