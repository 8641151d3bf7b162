"""The sets: a folder's question files, and which of them count."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from ilis_guard.errors import QuestionError
from ilis_guard.lab.attempts import Answers
from ilis_guard.lab.evaluation.sets import QuestionSet, question_sets
from ilis_guard.lab.grouping import answer_groups
from ilis_guard.lab.questions import Question, read_questions
from ilis_guard.lab.splits import split
from ilis_guard.scoring.bundle import Split

RIGHT: Final = (0.2, 0.8)
"""A set on which a model is right less or more often is left out: it teaches and tells too little."""

Parts = Sequence[Mapping[str, Split]]
"""For each seed, the part that each row is in, by its id."""


def read_sets(folder: Path, most: int) -> dict[str, list[Question]]:
    """Read a folder's question files: each ``NAME.jsonl`` is a set of that name.

    Args:
        folder: holds JSONL files in the format of `read_questions`.
        most: questions of a set; of more, a random sample is taken, the same one each time.

    Raises:
        QuestionError: there are no such files, or one isn't right.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        is_there = "holds no question files (*.jsonl)" if folder.is_dir() else "is no folder"
        raise QuestionError(
            f"{str(folder)!r} {is_there}: give a folder with one JSONL file a set, a question a line (docs/fitting.md)"
        )
    return {path.stem: _named(path.stem, _sample(path.stem, read_questions(path), most)) for path in files}


def _sample(name: str, questions: list[Question], most: int) -> list[Question]:
    if len(questions) <= most:
        return questions
    drawn = random.Random(name).sample(range(len(questions)), most)  # noqa: S311 - a sample, not a secret
    return [questions[place] for place in sorted(drawn)]


def _named(name: str, questions: list[Question]) -> list[Question]:
    """Give questions their set's name, and ids that no other set has."""
    return [
        asked.model_copy(
            update={"dataset": name, "id": asked.id if asked.id.startswith(f"{name}-") else f"{name}-{asked.id}"}
        )
        for asked in questions
    ]


def split_parts(rows: Answers, seeds: int) -> Parts:
    """Say which part each row is in, for each seed, as `Transfers` splits them."""
    groups = answer_groups(rows)
    found = []
    for seed in range(seeds):
        splits = split(rows.datasets, seed, groups)
        found.append({str(rows.ids[row]): part for part, mask in splits.items() for row in np.flatnonzero(mask)})
    return found


def judge_sets(
    rows: Answers, questions: Sequence[Question], seeds: int, parts: Parts | None = None
) -> tuple[QuestionSet, ...]:
    """Say of each set how often the model is right on it, and whether it counts.

    Args:
        rows: of all sets.
        questions: that were asked.
        seeds: how often rows are split.
        parts: the parts of the same questions at another precision; without them, these rows are split.
    """
    sets = {one.name: replace(one, why_left_out=_why_left_out(one)) for one in question_sets(rows, questions)}
    while counting := [name for name, one in sets.items() if one.counts]:
        kept = rows.take(np.isin(rows.datasets, counting))
        thin = _one_class(kept, split_parts(kept, seeds) if parts is None else parts)
        if not thin:
            break
        # The split depends on the sets there are, so that the others are looked at again.
        sets |= {name: replace(sets[name], why_left_out=reason) for name, reason in thin.items()}
    return tuple(sets.values())


def _why_left_out(one: QuestionSet) -> str:
    least, most = RIGHT
    if least <= one.share <= most:
        return ""
    return f"right {one.share:.1%} of the time, outside of {least:.0%} to {most:.0%}"


def _one_class(rows: Answers, parts: Parts) -> dict[str, str]:
    """Name sets of which a part holds right or wrong answers only: nothing can be fitted or measured there."""
    found: dict[str, str] = {}
    for seed, part_of in enumerate(parts):
        of_rows = np.array([part_of.get(str(id_), "") for id_ in rows.ids])
        for name in np.unique(rows.datasets).tolist():
            for part in ("train", "validation", "calibration", "test"):
                wrong = rows.wrong[(rows.datasets == name) & (of_rows == part)]
                if wrong.all() or not wrong.any():
                    said = f"are all {'wrong' if wrong.any() else 'right'}" if len(wrong) else "are none"
                    found.setdefault(
                        name,
                        f"too few questions: with seed {seed} the {part} rows {said} ({len(wrong)} of "
                        f"{int((rows.datasets == name).sum())} answers)",
                    )
    return found
