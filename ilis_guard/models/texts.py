"""Texts: what a tokenizer and a prompt template make of conversations and of answers."""

import threading
from collections.abc import Collection, Sequence
from typing import Any

from ilis_guard.models.prompts import PromptTemplate
from ilis_guard.models.stops import before_stop, held_back
from ilis_guard.types import Message


class Texts:
    """From conversations to tokens, and from tokens to answers. Threads may share it.

    Args:
        tokenizer: transformers' own, of the model.
        template: the tier's wording.
        end_tokens: an answer ends before the first of them.
    """

    def __init__(self, tokenizer: Any, template: PromptTemplate, end_tokens: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._end_tokens = frozenset(end_tokens)
        # How a fast tokenizer pads and cuts is a state of its own: two threads that set it at once make it raise.
        self._tokenizing = threading.Lock()

    def prompt(self, messages: Sequence[Message], template: PromptTemplate | None = None) -> list[int]:
        """The tokens that the model continues, in the tier's words or in others.

        Raises:
            ModelError: the conversation can't be put to this model.
        """
        wording = template or self._template
        # A chat template writes its own special tokens; a base model's beginning-of-text is the tokenizer's to add.
        return self._tokens(wording.render(messages, self._tokenizer), special=wording.chat_template is None)

    def answer_tokens(self, messages: Sequence[Message], prompt: Sequence[int], answer: str) -> list[int]:
        """The tokens of an answer's text, where it stands: after the prompt."""
        rendered = self._template.render(messages, self._tokenizer)
        # A base model's answer is set off by a space, which `Generation.text` leaves out.
        gap = "" if self._is_chat or rendered[-1:].isspace() or answer[:1].isspace() else " "
        whole = self._tokens(rendered + gap + answer, special=not self._is_chat)
        if whole[: len(prompt)] == list(prompt):
            return whole[len(prompt) :]
        # The prompt's end and the answer's beginning would be one token: generated, they never are.
        return self._tokens(gap + answer, special=False)

    def before_the_end(self, tokens: Sequence[int]) -> list[int]:
        """An answer's tokens without the first end token and what follows it."""
        end = next((place for place, token in enumerate(tokens) if token in self._end_tokens), len(tokens))
        return list(tokens[:end])

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text by itself."""
        return self._tokens(text, special=False)

    def answer(self, tokens: Sequence[int]) -> str:
        """The text of an answer."""
        return self._decoded(self.before_the_end(tokens)).strip()

    def answer_so_far(self, tokens: Sequence[int], stop: Sequence[str]) -> str:
        """The text of an answer that goes on, without what may yet become a stop sequence."""
        return held_back(self._decoded(tokens), stop).strip()

    def before_stop(self, tokens: Sequence[int], stop: Sequence[str]) -> list[int] | None:
        """An answer's tokens up to the first stop sequence; None where there is none.

        A token in which a sequence begins is cut in two, and its first part said in tokens of its own.
        """
        text = before_stop(self._decoded(tokens), stop)
        if text is None:
            return None
        whole = max(count for count in range(len(tokens) + 1) if text.startswith(self._decoded(tokens[:count])))
        kept = list(tokens[:whole])
        cut = [*kept, *self._tokens(text[len(self._decoded(kept)) :], special=False)]
        # Some tokenizers begin every text with a space: then the answer ends before the token instead.
        return cut if self._decoded(cut) == text else kept

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    @property
    def _is_chat(self) -> bool:
        return self._template.chat_template is not None

    def _tokens(self, text: str, *, special: bool) -> list[int]:
        with self._tokenizing:
            return list(self._tokenizer(text, add_special_tokens=special)["input_ids"])
