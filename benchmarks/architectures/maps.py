"""Reference maps of another route: wrapped forward methods, one uncached pass, float64 loops over pairs."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.architectures.arithmetic import TEXT, first
from ilis_guard.signature import Recorder, Tap, TapPoint
from ilis_guard.types import Position

PROMPT: Final = TEXT[:4]
NEW: Final = 5
CLOSE: Final = 1e-3
"""Relative: with a cache norms and attention round otherwise than without."""


@torch.no_grad()
def furthest(model: Any, points: Sequence[TapPoint]) -> float:
    """How far maps recorded while the model generates lie from the reference, as a part of the largest divergence."""
    answer, recorded = _record(model, points)
    activations = _caught(model, points, [*PROMPT, *answer])
    maps = np.array([_divergences(token) for token in activations])
    expected: dict[Position, np.ndarray] = {
        "prompt": maps[len(PROMPT) - 1],
        "last": maps[-2],
        "mean": maps[len(PROMPT) : -1].mean(axis=0),
    }
    return max(
        float(np.abs(recorded[position] - signature).max() / signature.max())
        for position, signature in expected.items()
    )


def generate(model: Any, prompt: Sequence[int], *processors: Any) -> Tensor:
    """Prompt and answer, greedily, with the model's own cache."""
    with torch.no_grad():  # as models do
        sequences: Tensor = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            logits_processor=list(processors),
            do_sample=False,
            max_new_tokens=NEW,
            pad_token_id=0,
        )
    return sequences


def _record(model: Any, points: Sequence[TapPoint]) -> tuple[list[int], Any]:
    never = model.config.get_text_config().vocab_size
    with Tap(points) as tap:
        recorder = Recorder(tap, end_tokens=[never], special_tokens=[], temperature=1.0)
        sequences = generate(model, PROMPT, recorder)
        return sequences[0, len(PROMPT) :].tolist(), recorder.finish(sequences)[0].signatures


def _caught(model: Any, points: Sequence[TapPoint], tokens: list[int]) -> np.ndarray:
    """[tokens, layers, hidden] in float64."""
    outputs: dict[int, Tensor] = {}
    with ExitStack() as patches, torch.inference_mode():
        for point in points:

            def forward(*args: Any, own: Any = point.module.forward, layer: int = point.layer, **kwargs: Any) -> Any:
                output = own(*args, **kwargs)
                outputs[layer] = first(output).reshape(len(tokens), -1).to(torch.float64, copy=True)
                return output

            patches.enter_context(mock.patch.object(point.module, "forward", forward))
        model(input_ids=torch.tensor([tokens]), use_cache=False)
    return torch.stack([outputs[layer] for layer in range(len(points))], dim=1).numpy()


def _divergences(activations: np.ndarray) -> np.ndarray:
    """KL(p_i || p_j), term by term."""
    logs = [row - row.max() - math.log(math.fsum(np.exp(row - row.max()))) for row in activations]
    return np.array([[math.fsum(np.exp(p) * (p - q)) for q in logs] for p in logs])
