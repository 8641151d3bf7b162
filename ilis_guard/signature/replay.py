"""Reading: the signatures and statistics of an answer that already exists, each token passing the model once."""

import inspect
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

import torch

from ilis_guard.errors import SignatureError
from ilis_guard.signature.accumulators import RunningMaps, RunningStatistics, next_token_numbers
from ilis_guard.signature.layout import TapPoint
from ilis_guard.signature.recorder import AnswerTokens, Recording
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
        SignatureError: an activation is missing or not finite, there is no prompt or no answer, or the answer is long
            and the model doesn't give its cache back.
    """
    if not prompt or not answer:
        raise SignatureError(f"a prompt and an answer are read together, got {len(prompt)} and {len(answer)} tokens")
    fed = list(answer[:-1] if cut else answer)
    statistics, tokens = RunningStatistics(1), AnswerTokens((), special_tokens)
    counted = tokens.add(torch.tensor(answer)[:, None])
    maps: RunningMaps | None = None
    cache = None
    with torch.inference_mode():
        for start, end in _pieces(model, len(fed)):
            piece = fed[start:end]
            # In the first pass the prompt comes before, and its last token has a map and a distribution too.
            kept = len(piece) + (maps is None)
            ids = torch.tensor([[*(prompt if maps is None else ()), *piece]], device=model.device)
            with Tap(points, newest=kept) as tap:
                output = model(
                    input_ids=ids,
                    past_key_values=cache,
                    use_cache=True,
                    **_asked(model, kept, len(prompt) + start, cache),
                )
                activations = tap.take()[0]
            is_last = end >= len(fed)
            cache = getattr(output, "past_key_values", None)
            if cache is None and not is_last:
                raise SignatureError(
                    f"an answer of {len(answer)} tokens can't be read: {type(model).__name__} doesn't give its cache "
                    f"back, so that only answers of up to {PIECE} tokens can"
                )
            logits = output.logits[0, -kept:]
            if maps is None:
                maps = RunningMaps(activations[:, 0], temperature, every_token=every_token)
                before, activations, logits = logits[:1], activations[:, 1:], logits[1:]
            if activations.shape[1]:
                maps.add(activations.transpose(0, 1), counted[start : start + activations.shape[1]])
            # Each token was drawn from what came out at the one before; a cut answer's last one was drawn and not fed.
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


def _pieces(model: Any, tokens: int) -> Iterator[tuple[int, int]]:
    """Start and end of what is fed in each pass."""
    yield 0, min(PIECE, tokens)
    # Some state spaces of transformers (Bamba, Jamba) begin anew with every pass of several tokens.
    step = 1 if getattr(model, "_is_stateful", False) else PIECE
    for start in range(PIECE, tokens, step):
        yield start, min(start + step, tokens)


def _asked(model: Any, kept: int, start: int, cache: Any) -> dict[str, Any]:
    """What else this model takes."""
    taken = inspect.signature(model.forward).parameters
    asked: dict[str, Any] = {}
    if "logits_to_keep" in taken:  # those of a whole prompt may take gigabytes
        asked["logits_to_keep"] = kept
    if "position_ids" in taken and cache is not None:  # Bamba doesn't ask its cache where it is
        asked["position_ids"] = torch.arange(start, start + kept, device=model.device)[None]
    return asked
