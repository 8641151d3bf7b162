"""Where an architecture keeps its MLPs."""

from torch import nn

from ilis_guard.errors import SignatureError

MLP_NAMES = ("mlp", "feed_forward", "block_sparse_moe")
"""What transformers' decoder layers call their MLP; the module's output is what is added to the residual stream
(in architectures with sandwich norms, such as Gemma, what goes into the norm before that addition)."""


def locate_mlps(model: nn.Module, layers: int) -> list[nn.Module]:
    """Find the MLP of each decoder layer, in order.

    The decoder is the one list of ``layers`` modules in which every module has an MLP.

    Args:
        model: a causal language model.
        layers: how many decoder layers its configuration says it has.

    Raises:
        SignatureError: no list of that length has MLPs, or several have.
    """
    found = [
        (path, mlps)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == layers and (mlps := _mlps(module))
    ]
    if len(found) != 1:
        raise SignatureError(
            f"{type(model).__name__} can't be tapped: looked for one list of {layers} layers that each have one of "
            f"{MLP_NAMES!r}, found {len(found)} {[path for path, _ in found]!r}"
        )
    return found[0][1]


def _mlps(layers: nn.ModuleList) -> list[nn.Module]:
    """The layers' MLPs, or nothing unless every layer has one."""
    mlps = [mlp for layer in layers for name in MLP_NAMES if isinstance(mlp := getattr(layer, name, None), nn.Module)]
    return mlps if len(mlps) == len(layers) else []
