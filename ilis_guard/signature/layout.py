"""Layouts of architectures: where their decoder layers are, and in each layer its MLP."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torch import nn

from ilis_guard.errors import SignatureError
from ilis_guard.types import Site

MLP_NAMES: Final = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "moe", "shared_mlp", "experts", "mlps")
"""Names of MLPs in transformers' decoder layers. An MLP's output is added to the residual stream (with sandwich norms,
such as Gemma's, after a norm). A layer with two of them adds up both outputs itself, so that neither is its MLP: it is
refused unless it is registered."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of an architecture's decoder layers and MLPs."""

    layers: str
    """Dotted path of the list of decoder layers, from the causal language model."""
    mlp: str
    """Dotted path, inside a layer, of the module whose output is added to the residual stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TapPoint:
    """One layer's tapped module."""

    layer: int
    site: Site
    path: str
    """Dotted, from the causal language model."""
    module: nn.Module


_REGISTERED: Final[dict[str, Layout]] = {
    # Layers without an MLP module: the last linear map of the two that make it up.
    "XGLMForCausalLM": Layout("model.layers", "fc2"),
    "BioGptForCausalLM": Layout("biogpt.layers", "fc2"),
    # MLP modules that add the residual themselves: what they add it to.
    "BloomForCausalLM": Layout("transformer.h", "mlp.dense_4h_to_h"),
    "MptForCausalLM": Layout("transformer.blocks", "ffn.down_proj"),
    # A name that no other architecture uses.
    "RecurrentGemmaForCausalLM": Layout("model.layers", "mlp_block"),
}
_REFUSED: Final = {
    "ReformerModelWithLMHead": "each layer adds to one of two residual streams, and texts are padded to whole chunks",
}
"""Architectures whose MLPs would be found, and why they can't be tapped."""


def register_layout(architecture: str, *, layers: str, mlp: str) -> None:
    """Register an architecture's layout, which takes precedence over the search by structure.

    Args:
        architecture: the causal language model's class name, as in ``architectures`` of its ``config.json``.
        layers: dotted path of the list of decoder layers, from the causal language model: ``model.layers``.
        mlp: dotted path inside a layer of the module whose output, ``[batch, sequence, hidden]`` or a tuple that
            starts with it, is added to the residual stream: ``mlp``.

    Raises:
        SignatureError: a path or the name is empty, or not made of identifiers and numbers.
    """
    for name, value in (("architecture", architecture), ("layers", layers), ("mlp", mlp)):
        if not value or not all(part.isidentifier() or part.isdecimal() for part in value.split(".")):
            raise SignatureError(f"a layout's {name} must be a dotted path, such as 'model.layers', got {value!r}")
    _REGISTERED[architecture] = Layout(layers, mlp)


def locate(model: nn.Module, layers: int, site: Site = "mlp") -> tuple[TapPoint, ...]:
    """Find the tap point of each decoder layer, in order.

    A registered architecture is looked up. In any other, the decoder is the one list of ``layers`` modules that each
    have one MLP, by the names of transformers; of several lists, such as an image encoder's and the text's, the one
    inside the model's ``get_decoder()``.

    Args:
        model: a causal language model.
        layers: how many decoder layers its configuration says it has.
        site: ``mlp`` for the MLP modules, ``residual`` for the layers themselves.

    Raises:
        SignatureError: no or several lists were found; the message says which names were searched.
    """
    name = type(model).__name__
    layout = _REGISTERED.get(name)
    if layout is None and name in _REFUSED:
        raise SignatureError(f"{name} can't be tapped: {_REFUSED[name]}")
    decoder, mlps = _by_structure(model, layers) if layout is None else _as_registered(model, layers, layout)
    paths = [f"{decoder}.{layer}" + (f".{mlp}" if site == "mlp" else "") for layer, mlp in enumerate(mlps)]
    return tuple(
        TapPoint(layer=layer, site=site, path=path, module=model.get_submodule(path))
        for layer, path in enumerate(paths)
    )


def pattern(points: Sequence[TapPoint]) -> str:
    """Summarise the paths of all taps, with a star for the layer's number: ``model.layers.*.mlp``."""
    return ", ".join(dict.fromkeys(re.sub(rf"\.{point.layer}(?=\.|$)", ".*", point.path, count=1) for point in points))


def _as_registered(model: nn.Module, layers: int, layout: Layout) -> tuple[str, list[str]]:
    refused = (
        f"{type(model).__name__} can't be tapped: the layout registered for it ({layout.layers!r}, {layout.mlp!r}) "
        "doesn't fit: {why}; register_layout tells where its MLPs are"
    )
    try:
        decoder = model.get_submodule(layout.layers)
        if not isinstance(decoder, nn.ModuleList) or len(decoder) != layers:
            raise SignatureError(refused.format(why=f"{layout.layers!r} isn't a list of {layers} layers"))
        for layer in decoder:
            layer.get_submodule(layout.mlp)
    except AttributeError as error:
        raise SignatureError(refused.format(why=error)) from error
    return layout.layers, [layout.mlp] * layers


def _by_structure(model: nn.Module, layers: int) -> tuple[str, list[str]]:
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == layers
    }
    decoders = [path for path, module in lists.items() if all(len(_mlp_names(layer)) == 1 for layer in module)]
    if len(decoders) > 1:
        own = _own_decoder(model)
        decoders = [path for path in decoders if path.startswith(own)] or decoders
    if len(decoders) != 1:
        several = sorted(
            {" and ".join(_mlp_names(layer)) for of in lists.values() for layer in of if _mlp_names(layer)[1:]}
        )
        raise SignatureError(
            f"{type(model).__name__} can't be tapped: looked for one list of {layers} layers that each have one MLP, "
            f"called one of {MLP_NAMES!r}; found {len(decoders)} {decoders!r}"
            + (f", and layers that have {several!r}" if several else "")
            + (
                "".join(f"; {path!r} has layers of {_parts(of)}" for path, of in lists.items())
                or "; no list is that long"
            )
            + ". Where its MLPs have other names, register_layout tells where they are"
        )
    return decoders[0], [_mlp_names(layer)[0] for layer in lists[decoders[0]]]


def _mlp_names(layer: nn.Module) -> list[str]:
    return [name for name in MLP_NAMES if isinstance(getattr(layer, name, None), nn.Module)]


def _own_decoder(model: nn.Module) -> str:
    """Return the prefix of the paths inside a transformers model's decoder."""
    decoder = getattr(model, "get_decoder", lambda: model)()
    return next((f"{path}." for path, module in model.named_modules() if module is decoder and path), "")


def _parts(layers: nn.ModuleList) -> str:
    """List the children of each kind of layer, for the error message."""
    kinds = dict.fromkeys(", ".join(name for name, _ in layer.named_children()) for layer in layers)
    return " or ".join(f"({kind})" for kind in kinds)
