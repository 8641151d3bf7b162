"""The sets of questions: made here, and, where a folder of question files is given, taken from there."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.laboratory.generated import GENERATED
from ilis_guard.lab.questions import Question, read_questions

ROWS: Final = 850
"""Questions a set, at most."""
TAKEN: Final = ("squad_xquad",)
"""Files of the folder, by their names without .jsonl."""


def question_sets(folder: Path | None) -> Iterator[tuple[str, list[Question]]]:
    """Each set by its name: the same questions in the same order at each call.

    Raises:
        QuestionError: the folder lacks a file, or a file isn't right.
    """
    for name, make in GENERATED.items():
        yield name, _sample(name, list(make()))
    for name in TAKEN if folder is not None else ():
        yield name, _sample(name, read_questions(folder / f"{name}.jsonl"))


def _sample(name: str, questions: list[Question]) -> list[Question]:
    distinct = list({(asked.question, asked.context): asked for asked in questions}.values())
    random.Random(name).shuffle(distinct)  # noqa: S311  # a sample, not a secret
    return [
        asked.model_copy(update={"id": f"{name}-{number:04d}", "dataset": name})
        for number, asked in enumerate(distinct[:ROWS], start=1)
    ]
