"""Precision as a model in memory holds it, which a configuration may say otherwise of."""

from typing import Any, Final, cast, get_args

import torch
from torch import nn

from ilis_guard.errors import ModelError
from ilis_guard.types import Dtype, Precision

BLOCK: Final = 64
"""Values that share a scale in NF4 as signatures are known of it: bitsandbytes' default."""
NESTED_BLOCK: Final = 256
"""Scales that share a scale in turn."""
FULL: Final = (torch.float32, torch.bfloat16, torch.float16)


def held_precision(model: Any) -> tuple[Precision, Dtype]:
    """Read from a model's modules how they hold their weights, and what they compute in.

    Raises:
        ModelError: weights are neither unquantised nor NF4 with double quantisation, or modules compute in several
            dtypes.
    """
    layers = {path: module for path, module in model.named_modules() if _maker(module) == "bitsandbytes"}
    if (not layers) != (getattr(model.config, "quantization_config", None) is None):
        raise _unknown("its configuration and its modules differ in whether it is quantised")
    for path, parameter in model.named_parameters():
        if path.rpartition(".")[0] not in layers and (parameter.dtype not in FULL or not _is_plain(parameter)):
            raise _unknown(f"{path!r} is held as {parameter.dtype} ({type(parameter.data).__name__})")
    for path, layer in layers.items():
        if (held := _held(layer)) != _NF4:
            raise _unknown(f"{path!r} is held as {held!r}")
    computed = {layer.compute_dtype for layer in layers.values()} or {model.dtype}
    dtype = " and ".join(sorted(str(each).removeprefix("torch.") for each in computed))
    if dtype not in get_args(Dtype):
        raise ModelError(f"the model computes in {dtype}; signatures are known in {', '.join(get_args(Dtype))}")
    return ("nf4" if layers else "full"), cast("Dtype", dtype)


_NF4: Final = ("Linear4bit", "nf4", BLOCK, NESTED_BLOCK)


def _held(layer: nn.Module) -> tuple[Any, ...]:
    """Describe a layer of bitsandbytes: its class, and of 4-bit ones the data type and both block sizes."""
    state: Any = getattr(layer.weight, "quant_state", None)
    if state is None:
        return (type(layer).__name__, "not quantised")
    if getattr(state, "packing_format_for_cpu", False):
        return (type(layer).__name__, "packed for this processor by its first pass: load the model anew")
    nested = None if state.state2 is None else state.state2.blocksize
    return (type(layer).__name__, state.quant_type, state.blocksize, nested)


def _is_plain(parameter: nn.Parameter) -> bool:
    """Whether a parameter is a plain tensor: quantisers of others bring tensors of their own classes."""
    return type(parameter) is nn.Parameter and type(parameter.data) is torch.Tensor


def _maker(module: nn.Module) -> str:
    return type(module).__module__.partition(".")[0]


def _unknown(what: str) -> ModelError:
    return ModelError(
        f"the model is quantised otherwise than NF4 in blocks of {BLOCK} with double quantisation (bitsandbytes), the "
        f"one kind that signatures are known of: {what}"
    )
