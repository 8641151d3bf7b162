"""How a conversation becomes the text a model continues."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ilis_guard.config.tiers import QUESTION
from ilis_guard.errors import ModelError
from ilis_guard.types import Message

MARK: Final = "\x00question\x00"
"""Stands for the user's words where only what surrounds them is looked for; nobody writes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """A tier's wording around the user's last turn.

    A chat model's own chat template is then applied to the whole conversation. A base model has none: the template
    itself is what it continues (few-shot examples, then the question), and its answer ends with the line.
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
    def digest(self) -> str:
        """Short hexadecimal digest: models that are asked in different words have different signatures."""
        return hashlib.sha256(f"{self.text}\0{self.chat_template}".encode()).hexdigest()[:16]

    def question_in(self, turn: str) -> str | None:
        """What stands in the place of the question in a user's turn; None where the turn is worded otherwise."""
        before, after = self.text.split(QUESTION)
        is_alike = turn.startswith(before) and turn.endswith(after) and len(turn) > len(before) + len(after)
        return turn[len(before) : len(turn) - len(after)] if is_alike else None

    def question_in_rendered(self, rendered: str, tokenizer: Any) -> str | None:
        """As `question_in`, of a whole prompt that holds one turn, as `render` makes it."""
        before, _, after = self.render([Message(role="user", content=MARK)], tokenizer).partition(MARK)
        is_alike = rendered.startswith(before) and rendered.endswith(after)
        return (rendered[len(before) : len(rendered) - len(after)] or None) if is_alike else None

    def render(self, messages: Sequence[Message], tokenizer: Any) -> str:
        """The text that the model continues.

        Raises:
            ModelError: a base model is given a conversation of several turns, or a chat model one that its template
                refuses (some know no system turn).
        """
        asked = self.text.replace(QUESTION, messages[-1].content)
        if self.chat_template is None:
            if len(messages) > 1:
                raise ModelError(
                    f"a base model takes one user message and no conversation, got {len(messages)} messages"
                )
            return asked
        turns = [{"role": turn.role, "content": turn.content} for turn in messages[:-1]]
        turns.append({"role": messages[-1].role, "content": asked})
        from jinja2 import TemplateError  # torch brings it

        try:
            rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except (TemplateError, ValueError) as error:
            roles = [turn.role for turn in messages]
            raise ModelError(
                f"the model's chat template refuses a conversation of {roles!r} ({type(error).__name__})"
            ) from error
        return str(rendered)
