"""Scores that need no labels: what an answer's own pass says of it, all of them higher for more uncertain."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerNumbers:
    """What was seen when an answer's tokens were drawn. At least one token; special tokens are none of them."""

    logprobs: Float64[np.ndarray, " tokens"]
    """Log-probability of each token, nats."""
    entropies: Float64[np.ndarray, " tokens"]
    """Entropy of the distribution that it was drawn from, nats."""
    margins: Float64[np.ndarray, " tokens"]
    """Gap between the two largest probabilities of that distribution."""
    from_uniform: Float64[np.ndarray, " tokens"]
    """KL(uniform || that distribution), nats."""
    attention: Float32[np.ndarray, "layers heads later_tokens"]
    """Of each token but the first, in the layers of `rauq_layers`: the weight on the token before, as it was drawn."""


def neg_logprob_sum(numbers: AnswerNumbers) -> float:
    """``-sum_i ln p_i``: how improbable the whole answer was; what lm-polygraph calls maximum sequence probability."""
    return float(-numbers.logprobs.sum())


def perplexity(numbers: AnswerNumbers) -> float:
    """``-(1/N) sum_i ln p_i``, the logarithm of the perplexity (Fomicheva et al., 2020, arXiv:2005.10608)."""
    return float(-numbers.logprobs.mean())


def entropy_mean(numbers: AnswerNumbers) -> float:
    """``(1/N) sum_i H_i``, the mean token entropy (Fomicheva et al., 2020, arXiv:2005.10608)."""
    return float(numbers.entropies.mean())


def margin(numbers: AnswerNumbers) -> float:
    """``1 - min_i (p_i(1) - p_i(2))``: how near to a tie the likeliest two tokens came (margin, Scheffer et al., 2001).

    The smallest over the answer, as in the harvest's statistics.
    """
    return float(1 - numbers.margins.min())


def self_certainty(numbers: AnswerNumbers) -> float:
    """``-(1/N) sum_i KL(U || p_i)``, with ``KL(U || p) = -ln V - (1/V) sum_v ln p(v)`` over a vocabulary of V.

    Kang, Zhao and Song (2025, arXiv:2502.18581) call the mean divergence self-certainty: high where the model is sure,
    so that here it has the minus sign.
    """
    return float(-numbers.from_uniform.mean())


def rauq(numbers: AnswerNumbers, alpha: float) -> float:
    """Recurrent attention-based uncertainty (Vazhentsev et al., 2025, arXiv:2505.20045).

    In each layer of the middle third, of the head that looks most at the token before,
    ``h* = argmax_h mean_i a_h(i, i-1)``:

        c_1 = p_1;   c_i = alpha p_i + (1 - alpha) a_h*(i, i-1) c_(i-1);   u_l = -(1/N) sum_i ln c_i

    and of all layers the largest ``u_l``. ``a(i, i-1)`` is the weight on token i-1 in the pass that token i is drawn
    from. That pass is token i-1's own, so it is the weight of its query on its own key: so it is in the authors' code.
    """
    probabilities = np.exp(numbers.logprobs)
    if len(probabilities) == 1:  # with no token before, each layer says the same
        return float(-numbers.logprobs[0])
    heads = numbers.attention.mean(axis=-1, dtype=np.float64).argmax(axis=-1)
    weights = numbers.attention[np.arange(len(heads)), heads].astype(np.float64)
    confidence = np.full(len(heads), probabilities[0])
    logarithms = np.log(confidence)
    for probability, weight in zip(probabilities[1:], weights.T, strict=True):
        confidence = alpha * probability + (1 - alpha) * weight * confidence
        logarithms = logarithms + np.log(confidence)
    return float((-logarithms / len(probabilities)).max())


def rauq_layers(layers: int) -> range:
    """The middle third, both ends included, as the authors take it: ``L // 3`` to ``ceil(2 L / 3)``, counted from 0."""
    return range(layers // 3, min(layers, -(-2 * layers // 3) + 1))


RAUQ_ALPHA: Final[Mapping[bool, float]] = {False: 0.2, True: 0.5}
"""By whether the model is a chat model: the authors' settings."""

Score = Callable[[AnswerNumbers], float]


def scores(*, is_chat: bool) -> Mapping[str, Score]:
    """By name, every score that comes from an answer's own pass."""
    alpha = RAUQ_ALPHA[is_chat]
    return {
        "neg_logprob_sum": neg_logprob_sum,
        "perplexity": perplexity,
        "entropy_mean": entropy_mean,
        "margin": margin,
        "self_certainty": self_certainty,
        "rauq": lambda numbers: rauq(numbers, alpha),
    }
