"""Scores that need no labels, from an answer's own forward pass; all are higher for more uncertain answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64

from ilis_guard.config.tiers import QUESTION
from ilis_guard.errors import ModelError
from ilis_guard.models.prompts import PromptTemplate

P_TRUE_CHAT: Final = f"{QUESTION}\nIs the proposed answer true? Answer with one word only, True or False."
P_TRUE_BASE: Final = (
    "Question: What is the capital of Italy?\nProposed answer: Rome\nThe proposed answer is: True\n\n"
    "Question: What is 3 plus 4?\nProposed answer: 8\nThe proposed answer is: False\n\n"
    f"{QUESTION}\nThe proposed answer is:"
)
"""A base model needs an example of each verdict."""
TRUE: Final = ("True", " True")
FALSE: Final = ("False", " False")
RAUQ_ALPHA: Final[Mapping[bool, float]] = {False: 0.2, True: 0.5}
"""The authors' settings, by whether the model is a chat model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStatistics:
    """Statistics of an answer's tokens, of which there is at least one; special tokens are left out."""

    logprobs: Float64[np.ndarray, " tokens"]
    """Log-probability of each token, nats."""
    entropies: Float64[np.ndarray, " tokens"]
    """Entropy of the distribution that each was drawn from, nats."""
    margins: Float64[np.ndarray, " tokens"]
    """Gap between the two largest probabilities of that distribution."""
    from_uniform: Float64[np.ndarray, " tokens"]
    """KL(uniform || that distribution), nats."""
    attention: Float32[np.ndarray, "layers heads later_tokens"]
    """Of each token but the first, in the layers of `rauq_layers`: its weight on the previous token when drawn."""
    information: Float32[np.ndarray, " layers"]
    """Of the first token, through the logit lens: its log-probability at each layer less that without the question."""


def neg_logprob_sum(of: TokenStatistics) -> float:
    """``-sum_i ln p_i``: how improbable the whole answer was; what lm-polygraph calls maximum sequence probability."""
    return float(-of.logprobs.sum())


def perplexity(of: TokenStatistics) -> float:
    """``-(1/N) sum_i ln p_i``, the logarithm of the perplexity (Fomicheva et al., 2020, arXiv:2005.10608)."""
    return float(-of.logprobs.mean())


def entropy_mean(of: TokenStatistics) -> float:
    """``(1/N) sum_i H_i``, the mean token entropy (Fomicheva et al., 2020, arXiv:2005.10608)."""
    return float(of.entropies.mean())


def margin(of: TokenStatistics) -> float:
    """``1 - min_i (p_i(1) - p_i(2))``: how near to a tie the likeliest two tokens came (margin, Scheffer et al., 2001).

    The smallest over the answer, as in the harvest's statistics.
    """
    return float(1 - of.margins.min())


def self_certainty(of: TokenStatistics) -> float:
    """``-(1/N) sum_i KL(U || p_i)``, with ``KL(U || p) = -ln V - (1/V) sum_v ln p(v)`` over a vocabulary of V.

    Kang, Zhao and Song (2025, arXiv:2502.18581) call the mean divergence self-certainty. It is high where the model is
    sure, hence the minus sign here.
    """
    return float(-of.from_uniform.mean())


def rauq(of: TokenStatistics, alpha: float) -> float:
    """Recurrent attention-based uncertainty (Vazhentsev et al., 2025, arXiv:2505.20045).

    In each layer of the middle third, of the head that attends most to the previous token,
    ``h* = argmax_h mean_i a_h(i, i-1)``:

        c_1 = p_1;   c_i = alpha p_i + (1 - alpha) a_h*(i, i-1) c_(i-1);   u_l = -(1/N) sum_i ln c_i

    and of all layers the largest ``u_l``. ``a(i, i-1)`` is the weight on token i-1 in the pass that token i is drawn
    from. That pass is token i-1's own, so it is the weight of its query on its own key: so it is in the authors' code.
    """
    probabilities = np.exp(of.logprobs)
    if len(probabilities) == 1:  # without a previous token, all layers agree
        return float(-of.logprobs[0])
    heads = of.attention.mean(axis=-1, dtype=np.float64).argmax(axis=-1)
    weights = of.attention[np.arange(len(heads)), heads].astype(np.float64)
    confidence = np.full(len(heads), probabilities[0])
    logarithms = np.log(confidence)
    for probability, weight in zip(probabilities[1:], weights.T, strict=True):
        confidence = alpha * probability + (1 - alpha) * weight * confidence
        logarithms = logarithms + np.log(confidence)
    return float((-logarithms / len(probabilities)).max())


def layer_information(of: TokenStatistics) -> float:
    """``-sum_l (ln p_l(y | x) - ln p_l(y))``: how little the question tells the layers of the answer.

    Layer-wise information is what an input adds, at each layer, to a model's predictive (V-)information about what it
    says: ``LI = sum_l (H_l(y | no input) - H_l(y | x))`` with ``H_l = -log p_l`` of the token that was drawn, and
    ``p_l`` the residual stream of layer l read through final norm and unembedding (Kim et al., 2025,
    arXiv:2412.10246, who have it of a question's tokens given a context). Wang et al. (2026, arXiv:2604.16217) take
    it of answers given questions, unsupervised, as the nonconformity score of split conformal prediction. Both are
    known here by abstracts and by what others write of them, so these are our choices: y is the answer's first token,
    since an unembedding at every layer for every token would cost more than the pass; an input that is missing is the
    tier's prompt with an empty question and no earlier turns, as V-information has it; all layers count alike; and
    nats instead of bits, which changes no order. Less information is more uncertain, hence the minus sign.
    """
    return float(-of.information.sum(dtype=np.float64))


def rauq_layers(layers: int) -> range:
    """The middle third, both ends included, as the authors take it: ``L // 3`` to ``ceil(2 L / 3)``, counted from 0."""
    return range(layers // 3, min(layers, -(-2 * layers // 3) + 1))


def scores(*, is_chat: bool) -> Mapping[str, Callable[[TokenStatistics], float]]:
    """Return every score of an answer's own pass, by name."""
    alpha = RAUQ_ALPHA[is_chat]
    return {
        "neg_logprob_sum": neg_logprob_sum,
        "perplexity": perplexity,
        "entropy_mean": entropy_mean,
        "margin": margin,
        "self_certainty": self_certainty,
        "rauq": lambda of: rauq(of, alpha),
        "layer_information": layer_information,
    }


def p_true_template(tokenizer: Any) -> PromptTemplate:
    """Return the wording around a question and its answer, for a chat model or a base model."""
    is_chat = tokenizer.chat_template is not None
    return PromptTemplate(text=P_TRUE_CHAT if is_chat else P_TRUE_BASE, chat_template=tokenizer.chat_template)


def proposal(question: str, answer: str) -> str:
    """Format what the model judges."""
    return f"Question: {question}\nProposed answer: {answer}"


def verdict_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens that "true" and that "false" may begin with, with and without a leading space.

    Raises:
        ModelError: some token begins both.
    """
    true, false = (
        sorted({tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words}) for words in (TRUE, FALSE)
    )
    if set(true) & set(false):
        raise ModelError(
            f"P(True) can't be computed: in this tokenizer {TRUE!r} and {FALSE!r} begin with the same token, so that "
            "one token doesn't tell them apart"
        )
    return true, false


def p_false(
    true: Float64[np.ndarray, "rows true"], false: Float64[np.ndarray, "rows false"]
) -> Float64[np.ndarray, " rows"]:
    """Return ``1 - P(True)``, with ``P(True) = p(true) / (p(true) + p(false))`` summed over their tokens.

    Args:
        true: log-probabilities of the tokens for "true".
        false: of those for "false".
    """
    difference = np.logaddexp.reduce(true, axis=1) - np.logaddexp.reduce(false, axis=1)
    share: Float64[np.ndarray, " rows"] = np.exp(-np.logaddexp(0, difference))
    return share
