import warnings

import numpy as np
import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from ilis_guard.scoring.calibration import BetaCalibration, calibration_terms

scores = st.floats(0, 1)
slopes = st.floats(0, 1e300)
offsets = st.floats(-1e300, 1e300)


def test_beta_calibration_equals_logistic_regression_on_both_logarithms() -> None:
    random = np.random.default_rng(0)
    raw = random.random(400)
    model = LogisticRegression().fit(np.column_stack([np.log(raw), -np.log(1 - raw)]), random.random(400) < raw)
    (a, b), c = model.coef_[0], model.intercept_[0]
    expected = model.predict_proba(np.column_stack([np.log(raw), -np.log(1 - raw)]))[:, 1]
    np.testing.assert_allclose(BetaCalibration(a=a, b=b, c=c).apply(raw), expected, rtol=1e-9)


def test_one_one_zero_leaves_scores_as_they_are() -> None:
    raw = np.linspace(0.001, 0.999, 50)
    np.testing.assert_allclose(BetaCalibration(a=1, b=1, c=0).apply(raw), raw, rtol=1e-12)


def test_a_lifts_low_scores_least_and_b_pushes_high_ones_most() -> None:
    raw = np.array([0.01, 0.5, 0.99])
    only_a, only_b = BetaCalibration(a=2, b=0, c=0).apply(raw), BetaCalibration(a=0, b=2, c=0).apply(raw)
    np.testing.assert_allclose(only_a / (1 - only_a), raw**2, rtol=1e-9)
    np.testing.assert_allclose(only_b / (1 - only_b), (1 - raw) ** -2.0, rtol=1e-9)


@given(low=scores, high=scores, a=slopes, b=slopes, c=offsets)
def test_calibrated_score_is_a_probability_and_keeps_the_order(
    low: float, high: float, a: float, b: float, c: float
) -> None:
    low, high = sorted((low, high))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = BetaCalibration(a=a, b=b, c=c).apply(np.array([low, high])).tolist()
    assert 0 <= first <= 1
    assert 0 <= second <= 1
    # The logarithms are exact to a unit in the last place, not more.
    assert first <= second + 1e-12


def test_a_higher_score_gets_a_higher_probability() -> None:
    calibrated = BetaCalibration(a=0.5, b=0.5, c=1).apply(np.linspace(0.01, 0.99, 99))
    assert (np.diff(calibrated) > 0).all()


def test_the_edges_are_finite() -> None:
    for terms in calibration_terms(np.array([0.0, 1.0])):
        assert np.isfinite(terms).all()
    low, high = BetaCalibration(a=1, b=1, c=0).apply(np.array([0.0, 1.0]))
    assert 0 < low < 1e-5
    assert 1 - 1e-5 < high < 1


@pytest.mark.parametrize(
    "wrong", [{"a": -1e-9}, {"b": -1e-9}, {"a": float("nan")}, {"b": float("inf")}, {"c": float("-inf")}, {"d": 0.0}]
)
def test_decreasing_or_non_finite_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        BetaCalibration.model_validate({"a": 1.0, "b": 1.0, "c": 0.0} | wrong)
