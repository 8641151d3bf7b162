"""The calibration map that a fit finds."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ilis_guard.errors import FitError
from ilis_guard.lab import fit as module


def scored(a: float, b: float) -> tuple[np.ndarray, np.ndarray]:
    """Raw scores and outcomes that follow beta calibration with these slopes."""
    random = np.random.default_rng(0)
    raw = random.uniform(0.02, 0.98, 4000)
    return raw, random.random(4000) < 1 / (1 + np.exp(-(a * np.log(raw) - b * np.log(1 - raw))))


def test_calibration_finds_the_map_that_made_the_outcomes() -> None:
    calibration = module.calibrate(*scored(2.0, 0.5))
    assert (calibration.a, calibration.b, calibration.c) == pytest.approx((2.0, 0.5, 0), abs=0.2)


@pytest.mark.parametrize(("slopes", "kept"), [((3.0, -0.5), 0), ((-0.5, 3.0), 1)])
def test_a_calibration_term_that_turns_the_order_is_left_out(slopes: tuple[float, float], kept: int) -> None:
    raw, wrong = scored(*slopes)
    calibration = module.calibrate(raw, wrong)
    term = (np.log(raw), -np.log(1 - raw))[kept]
    alone = LogisticRegression(C=1e6).fit(term[:, None], wrong)
    assert (calibration.a, calibration.b)[1 - kept] == 0
    assert (calibration.a, calibration.b)[kept] == pytest.approx(alone.coef_[0, 0], rel=1e-3)
    assert calibration.c == pytest.approx(alone.intercept_[0], rel=1e-2)


def test_a_score_that_ranks_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(FitError, match="wrong way round"):
        module.calibrate(*scored(-1.0, -1.0))


def test_with_two_parameters_it_is_a_logistic_regression_on_log_odds() -> None:
    raw, wrong = scored(1.5, 1.5)
    calibration = module.calibrate(raw, wrong, terms=2)
    alone = LogisticRegression(C=1e6).fit(np.log(raw / (1 - raw))[:, None], wrong)
    assert calibration.a == calibration.b == pytest.approx(alone.coef_[0, 0], rel=1e-6)
    assert calibration.c == pytest.approx(alone.intercept_[0], rel=1e-6)
    with pytest.raises(FitError, match="wrong way round"):
        module.calibrate(*scored(-1.0, -1.0), terms=2)
