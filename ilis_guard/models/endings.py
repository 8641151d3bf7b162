"""Endings: why a model stopped, in each provider's words, as LangChain's integrations pass them on.

Only what stands in the table is a finished answer, or one that was cut off at its limit. Any other word is an answer
that was filtered, aborted or broken off, or a word that a provider made up since: none of them may pass for an answer.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, Literal

from ilis_guard.errors import UnfinishedAnswerError

Ending = Literal["stop", "length", "tool_calls"]
"""The model ended its answer itself, was cut off at a limit of length, or asks for tools."""

ENDINGS: Final[Mapping[str, Mapping[Ending, tuple[str, ...]]]] = {
    "OpenAI": {"stop": ("stop",), "length": ("length",), "tool_calls": ("tool_calls", "function_call")},
    "Anthropic": {
        "stop": ("end_turn", "stop_sequence"),
        "length": ("max_tokens", "model_context_window_exceeded"),
        "tool_calls": ("tool_use",),
    },
    "Google": {"stop": ("STOP",), "length": ("MAX_TOKENS",)},
    # Bedrock's Converse uses Anthropic's words for all models; these are Amazon's and Meta's own.
    "Bedrock": {"stop": ("FINISH", "FINISHED", "stop"), "length": ("LENGTH", "length")},
    "Mistral": {"stop": ("stop",), "length": ("length", "model_length"), "tool_calls": ("tool_calls",)},
    "Cohere": {"stop": ("COMPLETE", "STOP_SEQUENCE"), "length": ("MAX_TOKENS",), "tool_calls": ("TOOL_CALL",)},
    "vLLM": {"stop": ("stop",), "length": ("length",), "tool_calls": ("tool_calls",)},
    "Ollama": {"stop": ("stop",), "length": ("length",)},
    "Hugging Face": {"stop": ("eos_token", "stop_sequence"), "length": ("length",)},
}
KEYS: Final = ("finish_reason", "stop_reason", "stopReason", "done_reason")
"""Where integrations put the word: OpenAI, Google, Mistral, Cohere and vLLM; Anthropic; Bedrock's Converse; Ollama."""
_STATUSES: Final[Mapping[str, Ending]] = {"completed": "stop", "max_output_tokens": "length"}
"""OpenAI's Responses API has no such word: it has a status, and details where that is ``incomplete``."""
_ALL_STATUSES: Final = ("completed", "incomplete", "failed", "in_progress", "cancelled", "queued")
_WORDS: Final[Mapping[str, Ending]] = {
    word: ending for endings in ENDINGS.values() for ending, words in endings.items() for word in words
}


def ending_of(metadata: Mapping[str, Any]) -> Ending | None:
    """Find why a reply ended; None where its metadata don't say.

    Args:
        metadata: a message's ``response_metadata``.

    Raises:
        UnfinishedAnswerError: it ended in a way that makes it no answer, or that nobody knows.
    """
    found = [_ending(word, _WORDS) for key in KEYS if not _is_absent(word := metadata.get(key))]
    status, details = metadata.get("status"), metadata.get("incomplete_details")
    # Beside one of those words, any other status is somebody else's, such as an HTTP status.
    if not _is_absent(status) and (not found or status in _ALL_STATUSES):
        word = details.get("reason") if status == "incomplete" and isinstance(details, Mapping) else status
        found.append(_ending(word, _STATUSES))
    elif found and isinstance(details, Mapping):
        found.append(_ending(details.get("reason"), _STATUSES))
    # OpenRouter and vLLM answer 200 with an error in the body, which may come after half an answer.
    if not _is_absent(metadata.get("error")):
        raise UnfinishedAnswerError("the model gave no finished answer: its reply holds an error")
    strictest: tuple[Ending, ...] = ("tool_calls", "length", "stop")
    return next((each for each in strictest if each in found), None)


def _is_absent(value: object) -> bool:
    return value is None or value == ""


def _ending(value: object, known: Mapping[str, Ending]) -> Ending:
    word = value.name if isinstance(value, Enum) else value
    if isinstance(word, str):
        # Where each chunk of a stream says the same, LangChain's sum of them is the word several times.
        found = (ending for each, ending in known.items() if word == each * (len(word) // len(each)))
        if ending := next(found, None):
            return ending
    raise UnfinishedAnswerError(f"the model gave no finished answer: its reply ended with {value!r:.60}")
