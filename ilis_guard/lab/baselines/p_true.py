"""P(True): the model is shown a question and its own answer, and asked whether it is true (Kadavath et al., 2022)."""

from typing import Any, Final

import numpy as np
from jaxtyping import Float64

from ilis_guard.config.tiers import QUESTION
from ilis_guard.errors import ModelError
from ilis_guard.models.prompts import PromptTemplate

CHAT: Final = f"{QUESTION}\nIs the proposed answer true? Answer with one word only, True or False."
BASE: Final = (
    "Question: What is the capital of Italy?\nProposed answer: Rome\nThe proposed answer is: True\n\n"
    "Question: What is 3 plus 4?\nProposed answer: 8\nThe proposed answer is: False\n\n"
    f"{QUESTION}\nThe proposed answer is:"
)
"""A base model needs to see how it is done; one example of each."""
TRUE: Final = ("True", " True")
FALSE: Final = ("False", " False")


def template(tokenizer: Any) -> PromptTemplate:
    """The wording around a question and its answer, for a chat model or a base model."""
    is_chat = tokenizer.chat_template is not None
    return PromptTemplate(text=CHAT if is_chat else BASE, chat_template=tokenizer.chat_template)


def proposal(question: str, answer: str) -> str:
    """What is judged."""
    return f"Question: {question}\nProposed answer: {answer}"


def verdict_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that "true" and that "false" may begin with, with and without a space before them.

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


def share_of_false(
    true: Float64[np.ndarray, "rows true"], false: Float64[np.ndarray, "rows false"]
) -> Float64[np.ndarray, " rows"]:
    """``1 - P(True)``, with ``P(True) = p(true) / (p(true) + p(false))`` summed over their tokens.

    Args:
        true: log-probabilities of the tokens for "true".
        false: of those for "false".
    """
    difference = np.logaddexp.reduce(true, axis=1) - np.logaddexp.reduce(false, axis=1)
    share: Float64[np.ndarray, " rows"] = np.exp(-np.logaddexp(0, difference))
    return share
