"""The score of a tier without a bundle: an output statistic, which ranks answers and is no probability."""

import math
from typing import Final

from ilis_guard.errors import ScoringError
from ilis_guard.types import Generation, Score, Statistic

STATISTIC: Final[Statistic] = "logprob_mean"
"""What answers are ranked by: the perplexity's logarithm, chosen by measurement (docs/scoring.md)."""


class UnsupervisedScorer:
    """Scores by the answer's perplexity alone. Without a labelled row there is no uncertainty, only a rank."""

    def score(self, generation: Generation) -> Score:
        """Score one generation: all that is known is why there is no uncertainty.

        Raises:
            ScoringError: as `surprise`.
        """
        surprise(generation)
        return Score(uncertainty=math.nan, typicality=math.nan, departures=("labels",))


def surprise(generation: Generation) -> float:
    """The logarithm of an answer's perplexity, nats a token; higher is more uncertain.

    Raises:
        ScoringError: the generation has no output statistics, or this one isn't finite.
    """
    if generation.statistics is None:
        raise ScoringError(
            f"the answer can't be ranked: it came without log-probabilities ({generation.tokens} answer tokens, finish "
            f"reason {generation.finish_reason!r}); have the model return them (of ChatOpenAI: logprobs: true)"
        )
    value = -float(getattr(generation.statistics, STATISTIC))
    if not math.isfinite(value):
        raise ScoringError(f"the answer can't be ranked: its {STATISTIC} isn't finite, got {-value!r}")
    return value
