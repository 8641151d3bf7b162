"""Reading: the signatures and statistics of an answer that already exists, each token passing the model once."""

import inspect
from collections.abc import Collection, Sequence
from typing import Any, Final

import torch

from ilis_guard.errors import SignatureError
from ilis_guard.signature.layout import TapPoint
from ilis_guard.signature.recorder import AnswerTokens, Recording
from ilis_guard.signature.running import RunningMaps, RunningStatistics, next_token_numbers
from ilis_guard.signature.tap import Tap

PIECE: Final = 64
"""Answer tokens a pass. A longer answer is read on through the key-value cache, so that memory doesn't grow with it."""


def read(
    model: Any,
    points: Sequence[TapPoint],
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    special_tokens: Collection[int],
    temperature: float,
    cut: bool = False,
    every_token: bool = False,
) -> Recording:
    """What generating this answer greedily would have shown.

    Args:
        model: a causal language model of transformers.
        points: its taps.
        prompt: token ids, at least one.
        answer: token ids without the end token, at least one.
        special_tokens: they are no part of an answer.
        temperature: of the maps' softmax.
        cut: the answer was cut off at its length limit, so that its last token has no map.
        every_token: keep the map of each token.

    Raises:
        SignatureError: an activation is missing or not finite, or there is no prompt or no answer.
    """
    if not prompt or not answer:
        raise SignatureError(f"a prompt and an answer are read together, got {len(prompt)} and {len(answer)} tokens")
    fed = list(answer[:-1] if cut else answer)
    statistics, tokens = RunningStatistics(1), AnswerTokens((), special_tokens)
    counted = tokens.add(torch.tensor(answer)[:, None])
    maps: RunningMaps | None = None
    cache = None
    with torch.inference_mode():
        for start in range(0, max(1, len(fed)), PIECE):
            piece = fed[start : start + PIECE]
            # In the first pass the prompt comes before, and its last token has a map and a distribution too.
            kept = len(piece) + (maps is None)
            ids = torch.tensor([[*(prompt if maps is None else ()), *piece]], device=model.device)
            with Tap(points, newest=kept) as tap:
                output = model(input_ids=ids, past_key_values=cache, use_cache=True, **_keep(model, kept))
                activations = tap.take()[0]
            cache = output.past_key_values
            logits = output.logits[0, -kept:]
            if maps is None:
                maps = RunningMaps(activations[:, 0], temperature, every_token=every_token)
                before, activations, logits = logits[:1], activations[:, 1:], logits[1:]
            if activations.shape[1]:
                maps.add(activations.transpose(0, 1), counted[start : start + activations.shape[1]])
            # Each token was drawn from what came out at the one before; a cut answer's last one was drawn and not fed.
            is_last = start + PIECE >= len(fed)
            drawn = answer[start:] if is_last else piece
            distributions = torch.cat([before, logits])
            before = distributions[-1:]
            numbers = next_token_numbers(distributions[: len(drawn)], torch.tensor(drawn))
            # As many rows as there are tokens: the distributions are a batch's, the sums those of one row.
            statistics.add(numbers.T[:, :, None], counted[start:][: len(drawn)])
    assert maps is not None, "there is at least one pass"
    return Recording(
        signatures=maps.signatures(0),
        statistics=statistics.statistics(0),
        tokens=int(tokens.count[0]),
        ended=not cut,
        token_maps=maps.of_tokens(0),
    )


def _keep(model: Any, positions: int) -> dict[str, int]:
    """Logits of the newest positions only: those of a whole prompt may take gigabytes."""
    return {"logits_to_keep": positions} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
