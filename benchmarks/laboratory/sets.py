"""The sets of questions: made ones, and samples from a folder of question files, if one is given.

Which sets a tier is asked depends on its model's family: what a small general model is right on half of the time isn't
what a model for code is.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.laboratory.expressions import EXPRESSIONS
from benchmarks.laboratory.generated import GENERATED
from benchmarks.laboratory.programs import PROGRAMS
from ilis_guard.lab.questions import Question, read_questions

PILOT: Final = 40
"""Questions of each set of the model for code that a pilot asks, and that aren't among the set's own."""

Maker = Callable[[], Iterable[Question]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FromFolder:
    """A set from a file of the folder."""

    file: str
    """Its name without .jsonl."""
    choose: Callable[[list[Question]], Iterable[Question]] = lambda questions: questions
    """Which of the file's questions the sample is drawn from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The sets for models of one family."""

    rows: int
    """Questions a set, at most."""
    made: Mapping[str, Maker]
    from_folder: Mapping[str, FromFolder]
    """Sets whose questions aren't ours to give. Nothing of them is committed, neither questions nor answers."""

    @property
    def files(self) -> list[str]:
        """The files that the folder must have."""
        return [f"{one.file}.jsonl" for one in self.from_folder.values()]


def _short(rows: int) -> Callable[[list[Question]], Iterable[Question]]:
    return lambda questions: sorted(questions, key=_length)[:rows]


def _short_and_even(rows: int) -> Callable[[list[Question]], Iterable[Question]]:
    """As many that are true as are false: otherwise "yes" alone would often be right."""

    def choose(questions: list[Question]) -> Iterator[Question]:
        for truth in ("yes", "no"):
            yield from sorted((asked for asked in questions if asked.answers[0] == truth), key=_length)[: rows // 2]

    return choose


def _length(question: Question) -> int:
    return len(question.context or "")


_CODE_ROWS: Final = 500
GENERAL: Final = Family(
    rows=850,
    made=GENERATED,
    # XQuAD in English (CC BY-SA 4.0), which asks for spans of Wikipedia's paragraphs.
    from_folder={"squad_xquad": FromFolder(file="squad_xquad")},
)
CODE: Final = Family(
    rows=_CODE_ROWS,
    made={**EXPRESSIONS, **PROGRAMS},
    # The shortest passages: long ones take a model of this size most of the time. BoolQ is CC BY-SA 3.0.
    from_folder={
        "short-squad": FromFolder(file="squad_xquad", choose=_short(_CODE_ROWS + PILOT)),
        "short-boolq": FromFolder(file="boolq", choose=_short_and_even(_CODE_ROWS + PILOT)),
    },
)
CODERS: Final = ("qwen2-5-coder",)
"""What the names of tiers with a model for code begin with."""


def family_of(tier: str) -> Family:
    """Return the family of a tier's model, by the tier's name."""
    return CODE if tier.startswith(CODERS) else GENERAL


def question_sets(family: Family, folder: Path | None) -> Mapping[str, list[Question]]:
    """Each set by its name: a random sample of its questions, the same ones in the same order each time.

    Args:
        family: whose sets.
        folder: holds JSONL files in the format of `read_questions`; without it, the sets from the folder are missing.

    Raises:
        QuestionError: the folder lacks a file, or a file isn't right.
    """
    return {name: _named(name, questions[: family.rows]) for name, questions in _shuffled_sets(family, folder).items()}


def pilot_sets(folder: Path | None) -> Mapping[str, list[Question]]:
    """The questions for pilots of the model for code, none of which is in `question_sets`."""
    return {
        name: _named(f"{name}-pilot", questions[CODE.rows : CODE.rows + PILOT])
        for name, questions in _shuffled_sets(CODE, folder).items()
    }


def _shuffled_sets(family: Family, folder: Path | None) -> Mapping[str, list[Question]]:
    sets = {name: _shuffled(name, make()) for name, make in family.made.items()}
    if folder is not None:
        for name, one in family.from_folder.items():
            sets[name] = _shuffled(name, one.choose(read_questions(folder / f"{one.file}.jsonl")))
    return sets


def _shuffled(name: str, questions: Iterable[Question]) -> list[Question]:
    distinct = list({(asked.question, asked.context): asked for asked in questions}.values())
    random.Random(name).shuffle(distinct)  # noqa: S311  # a sample, not a secret
    return distinct


def _named(name: str, questions: Iterable[Question]) -> list[Question]:
    return [
        asked.model_copy(update={"id": f"{name}-{number:04d}", "dataset": name})
        for number, asked in enumerate(questions, start=1)
    ]
