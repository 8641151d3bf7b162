"""The tap: hooks on one module of every layer that keep the newest token's activation."""

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ilis_guard.errors import SignatureError
from ilis_guard.signature.layout import TapPoint

Slots = Sequence[Float[Tensor, "batch newest hidden"]]
"""A place a layer for the activations of one pass."""


class Tap:
    """Collects what each tapped module puts out at the newest positions of a forward pass.

    Used as a context manager; the hooks are gone when it is left, whatever happened inside. With left-padded
    batches the last position is each row's newest token: the last prompt token in the prefill, then the token that
    was just generated.

    A tap hears only the thread that entered it, so several may sit on one model at once and never mix.
    """

    def __init__(self, points: Sequence[TapPoint], *, newest: int = 1) -> None:
        self._points = points
        self._count = newest
        self._slots: list[Tensor | None] = [None] * len(points)
        self._runs = [0] * len(points)
        self._thread = 0
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "Tap":  # noqa: PYI034  # beartype, which checks shapes in the tests, refuses Self here
        self._thread = threading.get_ident()
        try:
            for at, point in enumerate(self._points):
                self._handles.append(point.module.register_forward_hook(self._keeper(at)))
        except BaseException:
            self._remove_hooks()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove_hooks()

    def take(self) -> Float[Tensor, "batch newest layers hidden"]:
        """The activations of the forward pass that has just ended, in memory of their own.

        Raises:
            SignatureError: a module wasn't run in that pass or more than once, or rows or widths differ between
                layers.
        """
        self.check()
        newest = [slot for slot in self._slots if slot is not None]
        shapes = {kept.shape for kept in newest}
        if len(shapes) != 1:
            raise SignatureError(f"the layers' activations differ in shape: {sorted(map(tuple, shapes))!r}")
        self._slots = [None] * len(self._points)
        # With layers on several devices, what they put out meets on the first one's.
        device = newest[0].device
        return torch.stack([kept if kept.device == device else kept.to(device) for kept in newest], dim=2).detach()

    def fill(self, slots: Slots) -> None:
        """Put the activations of the next pass into these places: faster than memory of their own."""
        self._slots = list(slots)

    def check(self) -> None:
        """See that the pass that has just ended ran every tapped module once, and count anew.

        Raises:
            SignatureError: as `take`.
        """
        if self._runs != [1] * len(self._runs):
            self._complain()
        self._runs = [0] * len(self._runs)

    def _complain(self) -> None:
        silent = [point for point, runs in zip(self._points, self._runs, strict=True) if runs == 0]
        if silent:
            raise SignatureError(
                f"no activation came from layer {', '.join(str(point.layer) for point in silent)} (of "
                f"{len(self._points)}, counted from 0), such as {silent[0].path!r}: it wasn't run in this pass, or was "
                "compiled into a graph that skips hooks"
            )
        point, runs = next((point, runs) for point, runs in zip(self._points, self._runs, strict=True) if runs > 1)
        raise SignatureError(
            f"{point.path!r} ran {runs} times in one pass: its activations don't belong to one layer and one pass"
        )

    def _keeper(self, at: int) -> Callable[[nn.Module, Any, Any], None]:
        thread, newest, point = self._thread, -self._count, self._points[at]

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if threading.get_ident() != thread:
                return
            # Mixtures of experts return (output, router logits).
            hidden = output[0] if isinstance(output, tuple) else output
            if not isinstance(hidden, Tensor) or hidden.ndim != 3:
                got = list(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
                raise SignatureError(f"{point.path!r} gave {got!r}, expected [batch, sequence, hidden]")
            kept = hidden[:, newest:] if hidden.shape[1] > -newest else hidden
            self._runs[at] += 1
            slot = self._slots[at]
            # Copies: some architectures go on to change the output in place, and a view would keep the whole prompt's
            # activations alive until the next pass.
            if slot is None:
                self._slots[at] = kept.clone()
            elif slot.shape != kept.shape:
                raise SignatureError(
                    f"{point.path!r} gave {list(hidden.shape)!r}, in the passes before it was {list(slot.shape)!r}"
                )
            else:
                slot.copy_(kept)

        return keep

    def _remove_hooks(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._slots = [None] * len(self._points)
        self._runs = [0] * len(self._points)
