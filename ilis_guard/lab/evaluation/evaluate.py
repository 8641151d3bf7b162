"""Evaluate all methods on harvested answers: from files to metrics, differences and the worst cases."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from ilis_guard.errors import FitError
from ilis_guard.lab.attempt_schema import HarvestManifest
from ilis_guard.lab.attempts import Answers, read_answers, read_attempts
from ilis_guard.lab.baselines.estimator import Method
from ilis_guard.lab.baselines.methods import methods
from ilis_guard.lab.baselines.observations import with_observations
from ilis_guard.lab.evaluation.bootstrap import (
    Difference,
    MetricEstimate,
    count_groups,
    differences,
    estimate_metrics,
)
from ilis_guard.lab.evaluation.importance import Importance, TypicalAnswers, importance, typical_answers
from ilis_guard.lab.evaluation.ood import Detection, detections
from ilis_guard.lab.evaluation.sets import QuestionSet, counted_sets, question_sets
from ilis_guard.lab.evaluation.trials import Trial, check_pair, count_fits, trials
from ilis_guard.lab.grouping import answer_groups
from ilis_guard.lab.questions import Question

REFERENCE: Final = "fused"
"""The method that others are compared with: the scorer of `ilis-guard fit`."""

WORST_CASES: Final = 12

Progress = Callable[[str, int, int], None]
"""Called with (step, amount done, amount in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Files of one model at one precision."""

    harvests: Sequence[Path]
    observations: Sequence[Path] = field(default=())
    """One for each harvest with sets that count; or none."""

    def observed(self, rows: Answers) -> Answers:
        """Add the observations, where there are any, to some of the harvested rows.

        Raises:
            FitError: the observations aren't theirs.
        """
        return with_observations(rows, self.harvests, self.observations) if self.observations else rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One answer with its question."""

    id: str
    dataset: str
    uncertainty: float
    """Mean over the seeds in which it was a test row."""
    question: str
    accepted: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCases:
    """The worst cases of a method, the worst first."""

    sure_and_wrong: tuple[Case, ...]
    unsure_and_right: tuple[Case, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The results of an evaluation."""

    manifests: tuple[HarvestManifest, ...]
    """Of all harvests."""
    sets: tuple[QuestionSet, ...]
    applied_sets: tuple[QuestionSet, ...]
    """The sets that count, at the other precision; empty where there is none."""
    methods: tuple[str, ...]
    """In the order of tables."""
    seeds: int
    trials: tuple[Trial, ...]
    estimates: tuple[MetricEstimate, ...]
    differences: tuple[Difference, ...]
    typicality: tuple[Detection, ...]
    typical: TypicalAnswers
    importance: Importance
    worst: WorstCases | None
    """None where texts may not be shown."""
    notes: tuple[str, ...]
    """What limits the results, in sentences."""

    _by_name: Mapping[tuple[str, str, str, str], MetricEstimate] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        by_name = {(one.protocol, one.method, one.tested_on, one.metric): one for one in self.estimates}
        object.__setattr__(self, "_by_name", by_name)

    def estimate(self, protocol: str, method: str, tested_on: str, metric: str) -> MetricEstimate | None:
        """Return one estimate, or None. One to one, only of means: there a set is tested after many others."""
        return self._by_name.get((protocol, method, tested_on, metric))


def evaluate(
    source: Source,
    *,
    applied: Source | None = None,
    questions: Sequence[Question] | None = None,
    show_texts: bool = False,
    seeds: int = 5,
    compared: Sequence[Method] | None = None,
    progress: Progress = lambda _step, _done, _all: None,
) -> Evaluation:
    """Compare all methods on harvested answers of one model.

    Args:
        source: the harvests with their observations.
        applied: the same questions, answered at another precision.
        questions: those that were harvested; without them, sets on which a constant answer does as well aren't found.
        show_texts: keep questions and answers of the worst cases; needs `questions`.
        seeds: how often rows are split and methods fitted again.
        compared: the methods; without them all of `methods` that these rows allow.
        progress: called during each step.

    Raises:
        FitError: the files don't go together, no set counts, there are too few rows, or a method can't be fitted.
    """
    if show_texts and questions is None:
        raise FitError("the worst cases can't be shown without the questions: give them too")
    harvested = read_answers(source.harvests)
    harvested.manifest.tapped()
    sets = question_sets(harvested, questions)
    names = counted_sets(sets)
    rows = source.observed(harvested.take(np.isin(harvested.datasets, names)))
    del harvested
    other, applied_sets = (None, ()) if applied is None else _other_precision(rows, applied, questions)
    chosen = _allowed(rows, other) if compared is None else tuple(compared)

    total = count_fits(
        sets=len(names), applied_sets=sum(one.counts for one in applied_sets), methods=len(chosen), seeds=seeds
    )
    made = tuple(trials(rows, chosen, seeds=seeds, applied=other, progress=_counter(progress, "fitting", total)))
    estimates = estimate_metrics(made, progress=_counter(progress, "resampling", count_groups(made)))
    worst = None
    if show_texts and questions is not None:
        texts = {id_: text for path in source.harvests for id_, text in read_attempts(path).texts().items()}
        worst = _worst_cases(made, _reference(chosen), rows, {question.id: question for question in questions}, texts)
    return Evaluation(
        manifests=tuple(
            read_attempts(path).harvest for path in (*source.harvests, *(applied.harvests if applied else ()))
        ),
        sets=sets,
        applied_sets=applied_sets,
        methods=tuple(method.name for method in chosen),
        seeds=seeds,
        trials=made,
        estimates=tuple(estimates),
        differences=tuple(differences(estimates, REFERENCE)),
        typicality=tuple(detections(rows, seeds=seeds)),
        typical=typical_answers(rows),
        importance=importance(rows),
        worst=worst,
        notes=tuple(_notes(rows, names, applied_sets, chosen, has_questions=questions is not None)),
    )


def _reference(chosen: Sequence[Method]) -> str:
    names = [method.name for method in chosen]
    return REFERENCE if REFERENCE in names else names[-1]


def _other_precision(
    rows: Answers, applied: Source, questions: Sequence[Question] | None
) -> tuple[Answers, tuple[QuestionSet, ...]]:
    """The same questions' answers at the other precision, of the sets that count there too."""
    other = read_answers(applied.harvests)
    check_pair(rows.manifest.tapped(), other.manifest.tapped())
    known = set(rows.ids.tolist())
    same = other.take(np.array([id_ in known for id_ in other.ids.tolist()]))
    if not len(same):
        raise FitError("the harvests at two precisions have no question in common: harvest the same with both tiers")
    sets = question_sets(same, questions)
    return applied.observed(same.take(np.isin(same.datasets, counted_sets(sets)))), sets


def _allowed(rows: Answers, other: Answers | None) -> tuple[Method, ...]:
    """The methods that have all that they need."""
    is_observed = rows.unsupervised is not None and (other is None or other.unsupervised is not None)
    return tuple(one for one in methods() if is_observed or one.kind in ("statistics", "signature"))


def _worst_cases(
    trials: Sequence[Trial], method: str, rows: Answers, questions: Mapping[str, Question], answers: Mapping[str, str]
) -> WorstCases:
    """Find the worst test rows of a method in-distribution.

    Args:
        trials: of all methods and protocols.
        method: whose cases.
        rows: of the trials.
        questions: by id.
        answers: the answers' texts, by id.
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
        question = questions[str(rows.ids[row])]
        return Case(
            id=question.id,
            dataset=str(rows.datasets[row]),
            uncertainty=uncertainty[row],
            question=question.prompt(),
            accepted=" / ".join(question.answers),
            answer=answers[question.id],
        )

    return WorstCases(
        sure_and_wrong=tuple(case(row) for row in from_sure if rows.wrong[row])[:WORST_CASES],
        unsure_and_right=tuple(case(row) for row in reversed(from_sure) if not rows.wrong[row])[:WORST_CASES],
    )


def _notes(
    rows: Answers,
    names: Sequence[str],
    applied_sets: Sequence[QuestionSet],
    chosen: Sequence[Method],
    *,
    has_questions: bool,
) -> list[str]:
    notes = []
    if dependent := len(rows) - len(np.unique(answer_groups(rows))):
        notes.append(
            f"{dependent} of {len(rows)} rows repeat others, or have the same owner: rows are split, and intervals "
            "computed, by groups of such rows."
        )
    if there := [one.name for one in applied_sets if not one.counts]:
        notes.append(
            f"{len(there)} of {len(names)} sets don't count at the other precision: its results are of the "
            "others, so compare refitted and applied with each other, and not with in-distribution."
        )
    if not has_questions:
        notes.append(
            "The questions weren't given, so sets on which always giving the same answer does as well as the model "
            "weren't looked for."
        )
    if len(chosen) < len(methods()) and rows.unsupervised is None:
        notes.append(
            "The answers weren't observed: scores without labels and probes are missing. `ilis-guard observe` makes "
            "what they need."
        )
    if len(names) == 1:
        notes.append("One set counts: nothing can be said of sets that were never seen.")
    return notes


def _counter(progress: Progress, step: str, total: int) -> Callable[[], None]:
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(step, done, total)

    return advance
