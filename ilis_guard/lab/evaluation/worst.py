"""The cases that a method gets worst: wrong answers it is sure of, right ones it isn't."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ilis_guard.lab.evaluation.trials import Trial
from ilis_guard.lab.questions import Question
from ilis_guard.lab.rows import Rows

SHOWN: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One answer, with what was asked."""

    id: str
    dataset: str
    uncertainty: float
    """Mean over the seeds in which it was a test row."""
    question: str
    accepted: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCases:
    """From the worst on."""

    sure_and_wrong: tuple[Case, ...]
    unsure_and_right: tuple[Case, ...]


def worst_cases(
    trials: Sequence[Trial], method: str, rows: Rows, questions: Mapping[str, Question], answers: Mapping[str, str]
) -> WorstCases:
    """The worst test rows of a method in-distribution.

    Args:
        trials: of all methods and protocols.
        method: whose cases.
        rows: that the trials were made on.
        questions: by id.
        answers: what the model said, by id.
    """
    found: dict[int, list[float]] = {}
    for trial in trials:
        if trial.method == method and trial.protocol == "in-distribution":
            of_set = np.flatnonzero(rows.datasets == trial.tested_on)
            for row, probability in zip(of_set[trial.places].tolist(), trial.probability.tolist(), strict=True):
                found.setdefault(row, []).append(probability)
    uncertainty = {row: float(np.mean(values)) for row, values in found.items()}
    from_sure = sorted(uncertainty, key=lambda row: (uncertainty[row], row))

    def case(row: int) -> Case:
        asked = questions[str(rows.ids[row])]
        return Case(
            id=asked.id,
            dataset=str(rows.datasets[row]),
            uncertainty=uncertainty[row],
            question=asked.prompt(),
            accepted=" / ".join(asked.answers),
            answer=answers[asked.id],
        )

    return WorstCases(
        sure_and_wrong=tuple(case(row) for row in from_sure if rows.wrong[row])[:SHOWN],
        unsure_and_right=tuple(case(row) for row in reversed(from_sure) if not rows.wrong[row])[:SHOWN],
    )
