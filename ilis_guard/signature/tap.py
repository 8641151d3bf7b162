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


def hidden_states(inputs: tuple[Any, ...], output: Any) -> Any:
    """The tensor that a module puts out, or the first of a tuple's, with tokens laid out as in what it was given.

    Mixtures of experts return (output, router logits); Llama 4's give the tokens of all rows in one.
    """
    hidden = output[0] if isinstance(output, tuple) and output else output
    given = inputs[0] if inputs else None
    if not isinstance(hidden, Tensor) or not isinstance(given, Tensor):
        return hidden
    flat = hidden.ndim == 2 and given.ndim == 3 and hidden.shape[0] == given.shape[0] * given.shape[1]
    return hidden.view(*given.shape[:2], -1) if flat else hidden


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
        self._kept: list[Tensor | None] = [None] * len(points)
        self._lent: list[tuple[Tensor, int] | None] = [None] * len(points)
        self._runs = [0] * len(points)
        self._by_reference = False
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

    def take(
        self, out: Float[Tensor, "batch newest layers hidden"] | None = None
    ) -> Float[Tensor, "batch newest layers hidden"]:
        """The activations of the forward pass that has just ended, in memory of their own or in `out`.

        Raises:
            SignatureError: a module wasn't run in that pass or more than once, or rows or widths differ between
                layers or from `out`.
        """
        self.check()
        kept = [tensor for tensor in self._kept if tensor is not None]
        shapes = {tensor.shape for tensor in kept}
        if len(shapes) != 1:
            raise SignatureError(f"the layers' activations differ in shape: {sorted(map(tuple, shapes))!r}")
        (rows, newest, width) = kept[0].shape
        if out is not None and out.shape != (rows, newest, len(kept), width):
            raise SignatureError(
                f"the activations are {[rows, newest, width]!r} a layer, in the passes before they were "
                f"{[*out.shape[:2], out.shape[3]]!r}"
            )
        self._kept = [None] * len(self._points)
        # With layers on several devices, what they put out meets on the first one's.
        device = kept[0].device
        return torch.stack(
            [tensor.detach() if tensor.device == device else tensor.detach().to(device) for tensor in kept],
            dim=2,
            out=out,
        )

    def check(self) -> None:
        """See that the pass that has just ended ran every tapped module once, and count anew.

        Raises:
            SignatureError: as `take`.
        """
        if self._runs != [1] * len(self._runs):
            self._complain()
        self._runs = [0] * len(self._runs)
        # Copies are kept until a pass has shown that this architecture doesn't go on to change the module's output in
        # place, as Falcon does; the output itself, once one has. A tensor's version tells.
        unchanged = [lent is not None and lent[0]._version == lent[1] for lent in self._lent]  # noqa: SLF001 - no other
        if self._by_reference and not all(same for same, lent in zip(unchanged, self._lent, strict=True) if lent):
            point = self._points[unchanged.index(False)]
            raise SignatureError(f"the output of {point.path!r} was changed in place, and in the pass before it wasn't")
        self._by_reference = all(unchanged)
        self._lent = [None] * len(self._points)

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
        thread, count, point = self._thread, self._count, self._points[at]

        def keep(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if threading.get_ident() != thread:
                return
            hidden = hidden_states(inputs, output)
            if not isinstance(hidden, Tensor) or hidden.ndim != 3:
                got = list(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
                raise SignatureError(f"{point.path!r} gave {got!r}, expected [batch, sequence, hidden]")
            self._runs[at] += 1
            # A longer output would keep the whole prompt's activations alive until the next pass.
            if hidden.shape[1] == count and not hidden.is_inference():
                self._lent[at] = (hidden, hidden._version)  # noqa: SLF001 - torch has no other name for it
                self._kept[at] = hidden if self._by_reference else hidden.clone()
            else:
                self._kept[at] = hidden[:, -count:].clone()

        return keep

    def _remove_hooks(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._kept = [None] * len(self._points)
        self._lent = [None] * len(self._points)
        self._runs = [0] * len(self._points)
        self._by_reference = False
