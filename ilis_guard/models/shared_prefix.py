"""Shared prefixes: the tokens with which all prompts of a batch begin pass through the model once."""

import inspect
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Final

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

WORTHWHILE: Final = 64
"""Passes of single tokens that sharing must save: below, the pass of its own costs more than it spares."""


def shared_prefix(prompts: Sequence[Sequence[int]], newest: int = 1) -> list[int]:
    """Return the tokens with which all prompts begin, without the newest of any.

    Empty where too few passes would be saved.
    """
    columns = zip(*(prompt[:-newest] for prompt in prompts), strict=False)  # as many as the shortest has
    prefix = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    return prefix if len(prefix) * (len(prompts) - 1) >= WORTHWHILE else []


def prefill(model: Any, prompts: Sequence[Sequence[int]], cache: DynamicCache, *, newest: int = 1) -> None:
    """Fill a batch's cache with the prompts' shared prefix, if it is worthwhile.

    What goes in afterwards has the same layout as without it, so that positions, windows and masks are the same: rows
    are padded on the left, and the first columns of a shorter one hold its padding, with keys that nothing attends to.

    Args:
        model: a causal language model of transformers, with its taps removed: nothing of this pass is recorded.
        prompts: of the batch.
        cache: empty, and of this model; it stays empty where a layer keeps less than the whole prefix.
        newest: how many tokens of each row go in afterwards, at least: what is recorded of them.
    """
    prefix = shared_prefix(prompts, newest)
    if not prefix:
        return
    single = DynamicCache(config=model.config.get_text_config(decoder=True))
    ids = torch.tensor([prefix], device=model.device)
    # Logits of a whole prefix may take gigabytes, and nobody wants them.
    fewer = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=single, use_cache=True, **fewer)
    # A layer may share another's keys, and has none then.
    layers = [
        (index, layer.keys, layer.values)
        for index, layer in enumerate(single.layers)
        if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
    ]
    if any(keys.shape[-2] != len(prefix) for _, keys, _ in layers):
        return
    width = max(len(prompt) for prompt in prompts)
    missing = [min(width - len(prompt), len(prefix)) for prompt in prompts]
    for index, keys, values in layers:
        cache.update(_padded(keys, missing), _padded(values, missing), index)


def _padded(states: torch.Tensor, missing: Sequence[int]) -> torch.Tensor:
    """Repeat one row's states for each row of the batch, moved to the right by its padding."""
    length = states.shape[-2]
    rows = states.new_zeros(len(missing), *states.shape[1:])
    for row, count in enumerate(missing):
        rows[row, :, count:] = states[0, :, : length - count]
    return rows
