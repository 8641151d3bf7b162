"""The tap: hooks on every layer's MLP that keep the newest token's activation."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ilis_guard.errors import SignatureError


class Tap:
    """Collects what each MLP puts out at the last position of a forward pass.

    Used as a context manager; the hooks are gone when it is left, whatever happened inside. With left-padded
    batches the last position is each row's newest token: the last prompt token in the prefill, then the token that
    was just generated.
    """

    def __init__(self, mlps: Sequence[nn.Module]) -> None:
        self._mlps = mlps
        self._newest: list[Tensor | None] = [None] * len(mlps)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "Tap":  # noqa: PYI034  # beartype, which checks shapes in the tests, refuses Self here
        try:
            for layer, mlp in enumerate(self._mlps):
                self._handles.append(mlp.register_forward_hook(self._keeper(layer)))
        except BaseException:
            self._remove_hooks()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove_hooks()

    def take(self) -> Float[Tensor, "batch layers hidden"]:
        """The activations of the forward pass that has just ended, then forget them.

        Raises:
            SignatureError: an MLP wasn't run in that pass, or rows or widths differ between layers.
        """
        silent = [layer for layer, kept in enumerate(self._newest) if kept is None]
        if silent:
            raise SignatureError(
                f"no activation came from layer {', '.join(map(str, silent))} (of {len(self._mlps)}, counted from 0): "
                "its MLP wasn't run in this pass, or was compiled into a graph that skips hooks"
            )
        newest = [kept for kept in self._newest if kept is not None]
        shapes = {kept.shape for kept in newest}
        if len(shapes) != 1:
            raise SignatureError(f"the layers' activations differ in shape: {sorted(map(tuple, shapes))!r}")
        self._newest = [None] * len(self._mlps)
        # With layers on several devices, what they put out meets on the first one's.
        device = newest[0].device
        return torch.stack([kept if kept.device == device else kept.to(device) for kept in newest], dim=1).detach()

    def _keeper(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # Mixtures of experts return (output, router logits).
            hidden = output[0] if isinstance(output, tuple) else output
            if not isinstance(hidden, Tensor) or hidden.ndim != 3:
                got = list(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
                raise SignatureError(f"the MLP of layer {layer} gave {got!r}, expected [batch, sequence, hidden]")
            # A copy: a view would keep the whole prompt's activations alive until the next pass.
            self._newest[layer] = hidden.select(1, -1).clone()

        return keep

    def _remove_hooks(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._newest = [None] * len(self._mlps)
