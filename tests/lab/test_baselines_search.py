"""The search that methods share."""

from typing import Any

import numpy as np
import pytest

from ilis_guard.lab.attempts import Answers
from ilis_guard.lab.baselines import methods as module
from ilis_guard.lab.baselines.methods import SIGNATURE, Fused, Trees, TreeSearch
from ilis_guard.lab.fit import FEATURES
from ilis_guard.lab.splits import split
from ilis_guard.lab.tuning import Candidate, tune
from tests.lab.synthetic import synthetic_answers

pytestmark = pytest.mark.usefixtures("fitted_model")

ROWS = synthetic_answers({"capital": 160, "city": 160})
SPLITS = split(ROWS.datasets, 0)
TRAIN, VALIDATION = SPLITS["train"], SPLITS["validation"]


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> list[list[Candidate]]:
    """What each search found."""
    found: list[list[Candidate]] = []

    def counted(*groups: Any, **options: Any) -> list[Candidate]:
        found.append(tune(*groups, **options))
        return found[-1]

    monkeypatch.setattr(module, "tune", counted)
    return found


def test_a_shared_search_gives_the_results_of_separate_ones(tuned: list[list[Candidate]]) -> None:
    shared = TreeSearch()
    sharing = (Trees(name="maps", choices=SIGNATURE, search=shared), Fused(search=shared))
    alone = (Trees(name="maps", choices=SIGNATURE), Fused())
    said = [method.fit(ROWS, TRAIN, VALIDATION, 0).predict_proba(ROWS).tolist() for method in sharing]
    assert len(tuned) == 1
    assert said == [method.fit(ROWS, TRAIN, VALIDATION, 0).predict_proba(ROWS).tolist() for method in alone]
    assert len(tuned) == 3
    assert said[0] != said[1]


def test_the_best_candidate_among_the_choices_is_taken(tuned: list[list[Candidate]]) -> None:
    search = TreeSearch()
    for choices in (SIGNATURE, FEATURES["answer"], FEATURES["answer"][-1:]):
        best = search.best("one", choices, ROWS, TRAIN, VALIDATION, 0)
        usable = [one for one in tuned[0] if one.metadata.features in choices]
        assert best.metadata.loss == min(one.metadata.loss for one in usable)
        assert best in usable


def test_other_rows_splits_or_seeds_are_searched_anew(tuned: list[list[Candidate]]) -> None:
    search = TreeSearch()

    def ask(rows: Answers, train: np.ndarray, validation: np.ndarray, seed: int) -> int:
        search.best("one", FEATURES["answer"], rows, train, validation, seed)
        return len(tuned)

    assert ask(ROWS, TRAIN, VALIDATION, 0) == 1
    assert ask(ROWS, TRAIN.copy(), VALIDATION.copy(), 0) == 1
    assert ask(ROWS, TRAIN, VALIDATION, 1) == 2
    assert ask(ROWS, TRAIN & (ROWS.datasets == "city"), VALIDATION, 1) == 3
    assert ask(ROWS, TRAIN, SPLITS["test"], 1) == 4
    assert ask(ROWS.take(np.arange(len(ROWS))), TRAIN, SPLITS["test"], 1) == 5
