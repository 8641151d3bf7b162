"""What comes out of a guarded runnable: the answer or the refusal, in the type of what was wrapped."""

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable

from ilis_guard import Decision
from ilis_guard_langchain.telling import KEY, refusal, told

Kind = Literal["text", "message", "other"]
"""What a chain puts out, as far as a refusal can be put the same way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Stands for an output that is neither text nor a message where the policy lets no answer out."""

    text: str
    """The message that the policy chose."""
    decision: Decision


def kind_of(chain: Runnable[Any, Any]) -> Kind:
    """What a chain says that it puts out."""
    declared = chain.OutputType
    while get_args(declared) and (hasattr(declared, "__metadata__") or not isinstance(get_origin(declared), type)):
        declared = get_args(declared)[0]
    if not isinstance(declared, type):
        return "other"
    if issubclass(declared, BaseMessage):
        return "message"
    return "text" if issubclass(declared, str) else "other"


def answered(output: Any, decision: Decision) -> Any:
    """An answer as it comes out; a message carries the decision in its metadata."""
    if not isinstance(output, AIMessage):
        return output
    return output.model_copy(update={"response_metadata": {**output.response_metadata, KEY: told(decision)}})


def refused(kind: Kind, decision: Decision) -> Any:
    """The policy's message, in the type of the answer that doesn't come."""
    if kind == "message":
        metadata = {KEY: told(decision)}
        return AIMessage(decision.text, additional_kwargs=refusal(decision), response_metadata=metadata)
    return decision.text if kind == "text" else Refused(text=decision.text, decision=decision)
