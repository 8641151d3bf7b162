"""The tap: hooks on one module of every layer that keep the newest token's activation."""

import threading
from collections.abc import Callable, Sequence
from operator import itemgetter
from types import TracebackType
from typing import Any

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

    A hook copies into memory that is used again, and does nothing else: between two layers a model's weights have
    driven its code out of the processor's cache, so that every line of it is dear. Holding on to outputs, even until
    the pass ends, costs more than copying them: it keeps the allocator from giving each layer the memory that is still
    in the cache from the layer before.
    """

    def __init__(self, points: Sequence[TapPoint], *, newest: int = 1) -> None:
        self._points = points
        self._newest = newest
        self._room = 1
        self._kept: Tensor | None = None
        """Memory for as many passes as there is room for."""
        self._places: list[list[Tensor]] = [[] for _ in points]
        """Of each layer, its places in that memory, pass by pass."""
        self._runs = [0] * len(points)
        """Of each layer, passes since the last `take`."""
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "Tap":  # noqa: PYI034  # beartype, which checks shapes in the tests, refuses Self here
        try:
            for at, point in enumerate(self._points):
                self._handles.append(point.module.register_forward_hook(self._hearer(at)))
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def make_room(self, passes: int) -> None:
        """Have memory for so many passes between one `take` and the next, instead of one. Nothing may wait in it."""
        self._room = passes
        self._drop()

    def take(self, passes: int = 1) -> Float[Tensor, "passes batch newest layers hidden"]:
        """The activations of so many forward passes, those since the last time. The next pass overwrites them.

        Raises:
            SignatureError: a module wasn't run once in each of them.
        """
        self.check(passes)
        self._runs[:] = [0] * len(self._points)
        assert self._kept is not None, "each module ran"
        return self._kept[:passes].movedim(1, 3)

    def check(self, passes: int = 1) -> None:
        """See that so many passes ran every tapped module once each.

        Raises:
            SignatureError: they didn't.
        """
        if any(runs != passes for runs in self._runs):
            raise SignatureError(self._complaint(passes))

    def _complaint(self, passes: int) -> str:
        missing = [point for point, runs in zip(self._points, self._runs, strict=True) if runs < passes]
        if missing:
            return (
                f"no activation came from layer {', '.join(str(point.layer) for point in missing)} (of "
                f"{len(self._points)}, counted from 0), such as {missing[0].path!r}: it wasn't run in this pass, or "
                "was compiled into a graph that skips hooks"
            )
        point, runs = max(zip(self._points, self._runs, strict=True), key=itemgetter(1))
        often = "one pass" if passes == 1 else f"{passes} passes"
        return f"{point.path!r} ran {runs} times in {often}: its activations don't belong to one layer and one pass"

    def _hearer(self, at: int) -> Callable[[nn.Module, Any, Any], None]:
        places, all_runs, ident = self._places[at], self._runs, threading.get_ident
        thread = ident()

        def heard(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if ident() != thread:
                return
            run = all_runs[at]
            all_runs[at] = run + 1
            is_usual = run < len(places) and type(output) is Tensor and output.shape == places[run].shape
            if is_usual and not output.requires_grad:
                places[run].copy_(output)
            else:
                self._examine(at, run, hidden_states(inputs, output))

        return heard

    def _examine(self, at: int, run: int, hidden: Any) -> None:
        """Keep an output that isn't like the others: a prompt's, the first, one in a graph; or refuse it."""
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            got = list(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
            raise SignatureError(f"{self._points[at].path!r} gave {got!r}, expected [batch, sequence, hidden]")
        newest, places = hidden.detach()[:, -self._newest :], self._places[at]
        nothing_waits = sum(self._runs) == 1
        if nothing_waits and (not places or places[0].shape != newest.shape):
            self._allocate(newest)
        if places[0].shape != newest.shape:
            raise SignatureError(
                f"the activations differ in shape: {self._points[at].path!r} gave {list(newest.shape)!r}, and before "
                f"it was {list(places[0].shape)!r}"
            )
        if run < self._room:  # what came once too often is counted, and `take` complains
            places[run].copy_(newest)

    def _allocate(self, like: Tensor) -> None:
        # In one piece, on the first layer's device: those of layers on several devices meet there.
        self._drop()
        self._kept = like.new_empty(self._room, len(self._points), *like.shape)
        for at, places in enumerate(self._places):
            places.extend(self._kept[:, at].unbind())

    def _drop(self) -> None:
        self._kept = None
        for places in self._places:
            places.clear()

    def _leave(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._runs[:] = [0] * len(self._points)
        self._drop()
