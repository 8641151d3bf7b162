"""An evaluation, from files to all that there is to tell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from ilis_guard.errors import FitError
from ilis_guard.lab.baselines.methods import Method, methods
from ilis_guard.lab.evaluation.figures import Difference, Figure, count_groups, differences, figures
from ilis_guard.lab.evaluation.looking import Importance, TypicalAnswers, importance, typical_answers
from ilis_guard.lab.evaluation.sets import QuestionSet, counted_sets, question_sets
from ilis_guard.lab.evaluation.shifting import Detection, detections
from ilis_guard.lab.evaluation.trials import Trial, check_pair, count_fits, trials
from ilis_guard.lab.evaluation.worst import WorstCases, worst_cases
from ilis_guard.lab.harvest import Manifest, read_manifest, read_texts
from ilis_guard.lab.questions import Question
from ilis_guard.lab.rows import Rows, read_rows_of, with_observations

REFERENCE: Final = "fused"
"""The method that others are compared with: what `ilis-guard fit` makes."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Files of one model at one precision."""

    harvests: Sequence[Path]
    observations: Sequence[Path] = field(default=())
    """Of the harvests with sets that count, one each; or none."""

    def read(self) -> Rows:
        """Their rows, as they were harvested.

        Raises:
            FitError: they aren't what they should be.
        """
        return read_rows_of(self.harvests)

    def observed(self, rows: Rows) -> Rows:
        """Some of these rows, with what was observed of them, where anything was.

        Raises:
            FitError: the observations aren't theirs.
        """
        return with_observations(rows, self.harvests, self.observations) if self.observations else rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What came of an evaluation."""

    manifests: tuple[Manifest, ...]
    """Of all harvests."""
    sets: tuple[QuestionSet, ...]
    applied_sets: tuple[QuestionSet, ...]
    """Those that count, as they are at the other precision; empty where there is none."""
    methods: tuple[str, ...]
    """In the order of tables."""
    seeds: int
    trials: tuple[Trial, ...]
    figures: tuple[Figure, ...]
    differences: tuple[Difference, ...]
    typicality: tuple[Detection, ...]
    typical: TypicalAnswers
    importance: Importance
    worst: WorstCases | None
    """None where texts aren't to be shown."""
    notes: tuple[str, ...]
    """What the reader must know."""

    _by_name: Mapping[tuple[str, str, str, str], Figure] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        by_name = {(one.protocol, one.method, one.tested_on, one.metric): one for one in self.figures}
        object.__setattr__(self, "_by_name", by_name)

    def figure(self, protocol: str, method: str, tested_on: str, metric: str) -> Figure | None:
        """One figure; None where there is none. One to one, of means only: there a set is tested after many others."""
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
        source: the harvests, and what was observed of their answers.
        applied: the same questions, answered at another precision.
        questions: what was asked; without them, sets on which a constant answer does as well aren't found.
        show_texts: keep questions and answers of the worst cases; needs `questions`.
        seeds: how often rows are dealt out and methods fitted anew.
        compared: the methods; without them all of `methods` that these rows allow.
        progress: told of each step.

    Raises:
        FitError: the files don't go together, no set counts, there are too few rows, or a method can't be fitted.
    """
    if show_texts and questions is None:
        raise FitError("the worst cases can't be shown without the questions: give them too")
    harvested = source.read()
    sets = question_sets(harvested, questions)
    names = counted_sets(sets)
    rows = source.observed(harvested.take(np.isin(harvested.datasets, names)))
    del harvested
    elsewhere, applied_sets = (None, ()) if applied is None else _elsewhere(rows, applied, questions)
    chosen = _allowed(rows, elsewhere) if compared is None else tuple(compared)

    there = sum(one.counts for one in applied_sets)
    total = count_fits(sets=len(names), applied_sets=there, methods=len(chosen), seeds=seeds)
    made = trials(rows, chosen, seeds=seeds, applied=elsewhere, progress=_counted(progress, "fitting", total))
    tried = tuple(made)
    found = figures(tried, progress=_counted(progress, "resampling", count_groups(tried)))
    worst = None
    if show_texts and questions is not None:
        texts = {id_: text for path in source.harvests for id_, text in read_texts(path).items()}
        worst = worst_cases(tried, _shown(chosen), rows, {asked.id: asked for asked in questions}, texts)
    return Evaluation(
        manifests=tuple(read_manifest(path) for path in (*source.harvests, *(applied.harvests if applied else ()))),
        sets=sets,
        applied_sets=applied_sets,
        methods=tuple(method.name for method in chosen),
        seeds=seeds,
        trials=tried,
        figures=tuple(found),
        differences=tuple(differences(found, REFERENCE)),
        typicality=tuple(detections(rows, seeds=seeds)),
        typical=typical_answers(rows),
        importance=importance(rows),
        worst=worst,
        notes=tuple(_notes(rows, names, applied_sets, chosen, has_questions=questions is not None)),
    )


def _shown(chosen: Sequence[Method]) -> str:
    names = [method.name for method in chosen]
    return REFERENCE if REFERENCE in names else names[-1]


def _elsewhere(
    rows: Rows, applied: Source, questions: Sequence[Question] | None
) -> tuple[Rows, tuple[QuestionSet, ...]]:
    """The same questions' answers at the other precision, of the sets that count there too."""
    elsewhere = applied.read()
    check_pair(rows.fingerprint, elsewhere.fingerprint)
    same = elsewhere.take(np.isin(elsewhere.ids, rows.ids))
    if not len(same):
        raise FitError("the harvests at two precisions have no question in common: harvest the same with both tiers")
    sets = question_sets(same, questions)
    return applied.observed(same.take(np.isin(same.datasets, counted_sets(sets)))), sets


def _allowed(rows: Rows, elsewhere: Rows | None) -> tuple[Method, ...]:
    """The methods that have all that they look at."""
    is_observed = rows.unsupervised is not None and (elsewhere is None or elsewhere.unsupervised is not None)
    return tuple(one for one in methods() if is_observed or one.kind in ("statistics", "signature"))


def _notes(
    rows: Rows,
    names: Sequence[str],
    applied_sets: Sequence[QuestionSet],
    chosen: Sequence[Method],
    *,
    has_questions: bool,
) -> list[str]:
    notes = []
    if there := [one.name for one in applied_sets if not one.counts]:
        notes.append(
            f"{len(there)} of {len(names)} sets don't count at the other precision: what is said of it is of the "
            "others, so hold refitted and applied against each other, and not against in-distribution."
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


def _counted(progress: Progress, step: str, total: int) -> Callable[[], None]:
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        progress(step, done, total)

    return tell
