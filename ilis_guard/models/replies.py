"""Replies of LangChain's chat models as generations: their text, their usage, and what their logprobs tell."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import AIMessage

from ilis_guard.errors import ModelError
from ilis_guard.types import FinishReason, Generation, Statistics

FINISH_KEYS: Final = ("finish_reason", "stop_reason", "done_reason")
"""Where providers say why an answer ended: OpenAI and Google, Anthropic and Bedrock, Ollama."""
CUT: Final = {"length", "max_tokens"}
FILTERED: Final = "content_filter"
"""OpenAI's word, and ours, for an answer that mustn't be used."""
UNKNOWN: Final = -9999.0
"""What OpenAI writes for the log-probability of a token that is too unlikely to tell."""


def generation_of(reply: AIMessage, *, seconds: float) -> Generation:
    """What a chat model replied, as far as its integration tells: nobody can look inside, so it has no signature.

    Args:
        reply: the model's whole message.
        seconds: that it took.
    """
    usage = reply.usage_metadata or {"input_tokens": 0, "output_tokens": 0}
    return Generation(
        text=reply.text.strip(),
        tokens=usage["output_tokens"],
        prompt_tokens=usage["input_tokens"],
        finish_reason=_finish_reason(reply.response_metadata),
        seconds=seconds,
        statistics=statistics_of(reply.response_metadata.get("logprobs")),
    )


def statistics_of(logprobs: object) -> Statistics | None:
    """Output statistics from logprobs as OpenAI's chat completions give them, and whoever speaks as they do.

    ``{"content": [{"logprob": ..., "top_logprobs": [{"logprob": ...}, ...]}, ...]}``, one entry a token. The entropy
    of a distribution isn't known from the head of its list, and the margin only where each token came with the two
    likeliest: what isn't known is NaN, which conditions see as missing.

    Args:
        logprobs: what stands in the message's metadata; None, or anything of another shape, tells nothing.
    """
    tokens = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not isinstance(tokens, Sequence) or isinstance(tokens, str) or not tokens:
        return None
    total = math.fsum(_logprob(token) for token in tokens)
    return Statistics(
        logprob_sum=total,
        logprob_mean=total / len(tokens),
        entropy_mean=math.nan,
        # A minimum with NaN in it may be any number to Python.
        margin_min=math.nan if any(map(math.isnan, margins := [_margin(token) for token in tokens])) else min(margins),
    )


def check_not_refused(reply: AIMessage) -> None:
    """See that a reply is no refusal.

    Raises:
        ModelError: it is one, or what a content filter left of an answer: neither must be taken for one.
    """
    blocks = reply.content if isinstance(reply.content, list) else ()
    refuses = any(isinstance(block, dict) and block.get("type") == "refusal" for block in blocks)
    if refuses or reply.additional_kwargs.get("refusal"):
        raise ModelError("the model refused to answer")
    if any(reply.response_metadata.get(key) == FILTERED for key in FINISH_KEYS):
        raise ModelError("the model didn't answer: its content filter stopped or withdrew the answer")


def _finish_reason(metadata: Mapping[str, Any]) -> FinishReason:
    return "length" if any(str(metadata.get(key)).lower() in CUT for key in FINISH_KEYS) else "stop"


def _margin(token: Any) -> float:
    """How much likelier the likeliest token was than the second, 0 to 1; NaN where that isn't told."""
    listed = token.get("top_logprobs") if isinstance(token, Mapping) else None
    if not isinstance(listed, Sequence) or len(listed) < 2:
        return math.nan
    logprobs = [_logprob(each) for each in listed]
    if any(map(math.isnan, logprobs)):
        return math.nan
    likeliest, second = sorted(logprobs, reverse=True)[:2]
    return math.exp(likeliest) - math.exp(second)


def _logprob(token: Any) -> float:
    """In nats; NaN where it isn't told."""
    value = token.get("logprob") if isinstance(token, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= UNKNOWN:
        return math.nan
    return min(float(value), 0.0)  # servers round, and a probability is at most 1
