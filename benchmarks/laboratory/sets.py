"""The sets of questions: generated ones, and samples from a folder of question files, if one is given."""

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from benchmarks.laboratory.generated import GENERATED
from ilis_guard.lab.questions import Question, read_questions

ROWS: Final = 850
"""Questions a set, at most."""
FROM_FOLDER: Final = ("squad_xquad",)
"""Files of the folder, by their names without .jsonl: XQuAD in English (CC BY-SA 4.0), which asks for spans of
Wikipedia's paragraphs. Nothing of them is committed, neither questions nor answers."""


def question_sets(folder: Path | None) -> Mapping[str, list[Question]]:
    """Each set by its name: a random sample of its questions, the same ones in the same order each time.

    Args:
        folder: holds JSONL files in the format of `read_questions`; without it, the sets of `FROM_FOLDER` are missing.

    Raises:
        QuestionError: the folder lacks a file, or a file isn't right.
    """
    sets = {name: _sample(name, make()) for name, make in GENERATED.items()}
    if folder is not None:
        sets |= {name: _sample(name, read_questions(folder / f"{name}.jsonl")) for name in FROM_FOLDER}
    return sets


def _sample(name: str, questions: Iterable[Question]) -> list[Question]:
    distinct = list({(asked.question, asked.context): asked for asked in questions}.values())
    random.Random(name).shuffle(distinct)  # noqa: S311  # a sample, not a secret
    return [
        asked.model_copy(update={"id": f"{name}-{number:04d}", "dataset": name})
        for number, asked in enumerate(distinct[:ROWS], start=1)
    ]
