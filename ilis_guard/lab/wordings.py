"""Wordings to harvest plain questions in: system messages and earlier turns, of which each question is given one."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from pydantic import model_validator

from ilis_guard.config import strict_yaml
from ilis_guard.config.base import Name, StrictModel
from ilis_guard.config.validation import duplicate_names, validate
from ilis_guard.errors import ConfigError, QuestionError, RequestError
from ilis_guard.lab.questions import Question
from ilis_guard.types import Message, Request, Role

_ANY_QUESTION: Final = Message(role="user", content="a question")


class Turn(StrictModel):
    """A message before the question."""

    role: Role
    content: str


class NamedWording(StrictModel):
    """What stands before a question."""

    name: Name
    messages: tuple[Turn, ...] = ()
    """Before the question: a system message, earlier turns; without any, the question is put alone."""

    @model_validator(mode="after")
    def _is_a_conversation(self) -> Self:
        try:
            self.before(_ANY_QUESTION)
        except RequestError as error:
            raise ValueError(f"the messages of {self.name!r} are wrong: {error}") from error
        return self

    def before(self, question: Message) -> tuple[Message, ...]:
        """The conversation that ends with a question."""
        return Request.of(
            [*(Message(role=turn.role, content=turn.content) for turn in self.messages), question]
        ).messages


class _WordingsFile(StrictModel):
    wordings: tuple[NamedWording, ...]


def read_wordings(path: Path) -> tuple[NamedWording, ...]:
    """Read a YAML file of wordings.

    Raises:
        ConfigError: it can't be read, isn't strict YAML, or holds no wordings; each problem is named with its place.
    """
    document = strict_yaml.read(path, error=ConfigError)
    wordings = validate(document, _WordingsFile, error=ConfigError).wordings
    problems = [*duplicate_names(document, ("wordings",), [one.name for one in wordings])]
    if not wordings:
        problems.append(document.problem(("wordings",), "there must be at least one"))
    if problems:
        raise ConfigError(strict_yaml.list_problems(problems, len(problems)))
    return wordings


def draw_wording(wordings: Sequence[NamedWording], question: Question) -> NamedWording:
    """Draw a question's wording by its id: the same one in every run."""
    number = int.from_bytes(hashlib.sha256(f"wording\0{question.id}".encode()).digest()[:8])
    return wordings[number % len(wordings)]


def conversation_of(question: Question, wordings: Sequence[NamedWording]) -> tuple[Message, ...]:
    """What a model is sent: the question in its wording, where there are any.

    Raises:
        QuestionError: the question is a conversation of its own.
    """
    if not wordings:
        return question.conversation()
    if question.messages is not None:
        raise QuestionError(
            f"the question {question.id!r:.60} has 'messages', which are sent as they are: leave the wordings out, or "
            "give its 'question' alone"
        )
    return draw_wording(wordings, question).before(*question.conversation())
