"""Labelled questions: their shape, and the JSONL files that hold them.

One JSON object a line, with the fields of :class:`Question`. Reading is strict: every complaint names file and line
and says what to do. What was got is shown shortened, because messages are logged.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Annotated, Any, BinaryIO, Literal, NoReturn, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from ilis_guard.errors import QuestionError, RequestError
from ilis_guard.lab.conversations import read_conversation
from ilis_guard.lab.files import replacing
from ilis_guard.lab.literals import is_collection_or_string
from ilis_guard.lab.numerals import digits_of, numerals_in
from ilis_guard.text import is_blank
from ilis_guard.types import Message

_MAX_LINE_BYTES = 1_000_000
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TRUTHS = ({"yes", "true"}, {"no", "false"})


def _not_blank(value: str) -> str:
    if is_blank(value):
        raise PydanticCustomError("blank_text", "must have something in it to read")
    return value


Text = Annotated[str, AfterValidator(_not_blank)]
"""A string that isn't blank."""


class Question(BaseModel):
    """One question with everything that counts as its right answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Text
    dataset: str = ""
    kind: Literal["open", "choice", "numeric", "boolean", "literal"] = "open"
    question: Text
    """In the place of `question`, a line may have `messages`: then this is their last turn."""
    answers: Annotated[tuple[Text, ...], Field(min_length=1)]
    """``open``: every string is accepted. ``numeric``: every number. ``boolean``: "yes" and "true", or "no" and
    "false". ``choice``: the right choice's letter, its text, or both. ``literal``: Python's or JSON's way to write a
    string, list, tuple, set or dictionary."""
    context: Text | None = None
    """A passage to answer from."""
    choices: tuple[Text, ...] | None = None
    """Two to 26 answers to choose from, lettered A, B, C in this order; only where the kind is ``choice``. The last of
    `messages` shows them itself."""
    messages: tuple[Message, ...] | None = None
    """A conversation that ends with the question, exactly as it is sent; read by `read_conversation`."""
    owner: Text | None = None
    """What the question shares with others that depend on it: a document, a user. Those count as one in guarantees."""
    probability: Annotated[float, Field(gt=0, le=1)] | None = None
    """With which it was chosen from the traffic (`ilis-guard choose-rows`); None where it wasn't chosen from any."""

    @model_validator(mode="before")
    @classmethod
    def _ends_its_conversation(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("messages") is None:
            return values
        if other := next((key for key in ("question", "context") if values.get(key) is not None), None):
            raise ValueError(f"{other!r} doesn't go with 'messages', which hold all that is sent; take it out")
        try:
            messages = read_conversation(values["messages"])
        except RequestError as error:
            raise ValueError(f"'messages' are wrong: {error}") from error
        return values | {"messages": messages, "question": messages[-1].content}

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if (self.choices is None) == (self.kind == "choice"):
            raise ValueError(
                f"the kind is {self.kind!r}; 'choices' and the kind 'choice' go together: give both or none"
            )
        if self.choices is not None:
            _check_choices(self.choices, self.answers)
            hidden = next((one for one in self.choices if self.messages and one not in self.question), None)
            if hidden is not None:
                raise ValueError(f"the choice {_shown(hidden)} doesn't stand in the last of 'messages'; write it there")
        if self.kind == "boolean" and not any(truth.issuperset(self.answers) for truth in _TRUTHS):
            raise ValueError(
                f"got answers {_shown(self.answers)}; a boolean's are 'yes' and 'true', or 'no' and 'false'"
            )
        if self.kind == "numeric":
            _check_numbers(self.answers)
        if self.kind == "literal":
            _check_literals(self.answers)
        return self

    @property
    def right_choice(self) -> int | None:
        """Index of the right choice; None where there are no choices."""
        return None if self.choices is None else _right_choices(self.choices, self.answers)[0]

    def conversation(self) -> tuple[Message, ...]:
        """What a model is sent, before its tier's wording."""
        return self.messages or (Message(role="user", content=self.prompt()),)

    def prompt(self) -> str:
        """The user's last turn.

        The last of `messages`; or the context and an empty line, where there is a context, the question, and the
        choices, a line each, as ``A) text``. How to answer isn't said: that instruction is the caller's to add.
        """
        if self.messages is not None:
            return self.question
        return question_prompt(self.question, self.context, self.choices)


def question_prompt(question: str, context: str | None, choices: Sequence[str] | None) -> str:
    """The text of a question with its context and its choices, as `Question.prompt` has it."""
    before = [] if context is None else [context, ""]
    lettered = [f"{letter}) {text}" for letter, text in zip(ascii_uppercase, choices or (), strict=False)]
    return "\n".join([*before, question, *lettered])


def read_questions(path: str | os.PathLike[str], *, group_by: str | None = None) -> list[Question]:
    """Read a JSONL file of questions, in the file's order; blank lines are passed over.

    Args:
        path: the file.
        group_by: the key of the owner of each question, a document's or a user's, say: any key of a question's or
            another one, whose values are strings or whole numbers.

    Raises:
        QuestionError: the file can't be read or is empty, or a line isn't a question; the message starts with
            ``path:line:``, or ``path:line:column:`` where the JSON is broken.
    """
    try:
        with Path(path).open("rb") as file:
            return _questions(_bounded_lines(file), path, group_by)
    except OSError as error:
        raise QuestionError(f"{path}:1: can't be read: {error.strerror}; check the path and its permissions") from error


def question_json(question: Question) -> str:
    """Write a question as a line that is read back as the same."""
    without = {"question", "context"} if question.messages else {"messages"}
    unknown = {name for name in ("owner", "probability") if getattr(question, name) is None}
    return question.model_dump_json(exclude=without | unknown)


def write_questions(path: str | os.PathLike[str], questions: Iterable[Question]) -> None:
    """Write questions as a JSONL file that :func:`read_questions` reads; a reader sees the old file or the new one.

    Raises:
        QuestionError: there are no questions, two have the same id, or one is too long for a line; nothing is written.
        OSError: the file can't be written; an older one stays as it was.
    """
    lines = [question_json(question).encode() + b"\n" for question in questions]
    _questions(lines, path)
    with replacing(Path(path)) as file:
        file.writelines(lines)


def numbers_in(text: str) -> list[float]:
    """The numbers in a text, in order: in any script's digits or in words, with separators, signs and scales."""
    return [float(numeral.value) for numeral in numerals_in(digits_of(text))]


def _check_numbers(answers: tuple[str, ...]) -> None:
    for answer in answers:
        digits = digits_of(answer.strip())
        if [(numeral.start, numeral.end) for numeral in numerals_in(digits)] != [(0, len(digits))]:
            raise ValueError(f"{_shown(answer)} isn't a number; write digits, such as '1,200', '-3.5' or '1/2'")


def _check_literals(answers: tuple[str, ...]) -> None:
    for answer in answers:
        if not is_collection_or_string(answer):
            raise ValueError(
                f"{_shown(answer)} isn't a string, list, tuple, set or dictionary as Python or JSON writes it, such as "
                "\"'abc'\" or '[1, 2]'; a number's kind is 'numeric', a truth's 'boolean'"
            )


def _check_choices(choices: tuple[str, ...], answers: tuple[str, ...]) -> None:
    if not 2 <= len(choices) <= len(ascii_uppercase):
        raise ValueError(f"got {len(choices)} choices; give 2 to {len(ascii_uppercase)}")
    if len(set(choices)) < len(choices):
        raise ValueError(f"two of the choices {_shown(choices)} are the same; remove one")
    if not _right_choices(choices, answers):
        raise ValueError(
            f"the answers {_shown(answers)} don't name one choice; give its letter (A to "
            f"{ascii_uppercase[len(choices) - 1]}), its exact text, or both"
        )


def _right_choices(choices: tuple[str, ...], answers: tuple[str, ...]) -> list[int]:
    """The choices that all answers name, by letter or by text; a letter goes before the same letter as a text."""
    named = [
        [
            index
            for names in (ascii_uppercase[: len(choices)], choices)
            for index, name in enumerate(names)
            if name == answer
        ]
        for answer in answers
    ]
    return [index for index in named[0] if all(index in others for others in named)]


def _bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines, the overlong ones cut just behind the limit, so that a file without line ends doesn't fill the memory."""
    while line := file.readline(_MAX_LINE_BYTES + 1):
        yield line


def _questions(lines: Iterable[bytes], path: str | os.PathLike[str], group_by: str | None = None) -> list[Question]:
    questions: list[Question] = []
    first_lines: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if number == 1 and line.startswith(_BYTE_ORDER_MARK):
            raise QuestionError(f"{where}: starts with a byte order mark; save the file as UTF-8 without one")
        if len(line) > _MAX_LINE_BYTES:
            raise QuestionError(
                f"{where}: the line is longer than {_MAX_LINE_BYTES:,} bytes; write one question a line"
            )
        if not line.strip():
            continue
        question = _question(_decoded(line, where), where, group_by)
        first = first_lines.setdefault(question.id, number)
        if first != number:
            raise QuestionError(f"{where}: the id {_shown(question.id)} stands on line {first} too; ids must be unique")
        questions.append(question)
    if not questions:
        raise QuestionError(f"{path}:1: there are no questions; write one JSON object a line")
    return questions


def _decoded(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as error:
        wrong = line[error.start : error.end]
        raise QuestionError(
            f"{where}: byte {error.start + 1} isn't UTF-8, got {wrong!r}; save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        got = _shown(line.decode()[error.pos :])
        raise QuestionError(
            f"{where}:{error.colno}: broken JSON: {error.msg}, got {got}; write one JSON object a line"
        ) from error
    except (ValueError, RecursionError) as error:
        raise QuestionError(f"{where}: {error}; write one flat JSON object a line") from error


def _question(value: Any, where: str, group_by: str | None) -> Question:
    if not isinstance(value, dict):
        raise QuestionError(f"{where}: got {_shown(value)}; a question is a JSON object with the keys {_FIELDS}")
    if group_by is not None:
        value = _owned(value, where, group_by)
    try:
        return Question.model_validate(value)
    except ValidationError as error:
        raise QuestionError(f"{where}: {_complaint(error.errors()[0])}") from error


def _owned(value: dict[str, Any], where: str, group_by: str) -> dict[str, Any]:
    """Take a question's owner from another key, which is the question's own or taken out."""
    if group_by not in value:
        raise QuestionError(f"{where}: there is no key {group_by!r:.60} to group by; give one that every line has")
    owner = value[group_by]
    if isinstance(owner, bool) or not isinstance(owner, (str, int)) or not str(owner).strip():
        raise QuestionError(
            f"{where}: the key to group by, {group_by!r:.60}, must be a text or a whole number that isn't blank, got "
            f"{_shown(owner)}; fill it in, or leave --group-by out"
        )
    rest = value if group_by in Question.model_fields else {key: of for key, of in value.items() if key != group_by}
    return rest | {"owner": str(owner)}


def _complaint(error: ErrorDetails) -> str:
    key = ".".join(map(str, error["loc"]))
    match error["type"]:
        case "missing" if key == "question":
            return "the key 'question' is missing; add it, or 'messages', a conversation that ends with it"
        case "missing":
            return f"the key {key!r} is missing; add it"
        case "extra_forbidden":
            return f"the key {key!r:.60} is unknown; the keys are {_FIELDS}, and that of --group-by"
        case "value_error":
            return str(error["ctx"]["error"])
        case "blank_text":
            return f"{key!r} is blank, got {_shown(error['input'])}; fill it in"
        case _:
            return f"{key!r} is wrong, got {_shown(error['input'])}: {error['msg']}; correct it"


_FIELDS = ", ".join(repr(name) for name in Question.model_fields)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"got {name}, which isn't JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {_shown(max(keys, key=keys.count))} is given twice")
    return unique


def _shown(value: object) -> str:
    """What was got, cut to what a log may hold."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
