"""Checks of what a model returned: a user's own model may return anything."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, get_args

import numpy as np

from ilis_guard.errors import ModelError
from ilis_guard.text import whole_characters
from ilis_guard.types import DEPARTURES, FinishReason, Generation, Position, Signature, Statistics, to_float
from ilis_guard.types.thinking import find_answer

_MAX_TOKENS: Final = 2**63 - 1
"""Of one generation: more than databases, clients and conditions can count."""


def check_generation(generation: object) -> Generation:
    """Check what a model returned, in all that policies and tickets read: a user's own model may return anything."""
    if not isinstance(generation, Generation):
        raise ModelError(f"the model must return a Generation, got a {type(generation).__name__}")
    if not isinstance(generation.text, str) or not _is_count(generation.tokens):
        raise ModelError(
            f"a Generation's text is a string and its tokens are counted from 0, or None, got a "
            f"{type(generation.text).__name__} and {_shown(generation.tokens)}"
        )
    if not _is_count(generation.prompt_tokens):
        got = _shown(generation.prompt_tokens)
        raise ModelError(f"a Generation's prompt_tokens are counted from 0, or None, got {got}")
    if generation.finish_reason not in (None, *get_args(FinishReason)):
        raise ModelError("a Generation's finish_reason is 'stop', 'length' or None, got another; map it to one of them")
    signatures = generation.signatures
    if not isinstance(signatures, Mapping) or not all(isinstance(each, np.ndarray) for each in signatures.values()):
        raise ModelError("a Generation's signatures are a mapping of NumPy arrays by position, got something else")
    if not all(_is_signature(position, each) for position, each in signatures.items()):
        raise ModelError(f"a Generation's signatures are maps of floats at {list(get_args(Position))!r}, got another")
    departures = generation.departures
    if not isinstance(departures, tuple) or not all(name in DEPARTURES for name in departures):
        raise ModelError(f"a Generation's departures are among {DEPARTURES!r}, got others; map them to these")
    generation = replace(
        generation,
        # What no encoding can express couldn't be shown, stored or sent.
        text=whole_characters(generation.text),
        tokens=_capped(generation.tokens),
        prompt_tokens=_capped(generation.prompt_tokens),
        sent=tuple(replace(turn, content=whole_characters(turn.content)) for turn in generation.sent),
        statistics=_checked_statistics(generation.statistics),
    )
    return _without_thinking(generation)


def _is_signature(position: object, signature: np.ndarray) -> bool:
    return position in get_args(Position) and signature.ndim == 2 and bool(np.issubdtype(signature.dtype, np.floating))


def _is_count(tokens: object) -> bool:
    return tokens is None or (type(tokens) is int and tokens >= 0)


def _capped(tokens: int | None) -> int | None:
    return None if tokens is None else min(tokens, _MAX_TOKENS)


def _shown(tokens: object) -> str:
    # Python refuses to write numbers of thousands of digits.
    is_short = type(tokens) is int and abs(tokens) <= _MAX_TOKENS
    return repr(tokens) if is_short else f"a {type(tokens).__name__}"


def _without_thinking(generation: Generation) -> Generation:
    """Take out what a user's own model thought; what was measured over that says nothing of the answer."""
    text = generation.text
    part = find_answer(text, is_partial=generation.finish_reason is None)
    if not part.has_thinking:
        return generation
    signatures: dict[Position, Signature] = {
        position: each for position, each in generation.signatures.items() if position == "prompt"
    }
    return replace(
        generation, text=part.of(text), thinking_problem=part.problem, signatures=signatures, statistics=None
    )


def _checked_statistics(statistics: object) -> Statistics | None:
    """Convert to Python's numbers: NumPy's aren't valid JSON."""
    if statistics is None:
        return None
    if not isinstance(statistics, Statistics):
        raise ModelError(f"a Generation's statistics are Statistics or None, got a {type(statistics).__name__}")
    converted: dict[str, float] = {}
    for name, value in statistics.to_dict().items():
        number = to_float(value)
        if number is None:
            raise ModelError(f"a Generation's statistics are numbers, got a {type(value).__name__} as {name}")
        converted[name] = number
    return Statistics(**converted)
