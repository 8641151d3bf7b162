"""Sets of questions: which of them count in an evaluation, and why others are left out."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Final

import numpy as np
from scipy.stats import binomtest

from ilis_guard.errors import FitError
from ilis_guard.lab.attempts import Answers, Mask
from ilis_guard.lab.fit import ACCURACY_RANGE, MIN_PER_CLASS
from ilis_guard.lab.grouping import answer_groups
from ilis_guard.lab.questions import Question, numbers_in
from ilis_guard.scoring.risk_control import one_of_each

CONFIDENCE: Final = 0.95
"""Of the Clopper-Pearson interval of the model's accuracy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSet:
    """One set of questions, with the model's accuracy on it."""

    name: str
    rows: int
    """Of rows that depend on one another, one a group."""
    right: int
    low: float
    """Lower end of the interval of the accuracy."""
    high: float
    constant: float | None
    """Accuracy of the best constant answer; None where the questions weren't given."""
    why_left_out: str
    """Empty where the set counts."""

    @property
    def counts(self) -> bool:
        """Whether methods are trained and tested on it."""
        return not self.why_left_out

    @property
    def share(self) -> float:
        """The model's accuracy."""
        return self.right / self.rows


def question_sets(rows: Answers, questions: Sequence[Question] | None) -> tuple[QuestionSet, ...]:
    """Return every set in the rows, by name.

    A set counts where the model is right 15 to 85 % of the time, significantly more often than the best constant
    answer (often right on yes/no and multiple-choice questions), and where there are enough rows of both classes.

    Args:
        rows: of all sets.
        questions: those that were harvested; without them constant answers aren't considered.

    Raises:
        FitError: a row's question isn't among them.
    """
    by_id = None if questions is None else {question.id: question for question in questions}
    independent = one_of_each(answer_groups(rows))
    return tuple(_question_set(str(name), rows, independent, by_id) for name in np.unique(rows.datasets))


def counted_sets(sets: Sequence[QuestionSet]) -> list[str]:
    """Return the names of the sets that count.

    Raises:
        FitError: there is none.
    """
    names = [one.name for one in sets if one.counts]
    if not names:
        reasons = "; ".join(f"{one.name!r:.60}: {one.why_left_out}" for one in sets)
        raise FitError(f"no set counts, so that there is nothing to evaluate: {reasons}")
    return names


def best_constant(questions: Sequence[Question]) -> float:
    """Compute the accuracy of the best constant answer."""
    rights = Counter(answer for question in questions for answer in set(_constants(question)))
    return max(rights.values()) / len(questions)


def _question_set(name: str, rows: Answers, independent: Mask, by_id: Mapping[str, Question] | None) -> QuestionSet:
    of_set = independent & (rows.datasets == name)
    count, right = int(of_set.sum()), int((~rows.wrong[of_set]).sum())
    interval = binomtest(right, count).proportion_ci(CONFIDENCE)
    constant = None if by_id is None else best_constant(list(_questions_of(rows.ids[of_set].tolist(), by_id)))
    return QuestionSet(
        name=name,
        rows=count,
        right=right,
        low=float(interval.low),
        high=float(interval.high),
        constant=constant,
        why_left_out=_why_left_out(count, right, float(interval.low), constant),
    )


def _why_left_out(count: int, right: int, low: float, constant: float | None) -> str:
    least, most = ACCURACY_RANGE
    if not least <= right / count <= most:
        return f"right {right / count:.1%} of the time, outside of {least:.0%} to {most:.0%}"
    if min(right, count - right) < MIN_PER_CLASS:
        return f"{right} right and {count - right} wrong answers: at least {MIN_PER_CLASS} of each are needed"
    if constant is not None and low <= constant:
        return (
            f"right {right / count:.1%} of the time, at least {low:.1%}: not surely better than always giving the same "
            f"answer, right {constant:.1%} of the time"
        )
    return ""


def _questions_of(ids: Sequence[str], by_id: Mapping[str, Question]) -> Iterator[Question]:
    for id_ in ids:
        if id_ not in by_id:
            raise FitError(
                f"the row {id_!r:.60} was harvested, and isn't among the questions: give all that were asked"
            )
        yield by_id[id_]


def _constants(question: Question) -> Iterator[str]:
    """The constant answers that would be right here."""
    if question.choices is not None and question.right_choice is not None:
        yield ascii_uppercase[question.right_choice]
        yield question.choices[question.right_choice].casefold()
    elif question.kind == "numeric":
        yield from (repr(number) for answer in question.answers for number in numbers_in(answer))
    else:
        yield from (answer.strip().casefold() for answer in question.answers)
