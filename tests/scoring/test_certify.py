import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import beta, binom

from ilis_guard.errors import ScoringError
from ilis_guard.scoring import Certificate, certify, risk_control

pytestmark = pytest.mark.usefixtures("random_samples")

Rows = tuple[np.ndarray, np.ndarray]


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    """Well and badly ranked ones, with and without ties."""
    count = draw(st.integers(1, 600))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    uncertainty = random.random(count)
    values = draw(st.sampled_from([None, 3, 30]))
    if values:
        uncertainty = np.round(uncertainty * values) / values
    return uncertainty, random.random(count) < draw(st.sampled_from([0.01, 0.3])) * uncertainty**2


@settings(max_examples=60, derandomize=True, deadline=None)
@given(rows=rows(), max_error=st.floats(0.01, 0.99), confidence=st.floats(0.5, 0.999))
def test_a_certificate_holds_a_threshold_or_why_there_is_none(rows: Rows, max_error: float, confidence: float) -> None:
    uncertainty, wrong = rows
    found = certify(uncertainty, wrong, max_error=max_error, confidence=confidence)
    answered = uncertainty <= (-1 if found.threshold is None else found.threshold)
    assert found.coverage == answered.mean()
    assert (found.threshold is None) == bool(found.reason) == (found.error is None)
    assert found.floor == pytest.approx(max(0, (wrong.mean() - max_error) / (1 - max_error)))
    if found.threshold is None:
        assert found.rows_needed is None or found.rows_needed > 0
    else:
        assert found.rows_needed is None
        assert found.threshold in uncertainty
        assert found.error == wrong[answered].mean()
        # Whatever the walk, the Clopper-Pearson bound of what is answered keeps the promise.
        assert beta.ppf(confidence, wrong[answered].sum() + 1, (~wrong[answered]).sum()) <= max_error + 1e-9


@settings(max_examples=60, derandomize=True, deadline=None)
@given(rows=rows(), seed=st.integers(0, 2**32))
def test_the_order_of_the_rows_changes_nothing(rows: Rows, seed: int) -> None:
    uncertainty, wrong = rows
    order = np.random.default_rng(seed).permutation(len(wrong))
    assert certify(uncertainty[order], wrong[order], max_error=0.05) == certify(uncertainty, wrong, max_error=0.05)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(rows=rows())
def test_only_the_order_of_the_uncertainties_counts(rows: Rows) -> None:
    uncertainty, wrong = rows
    stretched = certify(np.sqrt(uncertainty) / 2, wrong, max_error=0.05)
    plain = certify(uncertainty, wrong, max_error=0.05)
    assert stretched.coverage == plain.coverage
    assert stretched.threshold == (None if plain.threshold is None else math.sqrt(plain.threshold) / 2)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(rows=rows(), place=st.integers(0, 599))
def test_one_more_wrong_answer_never_lets_more_be_answered(rows: Rows, place: int) -> None:
    uncertainty, wrong = rows
    worse = wrong.copy()
    worse[place % len(wrong)] = True
    assert certify(uncertainty, worse, max_error=0.05).coverage <= certify(uncertainty, wrong, max_error=0.05).coverage


def test_where_every_answer_is_right_every_request_is_answered() -> None:
    found = certify([0.2, 0.9, 0.5] * 20, [False] * 60, max_error=0.05)
    assert (found.threshold, found.coverage, found.error, found.floor) == (0.9, 1, 0, 0)


def test_too_few_rows_report_the_required_number() -> None:
    found = certify([0.1] * 59, [False] * 59, max_error=0.05)
    assert found.threshold is None
    assert found.reason == "59 rows are too few: it takes 60, even where no answer is wrong"
    # It doesn't take them all to be right: by the rule of succession one in 61 is wrong.
    assert found.rows_needed is not None
    assert found.rows_needed > 1


def test_random_score_reports_its_errors_and_no_required_number() -> None:
    wrong = np.random.default_rng(0).random(1000) < 0.3
    found = certify(np.linspace(0, 1, 1000), wrong, max_error=0.05)
    assert found.threshold is None
    assert found.reason.startswith("of the 80 surest of 1000 answers ")
    assert found.reason.endswith("are wrong, at most 0 may be")
    assert found.rows_needed is None
    assert found.floor == pytest.approx((wrong.mean() - 0.05) / 0.95)


def test_a_start_that_passes_where_no_threshold_does_is_said_to_be_that() -> None:
    found = certify(np.linspace(0, 1, 60), np.arange(60) == 59, max_error=0.05)
    assert found.threshold is None
    assert found.reason == (
        "of the 59 surest of 60 answers 0 are wrong, few enough, "
        "but with all answers of the next uncertainty too many are"
    )


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    count=st.integers(1, 400),
    min_coverage=st.floats(0.01, 0.99),
    confidence=st.floats(0.5, 0.999),
    seed=st.integers(0, 2**32),
)
def test_coverage_threshold_is_the_smallest_rank_its_beta_quantile_allows(
    count: int, min_coverage: float, confidence: float, seed: int
) -> None:
    """The share of requests below the k-th of n uncertainties is Beta(k, n - k + 1) distributed."""
    uncertainty = np.random.default_rng(seed).random(count)
    found = certify(uncertainty, uncertainty > 0.5, min_coverage=min_coverage, confidence=confidence)
    ranks = np.arange(1, count + 1)
    enough = np.flatnonzero(beta.cdf(min_coverage, ranks, count - ranks + 1) <= 1 - confidence)
    if found.threshold is None:
        assert not len(enough)
        assert found.rows_needed is not None
        least = count + found.rows_needed
        assert min_coverage**least <= 1 - confidence + 1e-12
        assert min_coverage ** (least - 1) > 1 - confidence - 1e-12
    else:
        assert found.threshold == np.sort(uncertainty)[enough[0]]
        assert found.coverage == (enough[0] + 1) / count
        assert found.floor is None


def test_ties_only_add_to_a_promised_coverage() -> None:
    found = certify([0.1] * 50 + [0.7] * 50, [False] * 100, min_coverage=0.4)
    assert (found.threshold, found.coverage) == (0.1, 0.5)


def test_reviews_an_hour_are_a_coverage_at_the_traffic_that_is_expected() -> None:
    uncertainty, wrong = np.linspace(0, 1, 500), np.linspace(0, 1, 500) > 0.8
    reviews = certify(uncertainty, wrong, max_reviews_per_hour=20.0, requests_per_hour=400.0)
    coverage = certify(uncertainty, wrong, min_coverage=0.95)
    assert (reviews.kind, reviews.bound) == ("max_reviews_per_hour", 20)
    assert reviews.threshold == coverage.threshold
    assert 400 * (1 - reviews.coverage) < 20


def test_a_certificate_is_json() -> None:
    found = certify([0.5], [True], max_error=0.05)
    assert Certificate(**json.loads(json.dumps(found.to_dict()))) == found


NAN = float("nan")
GOOD: dict[str, Any] = {"uncertainty": [0.1, 0.2], "wrong": [False, True], "max_error": 0.05}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uncertainty": [0.1, NAN]}, r"uncertainties lie between 0 and 1; 1 don't, row 1 is .*nan"),
        ({"uncertainty": [-0.1, 0.2]}, r"row 0 is .*-0\.1"),
        ({"uncertainty": [0.1, 1.1]}, r"row 1 is .*1\.1"),
        ({"uncertainty": np.array(["a", "b"])}, "the uncertainties aren't numbers"),
        ({"uncertainty": np.zeros((2, 1))}, r"one number a row, got the shape \(2, 1\)"),
        ({"uncertainty": [0.1]}, "1 uncertainties but 2 outcomes"),
        ({"uncertainty": [], "wrong": []}, "no calibration rows"),
        ({"wrong": np.array([0.5, 1.0])}, r"outcomes are true \(wrong\) or false; 1 aren't, row 0 is .*0\.5"),
        ({"wrong": np.array([NAN, 1.0])}, "row 0 is .*nan"),
        ({"wrong": np.array([["x"]])}, r"one a row, got the shape \(1, 1\)"),
        ({"wrong": np.array(["no", "yes"])}, "row 0 is .*no"),
        ({"max_error": 0.0}, r"max_error must lie between 0 and 1, got 0\.0"),
        ({"max_error": 1.0}, r"max_error must lie between 0 and 1, got 1\.0"),
        ({"max_error": NAN}, "max_error must lie between 0 and 1, got nan"),
        ({"max_error": None, "min_coverage": 1.5}, r"min_coverage must lie between 0 and 1, got 1\.5"),
        ({"confidence": 1.0}, r"confidence must lie between 0 and 1, got 1\.0"),
        ({"confidence": NAN}, "confidence must lie between 0 and 1, got nan"),
        ({"max_error": None}, r"certified at a time, got \[\]"),
        ({"min_coverage": 0.5}, r"certified at a time, got \['max_error', 'min_coverage'\]"),
        ({"requests_per_hour": 5.0}, r"requests_per_hour=5\.0 belongs to max_reviews_per_hour, not max_error"),
        ({"max_error": None, "max_reviews_per_hour": 5.0}, r"must lie between 0 and requests_per_hour=None"),
        (
            {"max_error": None, "max_reviews_per_hour": 5.0, "requests_per_hour": 5.0},
            r"max_reviews_per_hour=5\.0 must lie between 0 and requests_per_hour=5\.0",
        ),
        ({"max_error": None, "max_reviews_per_hour": -1.0, "requests_per_hour": 5.0}, r"max_reviews_per_hour=-1\.0"),
        ({"max_error": None, "max_reviews_per_hour": 1.0, "requests_per_hour": math.inf}, "requests_per_hour=inf"),
    ],
)
def test_invalid_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    certify(**GOOD)
    with pytest.raises(ScoringError, match=message):
        certify(**GOOD | changes)


DRAWS = 1000


def most(risk: float) -> int:
    """Of `DRAWS`, so many violations or fewer come from a test that keeps its risk, but for one time in 10,000."""
    return int(binom.ppf(1 - 1e-4, DRAWS, risk))


def treacherous(random: np.random.Generator, rows: int) -> Rows:
    """The hardest case: right up to 0.4, then wrong until exactly 5 % of the answered are; from there on ever worse.

    The error rate of answering up to t crosses the bound at t = 0.4 / 0.95, once.
    """
    uncertainty = random.random(rows)
    return uncertainty, uncertainty > 0.4


def first_wrong(random: np.random.Generator, rows: int) -> Rows:
    """The surest 2 % are wrong half the time; the rate comes down to 5 % at 0.2, and up to it again from there on."""
    uncertainty = random.random(rows)
    rate = np.select([uncertainty < 0.02, uncertainty < 0.5], [0.5, 0.0], 1.0)
    return uncertainty, random.random(rows) < rate


def coarse(random: np.random.Generator, rows: int) -> Rows:
    """Ten values; the first is wrong one time in 20 and a little more: nothing may be answered."""
    uncertainty = np.ceil(random.random(rows) * 10) / 10
    return uncertainty, random.random(rows) < 0.0501 + 0.9 * (uncertainty > 0.1)


def even(random: np.random.Generator, rows: int) -> Rows:
    """The score says nothing, and one answer in 20 and a little more is wrong."""
    return random.random(rows), random.random(rows) < 0.0501


def error_rate(population: str, threshold: float) -> float:
    """P(wrong | answered) in closed form."""
    if population == "treacherous":
        return max(0.0, threshold - 0.4) / threshold
    if population == "first_wrong":
        return (0.5 * min(threshold, 0.02) + max(0.0, threshold - 0.5)) / threshold
    if population == "coarse":
        return 0.0501 + 0.9 * (threshold - 0.1) / threshold
    return 0.0501


POPULATIONS = {"treacherous": treacherous, "first_wrong": first_wrong, "coarse": coarse, "even": even}


@pytest.fixture
def without_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """No estimate of how many more rows would do, which takes most of the time and decides nothing."""
    monkeypatch.setattr(risk_control, "enough_rows", lambda *_: None)


@pytest.mark.parametrize("rows_drawn", [100, 1000])
@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.usefixtures("without_advice")
def test_the_promise_is_broken_no_more_often_than_promised(population: str, rows_drawn: int) -> None:
    random = np.random.default_rng(rows_drawn)
    broken = 0
    for _ in range(DRAWS):
        found = certify(*POPULATIONS[population](random, rows_drawn), max_error=0.05, confidence=0.9)
        broken += found.threshold is not None and error_rate(population, found.threshold) > 0.05
    assert broken <= most(0.1)


def test_the_simulation_catches_a_method_that_looks_at_every_threshold() -> None:
    """The largest of all thresholds whose own bound keeps the promise breaks it: so the test above can fail."""
    random = np.random.default_rng(0)
    broken = 0
    for _ in range(DRAWS):
        uncertainty, wrong = even(random, 400)
        so_far = np.cumsum(wrong[np.argsort(uncertainty)])
        broken += bool(np.any(binom.cdf(so_far, np.arange(1, 401), 0.05) <= 0.1))
    assert broken > most(0.1)


def test_the_risk_is_used_up_nearly_where_the_population_is_treacherous() -> None:
    """A bound that is never reached would be paid for in coverage."""
    random = np.random.default_rng(1)
    thresholds = [certify(*treacherous(random, 2000), max_error=0.05, confidence=0.9).threshold for _ in range(DRAWS)]
    broken = sum(found is not None and error_rate("treacherous", found) > 0.05 for found in thresholds)
    assert broken >= 0.05 * DRAWS


def test_promised_coverage_holds_at_the_stated_confidence() -> None:
    random = np.random.default_rng(2)
    broken = 0
    for _ in range(DRAWS):
        uncertainty = random.random(500)
        found = certify(uncertainty, uncertainty > 1, min_coverage=0.8, confidence=0.9)
        assert found.threshold is not None
        broken += found.threshold < 0.8
    assert 0.06 * DRAWS <= broken <= most(0.1)


@pytest.mark.parametrize("slope", [0.3, 0.5])
def test_reported_number_of_missing_rows_usually_suffices(slope: float) -> None:
    """Where 100 rows certify nothing, the number that they say they lack does, mostly."""
    random = np.random.default_rng(3)

    def draw(rows: int) -> Rows:
        uncertainty = random.random(rows)
        return uncertainty, random.random(rows) < slope * uncertainty**2

    lacking = [found for _ in range(300) if (found := certify(*draw(100), max_error=0.05)).threshold is None]
    told = [100 + found.rows_needed for found in lacking if found.rows_needed is not None]
    assert len(told) > 100
    did = np.mean([certify(*draw(rows), max_error=0.05).threshold is not None for rows in told])
    assert did > 0.6
