"""Proofs that taps are in the path to the logits: disturbing each tapped output must move the logits."""

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
from ilis_guard.signature.tap import Tap, hidden_states

TOKENS: Final = 4
"""Length of the artificial text."""
STRENGTH: Final = 10.0
"""Of the disturbance, in standard deviations of the tapped output: bfloat16 rounds a weak one away."""
ABOVE_NOISE: Final = 10.0
"""A disturbed row's logits must move so many times further than two undisturbed rows' differ."""

Change = Callable[[int, Tensor], Tensor]
"""Maps a layer's number and its output in one row to the changed output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The proof of one tap."""

    point: TapPoint
    shape: tuple[int, ...]
    """Of one token's activation: (hidden,)."""
    dtype: str
    device: str
    moved: float
    """How far the logits moved, in standard deviations of the undisturbed logits."""


def prove(model: Any, points: Sequence[TapPoint], *, hidden: int) -> tuple[Proof, ...]:
    """Disturb each tapped output, one layer a row of a single batch, and check that the logits move.

    One forward pass over ``layers + 2`` rows of four tokens: row l has layer l's output disturbed by noise of ten times
    its own spread, and the last two rows, undisturbed, show how much equal rows differ by rounding. At site ``mlp``,
    two more passes over two texts have layer l's output zeroed in row l: if it held the residual stream, not what is
    added to it, nothing of the texts would be left, and the logits of both would agree.

    Args:
        model: a causal language model of transformers, on its device.
        points: its taps.
        hidden: the width that an activation must have.

    Raises:
        SignatureError: a tap never fired, or with another shape, or its disturbance didn't reach the logits, or the
            residual stream passes through an MLP's; the message names the layers.
    """
    vocabulary = model.config.get_text_config().vocab_size
    text, other = torch.arange(1, 2 * TOKENS + 1, device=model.device).remainder(vocabulary).view(2, TOKENS)
    seen: dict[int, Tensor] = {}
    logits = _logits(model, points, text, _disturbed, seen)
    _check_shapes(points, seen, hidden)
    moved = _moved(logits[:-2], logits[-2], logits[-2:])
    if unmoved := [point for point, far in zip(points, moved, strict=True) if not far]:
        raise SignatureError(
            f"the output of layer {_numbers(unmoved)} (of {len(points)}, counted from 0), such as {unmoved[0].path!r}, "
            "was disturbed and the logits didn't move: what is tapped isn't what the model goes on with; "
            "register_layout tells where its MLPs are"
        )
    if points[0].site == "mlp":
        _check_stream(points, _logits(model, points, text, _zeroed), _logits(model, points, other, _zeroed))
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


def _logits(
    model: Any, points: Sequence[TapPoint], text: Tensor, change: Change, seen: dict[int, Tensor] | None = None
) -> Float[Tensor, "rows vocabulary"]:
    """Compute logits after the text's last token, in ``layers + 2`` rows, with layer l's output changed in row l."""
    with ExitStack() as hooks, torch.inference_mode():
        for point in points:
            hooks.callback(point.module.register_forward_hook(_changer(point.layer, change, seen)).remove)
        with Tap(points) as tap:
            logits: Tensor = model(input_ids=text.expand(len(points) + 2, -1), use_cache=False).logits[:, -1].double()
            tap.check()
    return logits


def _changer(layer: int, change: Change, seen: dict[int, Tensor] | None) -> Callable[[Any, Any, Any], Any]:
    thread = threading.get_ident()

    def alter(_module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        if threading.get_ident() != thread:
            return None
        hidden = hidden_states(inputs, output)
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            return None  # the tap raises an error
        if seen is not None:
            seen[layer] = hidden
        altered = hidden.clone()
        altered[layer] = change(layer, hidden[layer])
        if isinstance(output, Tensor):
            return altered.view_as(output)
        return (altered.view_as(output[0]), *output[1:])

    return alter


def _disturbed(layer: int, row: Tensor) -> Tensor:
    noise = torch.randn(row.shape, generator=torch.Generator().manual_seed(layer)).to(row)
    return row + STRENGTH * row.std().clamp_min(1e-3) * noise


def _zeroed(_layer: int, row: Tensor) -> Tensor:
    return torch.zeros_like(row)


def _check_stream(
    points: Sequence[TapPoint], logits: Float[Tensor, "rows vocabulary"], others: Float[Tensor, "rows vocabulary"]
) -> None:
    apart = _moved(logits[:-2], others[:-2], logits[-2:])
    if alone := [point for point, far in zip(points, apart, strict=True) if not far]:
        raise SignatureError(
            f"with the output of layer {_numbers(alone)} (of {len(points)}, counted from 0), such as "
            f"{alone[0].path!r}, zeroed, nothing of the text reaches the logits: what is tapped holds the residual "
            "stream instead of what is added to it; register_layout tells where that is"
        )


def _check_shapes(points: Sequence[TapPoint], seen: dict[int, Tensor], hidden: int) -> None:
    for point in points:
        shape = list(seen[point.layer].shape)
        if shape != [len(points) + 2, TOKENS, hidden]:
            raise SignatureError(
                f"{point.path!r} gave {shape!r}, expected {[len(points) + 2, TOKENS, hidden]!r}: [batch, sequence, "
                "hidden], as wide as the model's configuration says"
            )


def _moved(
    rows: Float[Tensor, "layers vocabulary"],
    unmoved: Float[Tensor, "*layers vocabulary"],
    alike: Float[Tensor, "2 vocabulary"],
) -> list[float]:
    """Measure how far rows moved, in standard deviations of the logits; 0 where that isn't above the noise."""
    first, second = alike
    noise = (second - first).abs().max()
    moved = (rows - unmoved).abs().amax(dim=-1)
    # Not above the noise, or not a number.
    above = moved > ABOVE_NOISE * noise
    spread = first.std().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(above, moved / spread, 0.0).tolist()


def _numbers(points: Sequence[TapPoint]) -> str:
    return ", ".join(str(point.layer) for point in points)
