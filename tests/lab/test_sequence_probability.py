import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from ilis_guard.lab.baselines.sequence_probability import fit_sequence_probability

SLOPE = 0.4


def answers(
    rows: int, *, length: float, intercept: float, seed: int, slope: float = SLOPE
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities about ``-length`` nats, and whether the answers are wrong by a logistic law."""
    random = np.random.default_rng(seed)
    logprob_sum = np.minimum(-length + 3 * random.standard_normal(rows), 0)
    return logprob_sum, random.random(rows) < expit(intercept - slope * logprob_sum)


def together(*sets: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names = np.repeat([f"set {index}" for index in range(len(sets))], [len(one[0]) for one in sets])
    return np.concatenate([one[0] for one in sets]), np.concatenate([one[1] for one in sets]), names


def pooled_slope(logprob_sum: np.ndarray, wrong: np.ndarray) -> float:
    return float(LogisticRegression().fit(-logprob_sum[:, None], wrong).coef_[0, 0])


# Long answers that are mostly right, short ones that are mostly wrong: pooled, an improbable answer looks right.
SHORT = {"length": 8.0, "intercept": 1.0 - SLOPE * 8}
LONG = {"length": 40.0, "intercept": -1.0 - SLOPE * 40}


def test_the_slope_within_datasets_is_found_where_pooling_turns_its_sign() -> None:
    logprob_sum, wrong, names = together(answers(3000, **SHORT, seed=1), answers(3000, **LONG, seed=2))
    assert pooled_slope(logprob_sum, wrong) < -0.03
    fitted = fit_sequence_probability(logprob_sum, wrong, names)
    assert fitted.slope == pytest.approx(SLOPE, abs=0.05)
    middle = (SHORT["intercept"] + LONG["intercept"]) / 2
    assert fitted.intercept == pytest.approx(middle, abs=1.0)


def test_as_many_answers_are_expected_to_be_wrong_as_are() -> None:
    random = np.random.default_rng(4)
    logprob_sum = np.concatenate([-random.gamma(2, 1, 300), -random.gamma(9, 2, 900)])
    wrong = random.random(1200) < np.repeat([0.2, 0.9], [300, 900])
    fitted = fit_sequence_probability(logprob_sum, wrong, np.repeat(["short", "long"], [300, 900]))
    expected = 1 / (1 + np.exp(-fitted.log_odds(logprob_sum)))
    assert expected.mean() == pytest.approx(wrong.mean(), abs=1e-6)


def test_neither_the_names_nor_the_order_of_rows_matter() -> None:
    logprob_sum, wrong, names = together(answers(400, **SHORT, seed=5), answers(300, **LONG, seed=6))
    fitted = fit_sequence_probability(logprob_sum, wrong, names)
    order = np.random.default_rng(7).permutation(len(names))
    renamed = np.where(names == "set 0", "z", "a")
    again = fit_sequence_probability(logprob_sum[order], wrong[order], renamed[order])
    assert again.slope == pytest.approx(fitted.slope, rel=1e-3)
    assert again.intercept == pytest.approx(fitted.intercept, rel=1e-3)


def test_one_dataset_gives_the_usual_logistic_regression() -> None:
    logprob_sum, wrong, names = together(answers(2000, length=12, intercept=-5, seed=8))
    usual = LogisticRegression(C=1e9).fit(-logprob_sum[:, None], wrong)
    fitted = fit_sequence_probability(logprob_sum, wrong, names)
    assert fitted.slope == pytest.approx(usual.coef_[0, 0], rel=0.02)
    assert fitted.intercept == pytest.approx(usual.intercept_[0], rel=0.02)


def test_where_improbable_answers_are_right_the_slope_is_zero() -> None:
    logprob_sum, wrong, names = together(answers(2000, length=12, intercept=5, slope=-0.4, seed=9))
    assert pooled_slope(logprob_sum, wrong) < -0.3
    assert fit_sequence_probability(logprob_sum, wrong, names).slope == 0


def test_where_the_slope_is_zero_the_intercept_tells_the_base_rate() -> None:
    logprob_sum, wrong, names = together(answers(2000, length=12, intercept=5, slope=-0.4, seed=9))
    fitted = fit_sequence_probability(logprob_sum, wrong, names)
    assert fitted.intercept == pytest.approx(logit(wrong.mean()), abs=0.05)


@pytest.mark.parametrize("value", [-7.0, 0.0])
def test_answers_that_are_all_as_probable_tell_the_base_rate(value: float) -> None:
    logprob_sum, wrong = np.full(1000, value), np.arange(1000) < 700
    fitted = fit_sequence_probability(logprob_sum, wrong, np.full(1000, "one"))
    assert fitted.log_odds(logprob_sum[:1])[0] == pytest.approx(logit(0.7), abs=0.01)


def test_a_dataset_with_wrong_answers_only_leaves_the_slope_alone() -> None:
    sets = [answers(2000, **SHORT, seed=10), answers(2000, **LONG, seed=11)]
    hopeless = (answers(500, length=20, intercept=0, seed=12)[0], np.ones(500, dtype=bool))
    without, with_it = (fit_sequence_probability(*together(*each)) for each in (sets, [*sets, hopeless]))
    assert with_it.slope == pytest.approx(without.slope, abs=0.02)
    assert np.isfinite(with_it.log_odds(hopeless[0])).all()


@pytest.mark.parametrize("length", [8.0, 50.0, 200.0])
def test_how_long_answers_of_one_dataset_are_does_not_move_the_slope(length: float) -> None:
    sets = [answers(1000, **SHORT, seed=20), answers(1000, **SHORT, seed=21)]
    longer = answers(1000, length=length, intercept=-SLOPE * length, seed=22)
    assert fit_sequence_probability(*together(*sets, longer)).slope == pytest.approx(SLOPE, abs=0.05)
