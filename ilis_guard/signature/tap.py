"""The tap: hooks on one module of every layer that keep the newest token's activation."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from operator import itemgetter
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
    """Collects what each tapped module puts out at the newest positions of forward passes.

    Used as a context manager; the hooks are gone when it is left, whatever happened inside. With left-padded
    batches the last position is each row's newest token: the last prompt token in the prefill, then the token that
    was just generated.

    A tap hears only the thread that entered it, so several may sit on one model at once and never mix.

    A hook does next to nothing: between two layers a model's weights have driven its code out of the processor's
    cache, so that every line of it is dear. Everything that can wait is done in `take`, for several passes at once.
    """

    def __init__(self, points: Sequence[TapPoint], *, newest: int = 1) -> None:
        self._points = points
        self._newest = newest
        self._heard: list[tuple[int, Tensor, int | None]] = []
        """Layer, output, and the version that the output must still have when it is taken; None where it is a copy."""
        # Copies are kept until a pass has shown that this architecture doesn't go on to change a module's output in
        # place, as Falcon does; the output itself, once one has. A tensor's version tells.
        self._lent: list[tuple[Tensor, int] | None] = [None] * len(points)
        self._unchanged = [False] * len(points)
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

    def take(self, passes: int = 1) -> Float[Tensor, "passes batch newest layers hidden"]:
        """The activations of so many forward passes, those since the last time, in memory of their own.

        Raises:
            SignatureError: a module wasn't run once in each of them, or rows or widths differ between passes or layers.
        """
        self.check(passes)
        outputs = [output for _, output, _ in sorted(self._heard, key=itemgetter(0))]
        self._heard.clear()
        try:
            stacked = torch.stack(outputs)
        except RuntimeError:
            stacked = torch.stack(_together(outputs))
        return stacked.detach().reshape(len(self._points), passes, *stacked.shape[1:]).movedim(0, 3)

    def check(self, passes: int = 1) -> None:
        """See that so many passes ran every tapped module once each, and left what it put out as it was.

        Raises:
            SignatureError: they didn't.
        """
        runs = Counter(at for at, _, _ in self._heard)
        if any(runs[at] != passes for at in range(len(self._points))):
            raise SignatureError(self._complaint(runs, passes))
        for at, output, version in self._heard:
            if version is not None and output._version != version:  # noqa: SLF001 - torch has no other name for it
                raise SignatureError(
                    f"the output of {self._points[at].path!r} was changed in place, and in the pass before it wasn't"
                )

    def _complaint(self, runs: Counter[int], passes: int) -> str:
        few = [point for at, point in enumerate(self._points) if runs[at] < passes]
        if few:
            return (
                f"no activation came from layer {', '.join(str(point.layer) for point in few)} (of "
                f"{len(self._points)}, counted from 0), such as {few[0].path!r}: it wasn't run in this pass, or was "
                "compiled into a graph that skips hooks"
            )
        point, ran = next((point, runs[at]) for at, point in enumerate(self._points) if runs[at] > passes)
        often = "one pass" if passes == 1 else f"{passes} passes"
        return f"{point.path!r} ran {ran} times in {often}: its activations don't belong to one layer and one pass"

    def _keeper(self, at: int) -> Callable[[nn.Module, Any, Any], None]:
        thread, newest, hear, unchanged = self._thread, self._newest, self._heard.append, self._unchanged
        ident = threading.get_ident

        def keep(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if ident() != thread:
                return
            if unchanged[at] and type(output) is Tensor and output.size(1) == newest:
                # Not the same in each pass: experts add up in place, as often as there are experts at work.
                hear((at, output, output._version))  # noqa: SLF001 - torch has no other name for it
            else:
                hear((at, *self._examined(at, hidden_states(inputs, output))))

        return keep

    def _examined(self, at: int, hidden: Any) -> tuple[Tensor, int | None]:
        """What is kept of an output, until it is known to be left as it is."""
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            got = list(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
            raise SignatureError(f"{self._points[at].path!r} gave {got!r}, expected [batch, sequence, hidden]")
        # A longer output would keep the whole prompt's activations alive; in inference mode nothing has a version.
        if hidden.shape[1] != self._newest or hidden.is_inference():
            return hidden[:, -self._newest :].clone(), None
        lent, version = self._lent[at], hidden._version  # noqa: SLF001 - torch has no other name for it
        # While the one before is held, only a module that writes into it again can give its memory once more.
        is_new = lent is not None and lent[0].data_ptr() != hidden.data_ptr()
        if lent is not None and is_new and lent[0]._version == lent[1]:  # noqa: SLF001 - as above
            self._lent[at], self._unchanged[at] = None, True
            return hidden, version
        self._lent[at] = (hidden, version)
        return hidden.clone(), None

    def _remove_hooks(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._heard.clear()
        self._lent = [None] * len(self._points)
        self._unchanged[:] = [False] * len(self._points)


def _together(outputs: Sequence[Tensor]) -> list[Tensor]:
    """On the first one's device: those of layers on several devices meet there."""
    if len(shapes := {output.shape for output in outputs}) > 1:
        raise SignatureError(f"the layers' activations differ in shape: {sorted(map(tuple, shapes))!r}")
    return [output.to(outputs[0].device) for output in outputs]
