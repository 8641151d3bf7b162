"""What a layer adds to the residual stream, measured by silencing its parts one after the other."""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from ilis_guard.signature import TapPoint

TEXT: Final = (5, 17, 40, 3, 29, 8, 61, 90)
CLOSE: Final = 1e-4
"""Relative: norms compute in float32 whatever the model's type."""
SAME: Final = 1e-9
"""Relative: rounding in float64."""
BESIDES: Final[dict[str, str]] = {
    "per_layer_projection": "the token's embedding for this layer",
    "laurel": "a low-rank map of the attention's input",
    "ple": "the n-gram's embedding for this layer",
}
"""Parts of a layer that add to the stream and are neither a token mixer nor an MLP: silenced throughout."""
BARE_ATTENTION: Final[dict[str, str]] = {"BloomBlock": "self_attention.dense", "DbrxBlock": "norm_attn_norm.attn"}
"""Where a layer's child adds the residual to the attention's output itself, what it adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """How a layer's output is made of its input, of its token mixers' outputs and of the tapped tensor."""

    mixers: tuple[str, ...]
    """Children in which one token's input reaches a later token's output: attention, state space, convolution."""
    besides: tuple[str, ...]
    """Children out of `BESIDES`."""
    unexplained: tuple[str, ...]
    """Children with weight matrices that still add something when mixers and tapped module are silenced."""
    kept: bool
    """With mixers and tapped module silenced, the output is the input: plain, scaled, normed or mixed over streams."""
    added: str
    """How the tapped tensor comes in: ``as it is``, ``times 0.3``, ``through NORM``, ``into 4 streams``; else empty."""
    continued: bool
    """The layer's output is the next layer's input."""

    @property
    def holds(self) -> bool:
        """Output = input + mixers + tapped tensor, up to multipliers and norms, and nothing else adds to it."""
        return self.kept and not self.unexplained and bool(self.added) and self.continued


@dataclass(slots=True)
class Seen:
    """The hidden states that went into modules and came out of them in one pass."""

    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    outputs: dict[nn.Module, Tensor] = field(default_factory=dict)


def arithmetic(model: Any, layers: Sequence[TapPoint], mlps: Sequence[TapPoint]) -> list[Arithmetic]:
    """Of each layer in turn."""
    following = [point.module for point in layers[1:]]
    return [
        _of_layer(model, layer.module, mlp.module, after)
        for layer, mlp, after in zip(layers, mlps, [*following, None], strict=True)
    ]


def _of_layer(model: Any, layer: nn.Module, tapped: nn.Module, after: nn.Module | None) -> Arithmetic:
    children = {
        name: child for name, child in layer.named_children() if all(module is not tapped for module in child.modules())
    }
    besides = [name for name in children if name in BESIDES]
    aside = [children[name] for name in besides]
    mixers = [name for name, child in children.items() if _mixes(model, child)]
    muted = [*aside, *(_bare(layer, name) for name in mixers)]
    watched = [layer, tapped, *children.values()]
    plain = run(model, [*watched, *([after] if after else [])])
    whole = run(model, watched, silenced=aside)
    without = run(model, watched, silenced=[*aside, tapped])
    silent = run(model, watched, silenced=[*muted, tapped])
    closing = _closing_norm(layer, tapped, children.values(), whole)
    total, rest, base = (_total(seen, layer, closing) for seen in (whole, without, silent))
    heavy = [
        name
        for name, child in children.items()
        if name not in mixers
        and any(parameter.ndim > 1 for parameter in child.parameters())
        and not close(_total(run(model, watched, silenced=[*muted, tapped, child]), layer, closing), base)
    ]
    width = whole.outputs[tapped].shape[-1]
    return Arithmetic(
        mixers=tuple(mixers),
        besides=tuple(besides),
        unexplained=tuple(heavy),
        kept=_kept(silent, layer, base, children, width),
        added=_added(whole, total - rest, tapped, children.items()),
        continued=after is None or close(plain.inputs[after], plain.outputs[layer]),
    )


def _bare(layer: nn.Module, name: str) -> nn.Module:
    path = BARE_ATTENTION.get(type(layer).__name__, name)
    return layer.get_submodule(path if path.startswith(name) else name)


def _mixes(model: Any, child: nn.Module) -> bool:
    plain, disturbed = run(model, [child]), run(model, [child], disturbed=child)
    if child not in plain.outputs or child not in plain.inputs or plain.outputs[child].shape[:2] != (1, len(TEXT)):
        return False
    return not close(plain.outputs[child][:, 1:], disturbed.outputs[child][:, 1:], SAME)


def _closing_norm(layer: nn.Module, tapped: nn.Module, children: Iterable[nn.Module], seen: Seen) -> nn.Module | None:
    """The norm of the whole sum that a layer ends in, where the stream itself is normed."""
    for child in children:
        if child in seen.outputs and close(seen.outputs[child], seen.outputs[layer], SAME):
            return None if close(seen.inputs[child], seen.outputs[tapped], SAME) else child
    return None


def _total(seen: Seen, layer: nn.Module, closing: nn.Module | None) -> Tensor:
    return seen.outputs[layer] if closing is None else seen.inputs[closing]


def _kept(silent: Seen, layer: nn.Module, base: Tensor, children: dict[str, nn.Module], width: int) -> bool:
    sources = [silent.inputs[layer]]
    sources += [silent.outputs[child] for child in children.values() if child in silent.outputs and _is_norm(child)]
    return any(_spans(source, base, width) for source in sources if source.numel() == base.numel())


def _is_norm(module: nn.Module) -> bool:
    return all(parameter.ndim == 1 for parameter in module.parameters()) and not list(module.children())


def _spans(source: Tensor, target: Tensor, width: int) -> bool:
    """Whether each stream of the target is, token by token, a sum of the source's streams."""
    streams = source.reshape(len(TEXT), -1, width)
    goal = target.reshape(len(TEXT), -1, width)
    solved = torch.linalg.lstsq(streams.transpose(1, 2), goal.transpose(1, 2)).solution
    return bool(solved.abs().max() > CLOSE) and close((streams.transpose(1, 2) @ solved).transpose(1, 2), goal)


def _added(seen: Seen, difference: Tensor, tapped: nn.Module, children: Iterable[tuple[str, nn.Module]]) -> str:
    output = seen.outputs[tapped]
    fed = [
        (f"through {name}", seen.outputs[child])
        for name, child in children
        if child in seen.inputs
        and child in seen.outputs
        and all(parameter.ndim != 2 for parameter in child.parameters())  # a norm or a convolution, no map of its own
        and seen.inputs[child].numel() == output.numel()
        and close(seen.inputs[child].reshape(output.shape), output, SAME)
    ]
    for name, tensor in [("", output), *fed]:
        tokens = tensor.reshape(len(TEXT), 1, tensor.shape[-1])
        streams = difference.reshape(len(TEXT), -1, tensor.shape[-1])
        factors = (streams * tokens).sum(-1) / (tokens * tokens).sum(-1)
        if close(factors[..., None] * tokens, streams) and factors.abs().min() > CLOSE:
            how = _factor(factors)
            if how is not None:
                return ", ".join(filter(None, [name, how])) or "as it is"
    return ""


def _factor(factors: Tensor) -> str | None:
    """In words; none where a single stream's differs between tokens, which only a norm on the way explains."""
    if factors.shape[1] > 1:
        return f"into {factors.shape[1]} streams"
    if not close(factors, factors.mean().expand_as(factors)):
        return None
    return "" if close(factors, torch.ones_like(factors)) else f"times {float(factors.mean()):.3g}"


def run(
    model: Any, watched: Iterable[nn.Module], silenced: Collection[nn.Module] = (), disturbed: nn.Module | None = None
) -> Seen:
    """One uncached pass; `silenced` modules put out zeros, `disturbed` sees another first token."""
    seen = Seen()
    with ExitStack() as hooks, torch.inference_mode():
        for module in silenced:
            hooks.callback(module.register_forward_hook(_silence).remove)
        if disturbed is not None:
            hooks.callback(disturbed.register_forward_pre_hook(_disturb, with_kwargs=True).remove)
        for module in watched:
            hooks.callback(module.register_forward_hook(_watcher(seen), with_kwargs=True).remove)
        model(input_ids=torch.tensor([TEXT]), use_cache=False)
    return seen


def close(one: Tensor, other: Tensor, tolerance: float = CLOSE) -> bool:
    """Equal in shape and up to rounding, measured by the larger of the two."""
    if one.shape != other.shape:
        return False
    scale = max(float(one.abs().max()), float(other.abs().max()), 1e-12)
    return float((one - other).abs().max()) <= tolerance * scale


def first(output: Any) -> Any:
    """A module's hidden states: its output, or the first of several."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def _watcher(seen: Seen) -> Callable[..., None]:
    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # Cloned: some layers go on to change them in place.
        hidden = next((value for value in (*args, *kwargs.values()) if _is_hidden(value)), None)
        if hidden is not None:
            seen.inputs[module] = hidden.clone().double()
        if _is_hidden(first(output)):
            seen.outputs[module] = first(output).clone().double()

    return watch


def _silence(_module: nn.Module, _args: Any, output: Any) -> Any:
    hidden = first(output)
    if not isinstance(hidden, Tensor):
        return output
    silent = torch.zeros_like(hidden)
    if isinstance(output, Tensor):
        return silent
    if hasattr(output, "_fields"):
        return type(output)(silent, *output[1:])
    return type(output)([silent, *output[1:]])


def _disturb(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
    def changed(value: Any) -> Any:
        if not _is_hidden(value) or value.shape[:2] != (1, len(TEXT)):
            return value
        result = value.clone()
        result[:, 0] = result[:, 0].flip(-1) + 1
        return result

    # Rotary embeddings and masks aren't hidden states.
    names = ("hidden", "x", "input", "activations")
    return tuple(map(changed, args)), {
        name: changed(value) if name.startswith(names) else value for name, value in kwargs.items()
    }


def _is_hidden(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim in (2, 3, 4)
