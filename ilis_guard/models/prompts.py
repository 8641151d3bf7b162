"""Prompts: from a conversation to the tokens that a model continues, and from its tokens back to text."""

import hashlib
import threading
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any, Final

from ilis_guard.config.tiers import QUESTION
from ilis_guard.errors import ModelError
from ilis_guard.models.answer_text import Offsets, before_stop, tokens_in_span, without_partial_stop
from ilis_guard.types import Message
from ilis_guard.types.thinking import Problem, find_answer, is_marker, opened_thinking

OPENING_TOKENS: Final = 32
"""At a prompt's end, where its chat template may open the model's thinking."""
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
        special = ((id_, token.content) for id_, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._markers = {id_: content for id_, content in special if is_marker(content)}
        """Special tokens that mark thinking, which decoding would leave out."""

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

    def before_stop(self, tokens: Sequence[int], stop: Sequence[str], opened_by: str = "") -> list[int] | None:
        """Cut an answer's tokens before the first stop sequence after its thinking; None where there is none.

        Where a sequence begins inside a token, that token's first part is encoded anew.
        """
        decoded = self.decode_marked(tokens)
        part = find_answer(decoded, opened_by=opened_by)
        answer = None if part.problem else before_stop(decoded[part.start :], stop)
        if answer is None:
            return None
        text = decoded[: part.start] + answer
        whole = max(count for count in range(len(tokens) + 1) if text.startswith(self.decode_marked(tokens[:count])))
        kept = list(tokens[:whole])
        cut = [*kept, *self.encode(text[len(self.decode_marked(kept)) :])]
        # Some tokenizers begin every text with a space: then the answer ends before the token instead.
        return cut if self.decode_marked(cut) == text else kept

    def opened_thinking(self, prompt: Sequence[int]) -> str:
        """The marker with which a prompt opens the model's thinking; empty where it opens none."""
        return opened_thinking(self.decode_marked(prompt[-OPENING_TOKENS:]))

    def decode_answer(self, tokens: Sequence[int], opened_by: str = "") -> str:
        """Decode a complete answer without its thinking."""
        return self.find_answer(tokens, opened_by)[0]

    def find_answer(self, tokens: Sequence[int], opened_by: str = "") -> tuple[str, Problem]:
        """As `decode_answer`, and why there is no answer."""
        text = self.decode_marked(self.before_end(tokens))
        part = find_answer(text, opened_by=opened_by)
        return part.of(text), part.problem

    def find_partial_answer(
        self, tokens: Sequence[int], stop: Sequence[str], opened_by: str = ""
    ) -> tuple[str, Problem]:
        """As `find_answer`, of one that isn't complete, without an end that may become a stop sequence."""
        text = self.decode_marked(tokens)
        part = find_answer(text, opened_by=opened_by, is_partial=True)
        return without_partial_stop("" if part.problem else text[part.start :], stop).strip(), part.problem

    def answer_start(self, tokens: Sequence[int], opened_by: str = "") -> int | None:
        """The place of the first token that carries a part of the answer; None where there is no answer."""
        text = self.decode_marked(tokens)
        part = find_answer(text, opened_by=opened_by)
        if part.problem:
            return None
        if not part.has_thinking:
            return 0

        def reached(count: int) -> int:
            return len(commonprefix([self.decode_marked(tokens[:count]), text]))  # noqa: RUF071 - not paths

        return bisect_right(range(1, len(tokens) + 1), part.start, key=reached)

    def places_in_span(self, span: Offsets, tokens: Sequence[int], opened_by: str = "") -> list[int]:
        """Find the places of the tokens that carry at least one character of a span of the answer's text."""
        text = self.decode_marked(tokens)
        start = find_answer(text, opened_by=opened_by).start
        return tokens_in_span((span[0] + start, span[1] + start), tokens, self.decode_marked)

    def decode_marked(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones but those that mark thinking."""
        pieces: list[list[int]] = [[]]
        marks: list[str] = []
        for token in tokens:
            if token in self._markers:
                marks.append(self._markers[token])
                pieces.append([])
            else:
                pieces[-1].append(token)
        texts = [str(self._tokenizer.decode(piece, skip_special_tokens=True)) for piece in pieces]
        return texts[0] + "".join(mark + text for mark, text in zip(marks, texts[1:], strict=True))

    def _encode(self, text: str, *, special: bool) -> list[int]:
        with self._lock:
            return list(self._tokenizer(text, add_special_tokens=special)["input_ids"])
