"""Prompts: from a conversation to the tokens that a model continues, and from its tokens back to text."""

import hashlib
import json
import threading
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from typing import Any, Final

from ilis_guard.config.tiers import QUESTION, TemplateArgument
from ilis_guard.errors import ModelError
from ilis_guard.models.answer_text import Offsets, before_stop, tokens_in_span, without_partial_stop
from ilis_guard.models.control_tokens import FILLERS, MARKS, MarkedText, PlainTextEncoder, absent_from, fill
from ilis_guard.models.few_shot import render_few_shot
from ilis_guard.models.template_arguments import check_template_arguments
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
    template itself (few-shot examples, earlier turns as further ones, then the question), and its answer ends at the
    end of the line.
    """

    text: str = QUESTION
    chat_template: str | None = None
    """The tokenizer's, in Jinja; None for a base model."""
    chat_template_kwargs: Mapping[str, TemplateArgument] = field(default_factory=dict)
    """Variables of the chat template."""

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
        if self.chat_template_kwargs:
            check_template_arguments(self.chat_template, self.chat_template_kwargs)

    @property
    def is_chat(self) -> bool:
        """Whether the model has a chat template."""
        return self.chat_template is not None

    @property
    def digest(self) -> str:
        """Short hexadecimal digest: a model's signatures depend on the wording of its prompts."""
        given = dict(sorted(self.chat_template_kwargs.items()))
        arguments = f"\0{json.dumps(given)}" if given else ""
        return hashlib.sha256(f"{self.text}\0{self.chat_template}{arguments}".encode()).hexdigest()[:16]

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
            ModelError: the chat template refuses this conversation (some accept no system turn).
        """
        if not self.is_chat:
            return render_few_shot(self.text, messages)
        return self.render_turns(self.worded(messages), tokenizer)

    def render_marked(self, messages: Sequence[Message], tokenizer: Any, encoder: PlainTextEncoder) -> MarkedText:
        """As `render`, with what people wrote: all messages, and in a chat the tier's wording too.

        Raises:
            ModelError: as `render`, or the chat template makes something of the text of a control token in a message.
        """
        letter = absent_from([turn.content for turn in messages], FILLERS)
        if not self.is_chat:
            blank = [replace(turn, content=fill(turn.content, letter)) for turn in messages]
            return MarkedText.between(render_few_shot(self.text, messages), render_few_shot(self.text, blank))
        turns = self.worded(messages)
        text = self.render_turns(turns, tokenizer)
        try:
            filled = self.render_turns([replace(turn, content=fill(turn.content, letter)) for turn in turns], tokenizer)
        except ModelError:  # it accepts certain words only
            filled = ""
        if len(filled) == len(text) and all(
            ours in (theirs, letter) for theirs, ours in zip(text, filled, strict=True)
        ):
            return MarkedText.between(text, filled)
        return self._marked_by_cuts(text, turns, tokenizer, encoder)

    def worded(self, messages: Sequence[Message]) -> list[Message]:
        """Put the wording around the last turn."""
        last = messages[-1]
        return [*messages[:-1], replace(last, content=self.text.replace(QUESTION, last.content))]

    def render_turns(self, turns: Sequence[Message], tokenizer: Any) -> str:
        """Apply the chat template.

        Raises:
            ModelError: it refuses the conversation.
        """
        from jinja2 import TemplateError  # torch brings it

        plain = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return str(
                tokenizer.apply_chat_template(
                    plain, tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
                )
            )
        except (TemplateError, ValueError) as error:
            roles = [turn.role for turn in turns]
            raise ModelError(
                f"the model's chat template refuses a conversation of {roles!r} ({type(error).__name__})"
            ) from error

    def _marked_by_cuts(
        self, text: str, turns: Sequence[Message], tokenizer: Any, encoder: PlainTextEncoder
    ) -> MarkedText:
        """Find the control tokens that people wrote, where the chat template reads what it is given.

        Many templates look for the end of a model's thinking in its former turns, and leave out what is before.
        """
        if not any(encoder.controls(turn.content) for turn in turns):
            return MarkedText.between(text, text)
        mark = absent_from([turn.content for turn in turns], MARKS)
        cut = [replace(turn, content=encoder.cut(turn.content, mark)) for turn in turns]
        kept = [whole if whole.role == "assistant" else turn for turn, whole in zip(cut, turns, strict=True)]
        harmless = encoder.controls(self.render_turns(cut, tokenizer))
        for candidate in (cut, kept):
            marked = _marked_at(self.render_turns(candidate, tokenizer), mark)
            if marked.text == text and encoder.controls(marked.harmless().text) == harmless:
                return marked
        raise ModelError(
            "a message holds the text of a control token that the model's chat template makes something of: leave it "
            "out of messages"
        )


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
        self._encoder = PlainTextEncoder(tokenizer, threading.Lock())
        special = ((id_, token.content) for id_, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._markers = {id_: content for id_, content in special if is_marker(content)}
        """Special tokens that mark thinking, which decoding would leave out."""

    def encode_prompt(self, messages: Sequence[Message], template: PromptTemplate | None = None) -> list[int]:
        """Encode what the model continues, in the tier's wording or in another.

        Raises:
            ModelError: the model can't take this conversation.
        """
        wording = self._template
        if template is not None:
            wording = replace(template, chat_template_kwargs=wording.chat_template_kwargs)
        # A chat template writes its own special tokens; a base model's beginning-of-text is the tokenizer's to add.
        return self._encoder.encode(
            wording.render_marked(messages, self._tokenizer, self._encoder), special=not wording.is_chat
        )

    def encode_answer(self, messages: Sequence[Message], prompt: Sequence[int], answer: str) -> list[int]:
        """Encode an answer's text as it follows its prompt."""
        marked = self._template.render_marked(messages, self._tokenizer, self._encoder)
        # A space, which `Generation.text` leaves out, precedes a base model's answer.
        gap = "" if self._template.is_chat or marked.text[-1:].isspace() or answer[:1].isspace() else " "
        written = MarkedText.of_people(gap + answer)
        whole = self._encoder.encode(marked + written, special=not self._template.is_chat)
        if whole[: len(prompt)] == list(prompt):
            return whole[len(prompt) :]
        # The prompt's end and the answer's beginning became one token, which never happens in generation.
        return self.encode(gap + answer)

    def encode(self, text: str) -> list[int]:
        """Encode any text by itself, without special tokens."""
        return self._encoder.encode(MarkedText.of_people(text), special=False)

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


def _marked_at(cut: str, mark: str) -> MarkedText:
    """Take marks out of a text; people wrote what is on both sides of each."""
    text, written = list[str](), list[bool]()
    for place, character in enumerate(cut):
        if character != mark:
            text.append(character)
            written.append(mark in (cut[place - 1 : place], cut[place + 1 : place + 2]))
    return MarkedText(text="".join(text), written=tuple(written))
