"""Taps: hooks on one module of every layer that keep the newest tokens' activations."""

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
    """Return a module's output tensor, or the first of a tuple, in the shape of its input: [batch, sequence, hidden].

    Mixtures of experts return (output, router logits); Llama 4's flatten batch and sequence.
    """
    hidden = output[0] if isinstance(output, tuple) and output else output
    given = inputs[0] if inputs else None
    if not isinstance(hidden, Tensor) or not isinstance(given, Tensor):
        return hidden
    flat = hidden.ndim == 2 and given.ndim == 3 and hidden.shape[0] == given.shape[0] * given.shape[1]
    return hidden.view(*given.shape[:2], -1) if flat else hidden


class Tap:
    """Collects the outputs of tapped modules at the newest positions of forward passes.

    A context manager: leaving it removes the hooks, also after errors. With left-padded
    batches the last position is each row's newest token: the last prompt token in the prefill, then the token that
    was just generated.

    A tap records only the thread that entered it, so several taps may share a model.

    A hook copies into reused memory and does nothing else: between two layers the model's weights have evicted its code
    from the processor's cache, so that every line costs. Keeping references to outputs until the pass ends costs more
    than copies: the allocator then can't give each layer the memory that is still in the cache from the layer before.
    """

    def __init__(self, points: Sequence[TapPoint], *, newest: int = 1) -> None:
        self._points = points
        self._newest = newest
        self._room = 1
        self._kept: Tensor | None = None
        """Memory for `_room` passes."""
        self._places: list[list[Tensor]] = [[] for _ in points]
        """By layer and pass, its place in that memory."""
        self._runs = [0] * len(points)
        """By layer, passes since the last `take`."""
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "Tap":  # noqa: PYI034  # beartype, which checks shapes in the tests, refuses Self here
        try:
            for at, point in enumerate(self._points):
                self._handles.append(point.module.register_forward_hook(self._hook(at)))
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def make_room(self, passes: int) -> None:
        """Allocate memory for so many passes between one `take` and the next, instead of one. It must be empty."""
        self._room = passes
        self._drop()

    def take(self, passes: int = 1) -> Float[Tensor, "passes batch newest layers hidden"]:
        """Return the activations of so many forward passes, those since the last call. The next pass overwrites them.

        Raises:
            SignatureError: a module wasn't run once in each of them.
        """
        self.check(passes)
        self._runs[:] = [0] * len(self._points)
        assert self._kept is not None, "each module ran"
        return self._kept[:passes].movedim(1, 3)

    def check(self, passes: int = 1) -> None:
        """Check that each of so many passes ran every tapped module once.

        Raises:
            SignatureError: they didn't.
        """
        if any(runs != passes for runs in self._runs):
            raise SignatureError(self._describe(passes))

    def _describe(self, passes: int) -> str:
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

    def _hook(self, at: int) -> Callable[[nn.Module, Any, Any], None]:
        places, all_runs, ident = self._places[at], self._runs, threading.get_ident
        thread = ident()

        def record(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if ident() != thread:
                return
            run = all_runs[at]
            all_runs[at] = run + 1
            is_usual = run < len(places) and type(output) is Tensor and output.shape == places[run].shape
            if is_usual and not output.requires_grad:
                places[run].copy_(output)
            else:
                self._examine(at, run, hidden_states(inputs, output))

        return record

    def _examine(self, at: int, run: int, hidden: Any) -> None:
        """Keep an output that isn't like those before: a prompt's, the first, one with a gradient; or refuse it."""
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            got = list(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
            raise SignatureError(f"{self._points[at].path!r} gave {got!r}, expected [batch, sequence, hidden]")
        newest, places = hidden.detach()[:, -self._newest :], self._places[at]
        is_empty = sum(self._runs) == 1
        if is_empty and (not places or places[0].shape != newest.shape):
            self._allocate(newest)
        if places[0].shape != newest.shape:
            raise SignatureError(
                f"the activations differ in shape: {self._points[at].path!r} gave {list(newest.shape)!r}, and before "
                f"it was {list(places[0].shape)!r}"
            )
        if run < self._room:  # an extra run is counted, and `take` raises
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
