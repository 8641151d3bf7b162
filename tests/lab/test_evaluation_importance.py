from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ilis_guard.lab.attempts import Answers, read_attempts
from ilis_guard.lab.evaluation.importance import importance, typical_answers
from tests.lab.synthetic import LAYERS, synthetic_answers, write_harvest

PAIR = (3, 1)


@pytest.fixture(scope="module")
def rows() -> Answers:
    """Only one pair of layers tells, in the `mean` and `last` maps; statistics tell a little."""
    silent = synthetic_answers({"capital": 400, "city": 400}, signal=0.0)
    told = np.ones((len(silent), LAYERS, LAYERS), dtype=np.float32)
    told[:, *PAIR] = np.exp(3.0 * silent.wrong)
    of = silent.signatures
    return replace(silent, signatures={**of, "last": of["last"] * told, "mean": of["mean"] * told})


def test_the_maps_of_right_and_wrong_answers_differ_where_something_tells(rows: Answers) -> None:
    typical = typical_answers(rows)
    away = np.abs(typical.difference)
    assert away.argmax() == np.ravel_multi_index(PAIR, away.shape)
    assert away[PAIR] > 5 * np.sort(away.ravel())[-2]
    logs = np.log1p(rows.signatures["mean"][rows.wrong & (rows.datasets == "city")]).mean(axis=0)
    other = np.log1p(rows.signatures["mean"][rows.wrong & (rows.datasets == "capital")]).mean(axis=0)
    np.testing.assert_allclose(typical.wrong, (logs + other) / 2, rtol=1e-5)


def test_the_difference_is_not_that_of_hard_and_easy_sets() -> None:
    """Maps differ between the sets and not within them, and one of the sets is nearly always wrong."""
    rows = synthetic_answers({"easy": 400, "hard": 400}, signal=0.0, unlike=["hard"])
    hard = rows.datasets == "hard"
    wrong = np.where(hard, np.arange(len(rows)) % 10 > 0, np.arange(len(rows)) % 10 == 0)
    difference = typical_answers(replace(rows, wrong=wrong)).difference
    assert np.abs(difference).max() < 0.5
    logs = np.log1p(rows.signatures["mean"])
    assert (logs[wrong].mean(axis=0) - logs[~wrong].mean(axis=0)).max() > 1.5


def test_importance_lies_on_the_informative_pair_and_sums_to_one(rows: Answers) -> None:
    found = importance(rows)
    assert found.pairs.argmax() == np.ravel_multi_index(PAIR, found.pairs.shape)
    assert found.pairs[PAIR] > 0.5
    assert found.pairs.sum() + sum(found.statistics.values()) == pytest.approx(1)
    assert np.diag(found.pairs).tolist() == [0.0] * LAYERS
    assert list(found.statistics) == ["logprob_sum", "logprob_mean", "entropy_mean", "margin_min"]
    # Shares of the maps' gain by distance, each of the mean of its pairs: of 2 (L - d) pairs that lie d apart.
    assert len(found.by_distance) == LAYERS - 1
    pairs = 2 * (LAYERS - np.arange(1, LAYERS))
    assert float((found.by_distance * pairs).sum()) == pytest.approx(1)
    assert int(found.by_distance.argmax()) == abs(PAIR[0] - PAIR[1]) - 1


def test_texts_and_manifests_are_read_back(rows: Answers, tmp_path: Path) -> None:
    path = write_harvest(rows, tmp_path / "rows.parquet")
    texts = read_attempts(path).texts()
    assert len(texts) == len(rows)
    assert texts["capital-0"] == "<b>answer</b> capital-0"
    assert read_attempts(path).harvest.model == "packaged:fake"
