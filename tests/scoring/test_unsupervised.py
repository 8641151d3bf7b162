"""The score of an answer without a bundle: by its perplexity, which is no probability."""

import math

import pytest

from ilis_guard.errors import ScoringError
from ilis_guard.scoring.unsupervised import UnsupervisedScorer, surprise
from ilis_guard.types import Generation, Score, Statistics


def generation(logprob_mean: float | None) -> Generation:
    statistics = (
        None
        if logprob_mean is None
        else Statistics(logprob_sum=3 * logprob_mean, logprob_mean=logprob_mean, entropy_mean=math.nan, margin_min=0.1)
    )
    return Generation(text="Oslo", tokens=3, prompt_tokens=4, finish_reason="stop", seconds=0.1, statistics=statistics)


def test_a_less_probable_answer_is_more_surprising() -> None:
    assert surprise(generation(-0.25)) == 0.25
    assert surprise(generation(-2.0)) > surprise(generation(-0.25)) > surprise(generation(0.0))


def test_there_is_no_uncertainty_and_the_score_says_why() -> None:
    score = UnsupervisedScorer().score(generation(-0.25))
    assert math.isnan(score.uncertainty)
    assert (score.calibrated, score.departures) == (False, ("labels",))
    values = score.to_dict()
    assert (values["uncertainty"], values["rank"], values["departures"]) == (None, None, ["labels"])
    assert Score.read(values).to_dict() == values


def test_an_answer_without_log_probabilities_cant_be_ranked() -> None:
    with pytest.raises(ScoringError, match=r"came without log-probabilities \(3 answer tokens.*logprobs: true"):
        UnsupervisedScorer().score(generation(None))


@pytest.mark.parametrize("logprob_mean", [math.nan, math.inf, -math.inf])
def test_an_answer_with_a_broken_log_probability_cant_be_ranked(logprob_mean: float) -> None:
    with pytest.raises(ScoringError, match="its logprob_mean isn't finite"):
        UnsupervisedScorer().score(generation(logprob_mean))
