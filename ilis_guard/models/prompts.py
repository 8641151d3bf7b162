"""Prompts: from a conversation to the tokens that a model continues, and from its tokens back to text."""

import hashlib
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ilis_guard.config.tiers import QUESTION
from ilis_guard.errors import ModelError
from ilis_guard.models.answer_text import before_stop, without_partial_stop
from ilis_guard.types import Message

PLACEHOLDER: Final = "\x00question\x00"
"""Stands for the user's words while the text around them is located; no user writes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """A tier's wording around the user's last turn.

    A chat model's own chat template is then applied to the whole conversation. A base model has none: it continues the
    template itself (few-shot examples, then the question), and its answer ends at the end of the line.
    """

    text: str = QUESTION
    chat_template: str | None = None
    """The tokenizer's, in Jinja; None for a base model."""

    def __post_init__(self) -> None:
        if self.text.count(QUESTION) != 1:
            raise ModelError(
                f"a prompt template must hold {QUESTION!r} exactly once, got {self.text.count(QUESTION)} times in "
                f"{self.text[:80]!r}"
            )
        if self.chat_template is None and self.text == QUESTION:
            raise ModelError(
                "this is a base model (its tokenizer has no chat template): give its tier a `prompt` with a few "
                f"worked examples and {QUESTION!r} at the end"
            )

    @property
    def is_chat(self) -> bool:
        """Whether the model has a chat template."""
        return self.chat_template is not None

    @property
    def digest(self) -> str:
        """Short hexadecimal digest: a model's signatures depend on the wording of its prompts."""
        return hashlib.sha256(f"{self.text}\0{self.chat_template}".encode()).hexdigest()[:16]

    def question_in(self, turn: str) -> str | None:
        """Extract the question from a user's turn; None where the turn has another wording."""
        before, after = self.text.split(QUESTION)
        is_alike = turn.startswith(before) and turn.endswith(after) and len(turn) > len(before) + len(after)
        return turn[len(before) : len(turn) - len(after)] if is_alike else None

    def question_in_rendered(self, rendered: str, tokenizer: Any) -> str | None:
        """Extract the question from a whole prompt of one turn, as `render` makes it; None for another wording."""
        before, _, after = self.render([Message(role="user", content=PLACEHOLDER)], tokenizer).partition(PLACEHOLDER)
        is_alike = rendered.startswith(before) and rendered.endswith(after)
        return (rendered[len(before) : len(rendered) - len(after)] or None) if is_alike else None

    def render(self, messages: Sequence[Message], tokenizer: Any) -> str:
        """Render the text that the model continues.

        Raises:
            ModelError: a base model got a conversation of several turns, or the chat template refuses this one (some
                accept no system turn).
        """
        last = self.text.replace(QUESTION, messages[-1].content)
        if self.chat_template is None:
            if len(messages) > 1:
                raise ModelError(
                    f"a base model takes one user message and no conversation, got {len(messages)} messages"
                )
            return last
        turns = [{"role": turn.role, "content": turn.content} for turn in messages[:-1]]
        turns.append({"role": messages[-1].role, "content": last})
        from jinja2 import TemplateError  # torch brings it

        try:
            rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except (TemplateError, ValueError) as error:
            roles = [turn.role for turn in messages]
            raise ModelError(
                f"the model's chat template refuses a conversation of {roles!r} ({type(error).__name__})"
            ) from error
        return str(rendered)


class TextCodec:
    """Encodes conversations and answers as tokens, and decodes answers. Threads may share it.

    Args:
        tokenizer: transformers' own, of the model.
        template: the tier's wording.
        end_tokens: an answer ends before the first of them.
    """

    def __init__(self, tokenizer: Any, template: PromptTemplate, end_tokens: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self.end_tokens = frozenset(end_tokens)
        # A fast tokenizer keeps its padding and truncation as state: two threads that set it at once make it raise.
        self._lock = threading.Lock()

    def encode_prompt(self, messages: Sequence[Message], template: PromptTemplate | None = None) -> list[int]:
        """Encode what the model continues, in the tier's wording or in another.

        Raises:
            ModelError: the model can't take this conversation.
        """
        wording = template or self._template
        # A chat template writes its own special tokens; a base model's beginning-of-text is the tokenizer's to add.
        return self._encode(wording.render(messages, self._tokenizer), special=not wording.is_chat)

    def encode_answer(self, messages: Sequence[Message], prompt: Sequence[int], answer: str) -> list[int]:
        """Encode an answer's text as it follows its prompt."""
        rendered = self._template.render(messages, self._tokenizer)
        # A space, which `Generation.text` leaves out, precedes a base model's answer.
        gap = "" if self._template.is_chat or rendered[-1:].isspace() or answer[:1].isspace() else " "
        whole = self._encode(rendered + gap + answer, special=not self._template.is_chat)
        if whole[: len(prompt)] == list(prompt):
            return whole[len(prompt) :]
        # The prompt's end and the answer's beginning became one token, which never happens in generation.
        return self.encode(gap + answer)

    def encode(self, text: str) -> list[int]:
        """Encode any text by itself, without special tokens."""
        return self._encode(text, special=False)

    def before_end(self, tokens: Sequence[int]) -> list[int]:
        """Cut an answer's tokens before the first end token."""
        end = next((place for place, token in enumerate(tokens) if token in self.end_tokens), len(tokens))
        return list(tokens[:end])

    def before_stop(self, tokens: Sequence[int], stop: Sequence[str]) -> list[int] | None:
        """Cut an answer's tokens before the first stop sequence; None where there is none.

        Where a sequence begins inside a token, that token's first part is encoded anew.
        """
        text = before_stop(self._decode(tokens), stop)
        if text is None:
            return None
        whole = max(count for count in range(len(tokens) + 1) if text.startswith(self._decode(tokens[:count])))
        kept = list(tokens[:whole])
        cut = [*kept, *self.encode(text[len(self._decode(kept)) :])]
        # Some tokenizers begin every text with a space: then the answer ends before the token instead.
        return cut if self._decode(cut) == text else kept

    def decode_answer(self, tokens: Sequence[int]) -> str:
        """Decode a complete answer."""
        return self._decode(self.before_end(tokens)).strip()

    def decode_partial(self, tokens: Sequence[int], stop: Sequence[str]) -> str:
        """Decode an answer that isn't complete, without an end that may become a stop sequence."""
        return without_partial_stop(self._decode(tokens), stop).strip()

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _encode(self, text: str, *, special: bool) -> list[int]:
        with self._lock:
            return list(self._tokenizer(text, add_special_tokens=special)["input_ids"])
