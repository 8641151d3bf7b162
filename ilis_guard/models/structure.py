"""Structures of models in memory: what computes with the weights, against what a model's class builds by itself.

A digest of weights doesn't know what is done with them. An adapter, a hook that steers activations, a changed
activation function, a patched ``forward`` or a compiled graph makes another model of the same weights. So a model is
compared, module by module, with one that its class builds from its configuration, and whatever differs is refused.
"""

import copy
from collections.abc import Iterator
from typing import Any, Final

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from ilis_guard.errors import ModelError
from ilis_guard.models.model_files import adapter_error
from ilis_guard.models.surroundings import MAKERS, Surroundings, foreign_hook, package_of
from ilis_guard.models.weights import LOADING

PLAIN: Final = (bool, int, float, str, tuple, list, dict, torch.dtype)
"""Types of attributes that are compared; what is None may be a state that the first pass fills in."""
MOVING: Final = frozenset({"gradient_checkpointing", "max_seq_len_cached", "name_or_path", "training"})
"""Attributes that change while a model runs, name it, or are checked elsewhere."""


def check_structure(model: Any) -> None:
    """Check that a model computes as its class does with its configuration.

    Raises:
        ModelError: a module, an attribute, a buffer or a function was changed; the message names the first.
    """
    built = _build(model)
    modules, expected = dict(model.named_modules()), dict(built.named_modules())
    if different := sorted(modules.keys() ^ expected.keys()):
        raise _changed(model, f"its modules aren't those of its configuration, such as {different[0]!r}")
    for path, module in modules.items():
        for difference in _differences(module, expected[path]):
            raise _changed(model, f"{path or type(model).__name__!r}: {difference}")
    if (foreign := Surroundings(model).foreign()) is not None:
        raise _changed(model, foreign)


def check_class(model: Any) -> None:
    """Check that a model is a language model of transformers, without adapters.

    Raises:
        ModelError: it isn't, such as one that is wrapped or compiled.
    """
    name = type(model).__name__
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise adapter_error(f"{name} with peft_config")
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"a {name} is no causal language model of transformers, so that what it computes isn't known: give the "
            "model itself, not compiled and without a wrapper"
        )


def _build(model: Any) -> Any:
    """Build the model's class from its configuration, with buffers and without weights."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    default = torch.get_default_dtype()
    try:
        with LOADING, init_empty_weights(), no_init_weights():
            torch.set_default_dtype(model.dtype)
            try:
                return type(model)(config)
            finally:
                torch.set_default_dtype(default)
    except Exception as error:  # what a configuration in memory became may fail anywhere
        raise ModelError(
            f"{type(model).__name__} can't be built from the configuration that it has in memory: "
            f"{type(error).__name__}: {error}"
        ) from error


def _differences(module: nn.Module, expected: nn.Module) -> Iterator[str]:
    if type(module) is not type(expected) and not _is_quantised(module, expected):
        yield f"is a {_type_name(module)}, where its class has a {_type_name(expected)}"
    if getattr(module, "_compiled_call_impl", None) is not None:
        yield "is compiled into a graph, which skips hooks"
    if (hook := foreign_hook(module)) is not None:
        yield f"has the hook {hook!r}, which may change what passes"
    yield from _function_differences(module)
    yield from _attribute_differences(module, expected)
    yield from _buffer_differences(module, expected)


def _function_differences(module: nn.Module) -> Iterator[str]:
    """Describe functions of a module, or of its class, that somebody else put in their places."""
    kind = type(module)
    if package_of(kind.forward) not in {*MAKERS, kind.__module__.partition(".")[0]}:
        yield f"its class's forward was replaced by one of {kind.forward.__module__!r}"
    for name, value in vars(module).items():
        # Accelerate puts functions of its own around a module's, and keeps the old one.
        is_known = hasattr(kind, name) or name == "_old_forward"
        if (
            is_known
            and callable(value)
            and not isinstance(value, nn.Module | Tensor)
            and package_of(value) not in MAKERS
        ):
            yield f"its {name} was replaced by one of {getattr(value, '__module__', None)!r}"


def _attribute_differences(module: nn.Module, expected: nn.Module) -> Iterator[str]:
    given = vars(module)
    for name, value in vars(expected).items():
        is_compared = isinstance(value, PLAIN) and not name.startswith("_") and name not in MOVING
        if is_compared and not _is_equal(given.get(name), value):
            yield f"its {name} is {given.get(name)!r:.80}, and was built as {value!r:.80}"


def _buffer_differences(module: nn.Module, expected: nn.Module) -> Iterator[str]:
    buffers, unsaved = dict(module.named_buffers(recurse=False)), expected._non_persistent_buffers_set  # noqa: SLF001
    for name, value in expected.named_buffers(recurse=False):
        found = buffers.get(name)
        if name not in unsaved or (found is not None and is_moving(module, name)):
            continue
        if found is None or found.dtype != value.dtype or found.shape != value.shape:
            got = None if found is None else f"{list(found.shape)!r} of {found.dtype}"
            yield f"its buffer {name} is {got}, and was built as {list(value.shape)!r} of {value.dtype}"
        elif found.device.type != "meta" and not _is_close(found, value):
            yield f"its buffer {name} has other values than were built"


def is_moving(module: nn.Module, buffer: str) -> bool:
    """Whether a buffer changes with the length of prompts, as the frequencies of dynamic rotary embeddings do."""
    kinds = repr(getattr(module, "rope_type", ""))
    return buffer.endswith("inv_freq") and ("dynamic" in kinds or "longrope" in kinds)


def _is_close(found: Tensor, built: Tensor) -> bool:
    if not built.is_floating_point():
        return torch.equal(found.cpu(), built.cpu())
    # Devices round powers and sines differently.
    return torch.allclose(found.cpu().float(), built.cpu().float(), rtol=1e-5, atol=1e-6, equal_nan=True)


def _is_equal(found: Any, built: Any) -> bool:
    return type(found) is type(built) and bool(found == built)


def _is_quantised(module: nn.Module, expected: nn.Module) -> bool:
    """Whether bitsandbytes' 4-bit layer stands in a linear one's place; `held_precision` checks how it computes."""
    return _type_name(module) == "bitsandbytes.nn.modules.Linear4bit" and (
        _type_name(expected) in ("torch.nn.modules.linear.Linear", "transformers.pytorch_utils.Conv1D")
    )


def _type_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def name_of(model: Any) -> str:
    """What a model in memory is called: where it came from, or its class if nobody wrote that down."""
    return str(getattr(model, "name_or_path", "") or type(model).__name__)


def _changed(model: Any, what: str) -> ModelError:
    return ModelError(
        f"the model {name_of(model)!r} isn't what its class and its configuration make, so "
        f"that no bundle is known to fit it: {what}. Undo the change, or save the changed model as one of its own "
        "and harvest and fit a bundle for that"
    )
