"""Requests: a conversation that ends with the user's turn, with the caller's labels and stop sequences."""

import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self

from ilis_guard.errors import RequestError
from ilis_guard.text import has_half_characters, is_blank
from ilis_guard.types.thinking import without_thinking

Label = str | int | float | bool
Labels = Mapping[str, Label]
Role = Literal["system", "user", "assistant"]
MAX_LABELS: Final = 100
"""Labels that one request may have."""
MAX_LABEL_NAME: Final = 100
"""Characters."""
MAX_LABEL_TEXT: Final = 2_000
"""Characters of a label that is a string. Conditions look at labels in every decision, so they stay short."""
MAX_LABEL_NUMBER: Final = 2**63 - 1
"""Whole numbers: conditions have 64 bits for them."""


def nfc(text: str) -> str:
    """A text in Unicode's composed form: what looks the same is written the same, in labels and in policies."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class CheckedLabels(dict[str, str | int | float | bool]):
    """Valid labels, in NFC: `label_problem` doesn't check them again. Built by `checked_labels`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation. `Request.of` takes the thinking out of the assistant's."""

    role: Role
    content: str


Prompt = str | Sequence[Message | Mapping[str, str]]
"""A question, or a conversation that ends with the user's turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A conversation that ends with the user's turn, with labels for policies. Built and checked by `of`."""

    messages: tuple[Message, ...]
    labels: Labels = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these sequences."""

    @classmethod
    def of(
        cls,
        prompt: Prompt,
        labels: Labels | None = None,
        stop: Sequence[str] = (),
    ) -> Self:
        """Build a request from a string, messages, or ``{"role": ..., "content": ...}`` mappings.

        Raises:
            RequestError: the prompt is empty, a message is malformed, the last turn isn't the user's, a label isn't a
                short string, a number or a boolean, or a stop sequence isn't a string or is empty.
        """
        if not isinstance(prompt, Sequence):
            raise RequestError(f"a prompt is a string or a sequence of messages, got a {type(prompt).__name__}")
        turns = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
        messages = tuple(_message(index, turn) for index, turn in enumerate(turns))
        if not messages:
            raise RequestError("there are no messages; pass at least one turn by the user")
        if messages[-1].role != "user":
            raise RequestError(
                f"the last message (number {len(messages)}) is by {messages[-1].role!r}; the last turn must be the "
                "user's"
            )
        if is_blank(messages[-1].content):
            raise RequestError(f"the prompt is empty (message number {len(messages)}); there is nothing to answer")
        if any(has_half_characters(turn.content) for turn in messages):
            raise RequestError("a message has half a character (a lone surrogate) in it; send whole ones")
        checked = checked_labels(labels or {})
        if isinstance(stop, str) or not all(isinstance(sequence, str) and sequence for sequence in stop):
            what = f"`stop` is a list of strings that aren't empty, got a {type(stop).__name__} of others"
            raise RequestError(what, "stop")
        if any(map(has_half_characters, stop)):
            raise RequestError("a stop sequence has half a character (a lone surrogate) in it; send whole ones", "stop")
        return cls(messages=messages, labels=checked, stop=tuple(stop))

    @property
    def is_checked(self) -> bool:
        """Whether `of` built it."""
        return isinstance(self.labels, CheckedLabels)

    @property
    def prompt(self) -> str:
        """The user's last turn."""
        return self.messages[-1].content

    @property
    def digest(self) -> str:
        """Hexadecimal; requests of one digest are the same."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; without `stop` where there is none."""
        values = {
            "messages": [{"role": turn.role, "content": turn.content} for turn in self.messages],
            "labels": dict(self.labels),
        }
        return values | ({"stop": list(self.stop)} if self.stop else {})


def _message(index: int, turn: Message | Mapping[str, str]) -> Message:
    where = f"message number {index + 1}"
    if isinstance(turn, Message):
        turn = {"role": turn.role, "content": turn.content}
    if not isinstance(turn, Mapping) or set(turn) != {"role", "content"}:
        raise RequestError(f"{where} must have exactly the keys 'role' and 'content', got {_shape(turn)}")
    role, content = turn["role"], turn["content"]
    if role not in ("system", "user", "assistant"):
        raise RequestError(f"{where} has the role {role!r}; it must be 'system', 'user' or 'assistant'")
    if not isinstance(content, str):
        raise RequestError(f"{where} has content of type {type(content).__name__}; it must be a string")
    if role == "assistant":
        content = without_thinking(content)
    return Message(role=role, content=content)  # type: ignore[arg-type]  # narrowed by the check above


def _shape(turn: object) -> str:
    """Describe a message without its text: prompts stay out of error messages."""
    return f"the keys {sorted(map(str, turn))!r}" if isinstance(turn, Mapping) else f"a {type(turn).__name__}"


def checked_labels(labels: Labels) -> CheckedLabels:
    """Labels that were checked, with their names and texts in NFC.

    Raises:
        RequestError: a label isn't a short string, a number or a boolean, or two have the same name.
    """
    if isinstance(labels, CheckedLabels):
        return labels
    if what := label_problem(labels):
        raise RequestError(what, "labels")
    return CheckedLabels((nfc(name), nfc(value) if isinstance(value, str) else value) for name, value in labels.items())


def label_problem(labels: Mapping[str, object]) -> str:
    """What is wrong with labels; empty where nothing is."""
    if isinstance(labels, CheckedLabels):
        return ""
    if len(labels) > MAX_LABELS:
        return f"there are {len(labels)} labels; a request has at most {MAX_LABELS}"
    if what := next((what for name, value in labels.items() if (what := _one_problem(name, value))), ""):
        return what
    return _repeated_name(labels)


def _repeated_name(labels: Mapping[str, object]) -> str:
    """Names may be written in two ways that look the same."""
    seen = dict[str, str]()
    for name in labels:
        if (first := seen.setdefault(nfc(name), name)) != name:
            return (
                f"the label names {first!a} and {name!a} are the same letters (in Unicode's form NFC); send one of them"
            )
    return ""


def _one_problem(name: object, value: object) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        return f"the label name {_shortened(name)} isn't an identifier; policies say labels.NAME"
    if len(name) > MAX_LABEL_NAME or len(nfc(name)) > MAX_LABEL_NAME:
        return f"the label name {_shortened(name)} has {len(name)} characters; it may have {MAX_LABEL_NAME}"
    if isinstance(value, str):
        return _text_problem(name, value)
    if isinstance(value, int) and abs(value) > MAX_LABEL_NUMBER:
        return f"the label {name!r} is a number of more than 64 bits; write it as a string"
    if not isinstance(value, int | float) or (isinstance(value, float) and not math.isfinite(value)):
        return f"the label {name!r} is a {type(value).__name__}; a label is a string, a boolean or a finite number"
    return ""


def _text_problem(name: str, value: str) -> str:
    if len(value) > MAX_LABEL_TEXT or len(nfc(value)) > MAX_LABEL_TEXT:
        return (
            f"the label {name!r} has {len(value)} characters; it may have {MAX_LABEL_TEXT}, also in Unicode's form NFC"
        )
    if has_half_characters(value):
        return f"the label {name!r} has half a character (a lone surrogate) in it; send whole ones"
    return ""


def _shortened(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 60 else f"{text[:57]}..."
