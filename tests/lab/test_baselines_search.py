"""The search that methods share."""

from typing import Any

import numpy as np
import pytest

from ilis_guard.lab.baselines import search as module
from ilis_guard.lab.baselines.methods import SIGNATURE, Fused, Trees
from ilis_guard.lab.baselines.search import Search
from ilis_guard.lab.fit import FEATURES, split
from ilis_guard.lab.rows import Rows
from ilis_guard.lab.tuning import Grown, grow
from tests.lab.made_rows import made_rows

ROWS = made_rows({"capital": 160, "city": 160})
SPLITS = split(tuple(ROWS.datasets.tolist()), 0)
TRAIN, VALIDATION = SPLITS["train"], SPLITS["validation"]


@pytest.fixture
def grown(monkeypatch: pytest.MonkeyPatch) -> list[list[Grown]]:
    """What each search found."""
    found: list[list[Grown]] = []

    def counted(*groups: Any, **options: Any) -> list[Grown]:
        found.append(grow(*groups, **options))
        return found[-1]

    monkeypatch.setattr(module, "grow", counted)
    return found


def test_methods_that_share_it_are_those_that_search_by_themselves(grown: list[list[Grown]]) -> None:
    shared = Search()
    sharing = (Trees(name="maps", choices=SIGNATURE, search=shared), Fused(search=shared))
    alone = (Trees(name="maps", choices=SIGNATURE), Fused())
    said = [method.fit(ROWS, TRAIN, VALIDATION, 0).predict(ROWS).tolist() for method in sharing]
    assert len(grown) == 1
    assert said == [method.fit(ROWS, TRAIN, VALIDATION, 0).predict(ROWS).tolist() for method in alone]
    assert len(grown) == 3
    assert said[0] != said[1]


def test_the_best_of_what_a_method_may_look_at_is_taken(grown: list[list[Grown]]) -> None:
    search = Search()
    for choices in (SIGNATURE, FEATURES["answer"], FEATURES["answer"][-1:]):
        best = search.best("one", choices, ROWS, TRAIN, VALIDATION, 0)
        usable = [one for one in grown[0] if one.candidate.features in choices]
        assert best.candidate.loss == min(one.candidate.loss for one in usable)
        assert best in usable


def test_other_rows_splits_or_seeds_are_searched_anew(grown: list[list[Grown]]) -> None:
    search = Search()

    def ask(rows: Rows, train: np.ndarray, validation: np.ndarray, seed: int) -> int:
        search.best("one", FEATURES["answer"], rows, train, validation, seed)
        return len(grown)

    assert ask(ROWS, TRAIN, VALIDATION, 0) == 1
    assert ask(ROWS, TRAIN.copy(), VALIDATION.copy(), 0) == 1
    assert ask(ROWS, TRAIN, VALIDATION, 1) == 2
    assert ask(ROWS, TRAIN & (ROWS.datasets == "city"), VALIDATION, 1) == 3
    assert ask(ROWS, TRAIN, SPLITS["test"], 1) == 4
    assert ask(ROWS.take(np.arange(len(ROWS))), TRAIN, SPLITS["test"], 1) == 5
