from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom, kstest

from ilis_guard.errors import ScoringError
from ilis_guard.scoring import Drift, DriftTest
from ilis_guard.scoring.bundle import CalibrationSet
from ilis_guard.scoring.drift import _Stream
from ilis_guard.scoring.typicality import TypicalityReference
from ilis_guard.types import Score

pytestmark = pytest.mark.usefixtures("random_samples")

ROWS = 200
"""Of calibration."""
Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def as_before(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances, and uncertainties that go with them."""
    distances = random.chisquare(5, count)
    return distances, np.clip(distances / 30 + random.normal(0, 0.1, count), 0, 1)


def farther(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    distances, uncertainty = as_before(random, count)
    return 1.6 * distances, uncertainty


def surer(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    distances, uncertainty = as_before(random, count)
    return distances, uncertainty / 3


def calibration(random: np.random.Generator, rows: int = ROWS) -> CalibrationSet:
    distances, uncertainty = as_before(random, rows)
    return CalibrationSet(
        uncertainty=tuple(uncertainty.tolist()),
        wrong=(False,) * rows,
        typicality=TypicalityReference(mean=(0.0,), precision=((1.0,),), distances=tuple(sorted(distances.tolist()))),
    )


def scores(random: np.random.Generator, draw: Draw, known: CalibrationSet, count: int) -> list[Score]:
    distances, uncertainty = draw(random, count)
    rows = len(known.typicality.distances)
    farther_away = rows - np.searchsorted(known.typicality.distances, distances)
    typicality = (1 + farther_away) / (rows + 1)
    return [Score(uncertainty=u, typicality=s) for u, s in zip(uncertainty.tolist(), typicality.tolist(), strict=True)]


def watched(seed: int, draw: Draw, count: int, **options: float) -> list[Drift]:
    random = np.random.default_rng(seed)
    known = calibration(random)
    test = DriftTest(known, seed=seed, false_alarms=options.get("false_alarms", 0.1), window=count)
    return [test.observe(score) for score in scores(random, draw, known, count)]


def test_exchangeable_stream_raises_no_more_alarms_than_stated() -> None:
    """Over the draw of the calibration rows too, and at any time of a window several times as long as they are."""
    alarms = sum(watched(seed, as_before, 600)[-1].alarm is not None for seed in range(120))
    assert alarms <= binom.ppf(1 - 1e-4, 120, 0.1)


def test_bets_against_fixed_p_values_alarm_far_too_often() -> None:
    """So the test above can fail: against fixed p-values any finite calibration set is drift, given time."""
    wrong = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        known = calibration(random)
        fixed = [score.typicality for score in scores(random, as_before, known, 20000)]
        powers = np.linspace(0.05, 0.95, 10)
        logarithms = [np.cumsum(np.log(e) + (e - 1) * np.log(side)) for e in powers for side in (np.array(fixed),)]
        wrong += bool(np.exp(np.minimum(logarithms, 700)).mean(axis=0).max() >= 20)
    assert wrong > binom.ppf(1 - 1e-4, 40, 0.05)


def test_p_values_of_an_exchangeable_stream_are_uniform_and_independent() -> None:
    """Both kinds: places among known numbers, and gaps of which only the number is known."""
    found: dict[int, list[float]] = {0: [], 1: []}
    for seed in range(200):
        random = np.random.default_rng(seed)
        known = calibration(random, rows=20)
        drawn = scores(random, as_before, known, 30)
        for unknown, start in ((0, [gap / 21 for gap in range(1, 22)]), (1, sorted(known.uncertainty))):
            stream = _Stream(list(start), unknown=unknown)
            for score in drawn:
                before = stream._logarithms[0, 0]
                stream.bet(score.uncertainty if unknown else round(score.typicality * 21) / 21, random.random())
                # The bet e gains ln e + (e - 1) ln p.
                found[unknown].append(np.exp((stream._logarithms[0, 0] - before - np.log(0.05)) / -0.95))
    for p_values in found.values():
        assert kstest(p_values, "uniform").pvalue > 1e-3
        table = np.array(p_values).reshape(200, 30)
        neighbours = np.corrcoef(table[:, :-1].ravel(), table[:, 1:].ravel())[0, 1]
        assert abs(neighbours) < 4 / np.sqrt(table.size)


@pytest.mark.parametrize(("draw", "kind"), [(farther, "typicality"), (surer, "uncertainty")])
def test_a_stream_that_differs_raises_the_alarm_that_says_how(draw: Draw, kind: str) -> None:
    last = [watched(seed, draw, 400, false_alarms=0.01)[-1] for seed in range(20)]
    assert sum(each.alarm == kind for each in last) >= 18


def test_a_drift_halfway_is_found_and_the_alarm_stays() -> None:
    random = np.random.default_rng(0)
    known = calibration(random)
    test = DriftTest(known, false_alarms=0.01, window=1000)
    before = [test.observe(score).alarm for score in scores(random, as_before, known, 300)]
    after = [test.observe(score).alarm for score in scores(random, farther, known, 500)]
    assert set(before) == {None}
    first = after.index("typicality")
    assert set(after[first:]) == {"typicality"}


def test_a_window_ends_and_the_next_starts_anew() -> None:
    random = np.random.default_rng(1)
    known = calibration(random)
    test = DriftTest(known, false_alarms=0.01, window=300)
    found = [test.observe(score) for score in scores(random, farther, known, 301)]
    assert found[299].alarm == "typicality"
    assert (found[299].scores, found[300].scores) == (300, 1)
    assert found[300].alarm is None
    test.reset()
    assert test.observe(Score(uncertainty=0.5, typicality=1.0)).scores == 1


def test_the_same_seed_finds_the_same() -> None:
    assert watched(3, as_before, 50) == watched(3, as_before, 50)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (Score(uncertainty=0.5, typicality=0.123456), "isn't of a bundle with 200 calibration distances"),
        (Score(uncertainty=0.5, typicality=0.0), "isn't of a bundle"),
        (Score(uncertainty=1.5, typicality=1.0), "isn't of a bundle"),
    ],
)
def test_a_score_of_another_bundle_is_refused(score: Score, message: str) -> None:
    test = DriftTest(calibration(np.random.default_rng(0)))
    with pytest.raises(ScoringError, match=message):
        test.observe(score)
    assert test.observe(Score(uncertainty=0.5, typicality=1.0)).scores == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"false_alarms": 0.0}, "false_alarms"), ({"false_alarms": 1.0}, "1.0"), ({"window": 0}, "0")],
)
def test_settings_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ScoringError, match=message):
        DriftTest(calibration(np.random.default_rng(0)), **options)  # type: ignore[arg-type]  # one name at a time
