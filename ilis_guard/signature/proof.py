"""Proof that the taps sit in the path: what each one sees is disturbed once, and the logits must move."""

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from ilis_guard.errors import SignatureError
from ilis_guard.signature.layout import TapPoint
from ilis_guard.signature.tap import Tap

TOKENS: Final = 4
"""Length of the made-up text that is run."""
STRENGTH: Final = 10.0
"""Of the disturbance, in standard deviations of what is disturbed: bfloat16 rounds a weak one away."""
ABOVE_NOISE: Final = 10.0
"""So many times further than two undisturbed rows differ must a disturbed one's logits move."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was seen at one tap."""

    point: TapPoint
    shape: tuple[int, ...]
    """Of one token's activation: (hidden,)."""
    dtype: str
    device: str
    moved: float
    """How far the logits moved, in standard deviations of the undisturbed logits."""


def prove(model: Any, points: Sequence[TapPoint], *, hidden: int) -> tuple[Proof, ...]:
    """Disturb what each tap sees, one layer a row of a single batch, and see that the logits move.

    One forward pass over ``layers + 2`` rows of four tokens: row l has layer l disturbed by noise of ten times
    its own spread, and the last two rows, left alone, tell how much two equal rows differ by rounding.

    Args:
        model: a causal language model of transformers, on its device.
        points: its taps.
        hidden: the width that an activation must have.

    Raises:
        SignatureError: a tap never fired, or with another shape, or its disturbance didn't reach the logits; the
            message names the layers.
    """
    text = torch.arange(1, TOKENS + 1, device=model.device).remainder(model.config.get_text_config().vocab_size)
    seen: dict[int, Tensor] = {}
    with ExitStack() as hooks, torch.inference_mode():
        for point in points:
            hooks.callback(point.module.register_forward_hook(_disturber(point.layer, seen)).remove)
        with Tap(points) as tap:
            logits = model(input_ids=text.expand(len(points) + 2, -1), use_cache=False).logits[:, -1].double()
            tap.check()
    _check_shapes(points, seen, hidden)
    moved = _moved(logits)
    if unmoved := [point for point, far in zip(points, moved, strict=True) if not far]:
        raise SignatureError(
            f"the output of layer {', '.join(str(point.layer) for point in unmoved)} (of {len(points)}, counted from "
            f"0), such as {unmoved[0].path!r}, was disturbed and the logits didn't move: what is tapped isn't what the "
            "model goes on with; register_layout tells where its MLPs are"
        )
    return tuple(
        Proof(
            point=point,
            shape=tuple(seen[point.layer].shape[2:]),
            dtype=str(seen[point.layer].dtype).removeprefix("torch."),
            device=str(seen[point.layer].device),
            moved=far,
        )
        for point, far in zip(points, moved, strict=True)
    )


def _disturber(layer: int, seen: dict[int, Tensor]) -> Callable[[Any, Any, Any], Any]:
    thread = threading.get_ident()

    def disturb(_module: Any, _inputs: Any, output: Any) -> Any:
        if threading.get_ident() != thread:
            return None
        whole = isinstance(output, Tensor)
        hidden = output if whole else output[0] if isinstance(output, tuple) else None
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            return None  # the tap says what is wrong with it
        seen[layer] = hidden
        disturbed = hidden.clone()
        noise = torch.randn(hidden.shape[1:], generator=torch.Generator().manual_seed(layer)).to(hidden)
        disturbed[layer] += STRENGTH * hidden[layer].std().clamp_min(1e-3) * noise
        return disturbed if whole else (disturbed, *output[1:])

    return disturb


def _check_shapes(points: Sequence[TapPoint], seen: dict[int, Tensor], hidden: int) -> None:
    for point in points:
        shape = list(seen[point.layer].shape)
        if shape != [len(points) + 2, TOKENS, hidden]:
            raise SignatureError(
                f"{point.path!r} gave {shape!r}, expected {[len(points) + 2, TOKENS, hidden]!r}: [batch, sequence, "
                "hidden], as wide as the model's configuration says"
            )


def _moved(logits: Float[Tensor, "rows vocabulary"]) -> list[float]:
    """How far each layer's row moved, in the logits' standard deviation; 0 where it isn't above the noise."""
    first, second = logits[-2:]
    noise = (second - first).abs().max()
    moved = (logits[:-2] - first).abs().amax(dim=-1)
    # Not above the noise, or not a number.
    above = moved > ABOVE_NOISE * noise
    spread = first.std().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(above, moved / spread, 0.0).tolist()
