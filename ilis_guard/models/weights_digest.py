"""Digests of models in memory: of the weights that a model computes with, not of the files that it came from."""

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any, Final

import torch
import xxhash
from accelerate.utils import align_module_device, has_offloaded_params
from torch import Tensor, nn

from ilis_guard.errors import ModelError
from ilis_guard.models.surroundings import ATTENTIONS

SCALE_STEPS: Final = 8
"""Steps per octave in which the digest counts the scales of a 4-bit matrix."""
NOT_COMPUTED: Final = frozenset(
    {
        "architectures",
        "auto_map",
        "bos_token_id",
        "decoder_start_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "quantization_config",
        "return_dict",
        "sep_token_id",
        "tie_word_embeddings",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "unk_token_id",
        "use_cache",
    }
)
"""Keys of a configuration that change no activation, or that the fingerprint has already: ties by the values, dtype and
precision by their own fields."""


def weights_digest(model: Any) -> str:
    """Digest all weights of a model in memory, its configuration, and the name of its class.

    Equal weights of one dtype have equal digests in any process, on any device, before and after they are saved; any
    other value, shape, dtype or name gives another. It is fast, which cryptographic digests aren't: it notices
    accidents, and is no protection against forgery.

    Of 4-bit matrices the packed values count exactly and their scales to 9 %: the last digits of double-quantised
    scales differ with the order in which a processor adds them up.

    Raises:
        ModelError: a tensor can't be read.
    """
    digest = hashlib.sha256()
    digest.update("\n".join(sorted(_lines(model))).encode())
    digest.update(f"\n{_class_name(model)}\n{_configuration(model.config)}".encode())
    return digest.hexdigest()[:16]


def _lines(model: nn.Module) -> Iterator[str]:
    """Yield a line for each tensor by name, for tied ones by all their names, for offloaded ones read from their place.

    Buffers that aren't saved follow from the configuration, and `check_structure` compares them.
    """
    seen: dict[tuple[Any, ...], str] = {}
    for path, module in model.named_modules():
        unsaved = module._non_persistent_buffers_set  # noqa: SLF001 - no public method tells which are saved
        with align_module_device(module):
            # What is only read into memory for now leaves its address to the next.
            known = {} if has_offloaded_params(module) else seen
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if name in unsaved:
                    continue
                try:
                    yield f"{path}.{name} {_digest(tensor, known)}"
                except (RuntimeError, TypeError, NotImplementedError) as error:
                    raise ModelError(
                        f"the weights {f'{path}.{name}'!r} of the model can't be read: {error}; put all weights on "
                        "devices"
                    ) from error


def _digest(tensor: Tensor, seen: dict[tuple[Any, ...], str]) -> str:
    """Digest one tensor; one that several modules share is read once."""
    place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
    if place not in seen:
        shape = ",".join(map(str, tensor.shape))
        parts = [str(tensor.dtype).removeprefix("torch."), f"[{shape}]", xxhash.xxh3_128_hexdigest(_bytes(tensor))]
        if (state := getattr(tensor, "quant_state", None)) is not None:
            parts.append(_scales(state))
        seen[place] = " ".join(parts)
    return seen[place]


def _bytes(tensor: Tensor) -> Any:
    # Without a copy where it is contiguous and in main memory. As a plain tensor: a 4-bit one takes its scales along.
    return tensor.detach().as_subclass(Tensor).cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _scales(state: Any) -> str:
    """Describe how 4-bit values are scaled (bitsandbytes' QuantState, double-quantised)."""
    nested = state.state2
    scales = nested.code[state.absmax.long()].double().cpu()
    scales *= nested.absmax.double().cpu().repeat_interleave(nested.blocksize)[: len(scales)]
    mean = float((scales + float(state.offset)).mean())
    size = round(SCALE_STEPS * math.log2(mean)) if mean > 0 else "none"
    shape = ",".join(map(str, state.shape))
    return f"{state.quant_type} {state.blocksize} {nested.blocksize} {state.dtype} [{shape}] {size}"


def _class_name(model: Any) -> str:
    """Name a model's class, and what isn't transformers' own: its module, and an attention that somebody registered."""
    kind, attention = type(model), getattr(model.config, "_attn_implementation", None)
    is_transformers = kind.__module__.partition(".")[0] == "transformers"
    name = kind.__qualname__ if is_transformers else f"{kind.__module__}.{kind.__qualname__}"
    return name if attention in ATTENTIONS else f"{name} {attention}"


def _configuration(config: Any) -> str:
    """Render what a configuration says of the computation: the values that aren't its class's own."""
    try:
        defaults = type(config)().to_dict()
    except Exception:  # noqa: BLE001 - some classes can't do without arguments: then all values count
        defaults = {}
    return json.dumps(_computed(config.to_dict(), defaults), sort_keys=True, default=str)


def _computed(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        name, default = str(key), defaults.get(key)
        if name in NOT_COMPUTED or name.startswith("_"):
            continue
        if isinstance(value, dict):
            if nested := _computed(value, default if isinstance(default, dict) else {}):
                found[name] = nested
        elif name == "model_type" or value != default:
            found[name] = value
    return found
