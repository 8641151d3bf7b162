"""What computes with a model's weights and is no part of the model: functions of its library, and torch's state.

A program can put functions of its own in the places of the library's (faster kernels, steered attention), and let hooks
and modes of torch change what passes through every module. None of that shows in a model's modules.
"""

import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

MAKERS: Final = frozenset({"accelerate", "bitsandbytes", "ilis_guard", "torch", "transformers"})
"""Packages whose hooks and functions change no activation, or are checked by what they leave behind."""
ATTENTIONS: Final = frozenset(
    {None, "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention", "sdpa"}
)
"""Implementations of attention that compute the same, but for rounding."""
HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks")
_HELPERS: Final = MAKERS | {"huggingface_hub", "safetensors", "typing_extensions"} | sys.stdlib_module_names
"""Packages whose functions stand in the libraries' files, of all causal language models of transformers 5."""


class Surroundings:
    """The functions that a model's modules call, as they are when this is made.

    Args:
        model: of transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        kinds = {type(module) for module in model.modules()}
        files = {kind.__module__ for kind in kinds} | {"torch.nn.functional"}
        self._functions = [
            (namespace, name, value)
            for namespace in (vars(sys.modules[file]) for file in sorted(files & sys.modules.keys()))
            for name, value in list(namespace.items())
            if isinstance(value, FunctionType) or (isinstance(value, type) and issubclass(value, nn.Module))
        ]
        self._methods = [(kind, name, getattr(kind, name)) for kind in kinds for name in ("__call__", "forward")]
        self._methods += [(type(model), "generate", getattr(type(model), "generate", None))]
        self._overrides = _overrides(model)
        self._attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
        self._attend = ALL_ATTENTION_FUNCTIONS.get(self._attention)

    def foreign(self) -> str | None:
        """Describe what somebody else put in the place of a function that the model calls; None for nothing."""
        for namespace, name, value in self._functions:
            # What a class of somebody else's calls is theirs: its name is in the digest of the weights.
            is_library = _package(namespace["__name__"]) in MAKERS
            if is_library and (maker := package_of(value)) not in _HELPERS:
                return f"{namespace['__name__']}.{name} was replaced by one of {maker!r}"
        # Of an attention that somebody registered under a name of its own, so is its name.
        if self._attention in ATTENTIONS and self._attend is not None and package_of(self._attend) not in MAKERS:
            return f"its attention {self._attention!r} was replaced by one of {package_of(self._attend)!r}"
        return foreign_state()

    def changed(self) -> str | None:
        """Describe what was put in the place of a function since this was made; None for nothing."""
        for namespace, name, value in self._functions:
            if namespace.get(name) is not value:
                return f"{namespace['__name__']}.{name} was replaced"
        for kind, name, value in self._methods:
            if getattr(kind, name, None) is not value:
                return f"{kind.__name__}.{name} was replaced"
        if (found := _overrides(self._model)) != self._overrides:
            return f"its {', '.join(sorted(found.keys() ^ self._overrides.keys()))} was replaced"
        if ALL_ATTENTION_FUNCTIONS.get(self._attention) is not self._attend:
            return f"its attention {self._attention!r} was replaced"
        return foreign_state()


def foreign_hook(module: nn.Module) -> str | None:
    """Name a hook that somebody else left on a module, which may change what passes; None for none."""
    for kind in HOOKS:
        # Other threads add and remove hooks of ours meanwhile.
        for hook in list(getattr(module, kind).values()):
            if _package(_module(hook)) not in MAKERS:
                return _name(hook)
    return None


def foreign_state() -> str | None:
    """Describe a hook on all modules, or a mode of torch in this thread, that somebody else left; None for none."""
    # Torch lists them nowhere else.
    for hooks in (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks):  # noqa: SLF001
        for hook in list(hooks.values()):
            if _package(_module(hook)) not in MAKERS:
                return f"all modules got the hook {_name(hook)!r}"
    for mode in _modes():
        if _package(_module(type(mode))) not in MAKERS:
            return f"it is called under the mode {type(mode).__module__}.{type(mode).__qualname__}"
    return None


def package_of(function: Any) -> str:
    """The package where a function was written: decorators copy the name of another's module, and not its globals."""
    return _package(getattr(function, "__globals__", {}).get("__name__") or _module(function))


def _overrides(model: nn.Module) -> dict[str, Any]:
    """A model's own functions that stand before those of its class."""
    kind = type(model)
    return {
        name: value
        for name, value in vars(model).items()
        if callable(value) and not isinstance(value, nn.Module | torch.Tensor) and hasattr(kind, name)
    }


def _modes() -> Iterator[Any]:
    yield from _get_current_function_mode_stack()  # type: ignore[no-untyped-call]  # torch types it partly
    yield from _get_current_dispatch_mode_stack()


def _module(function: Any) -> str:
    return str(getattr(function, "__module__", None) or type(function).__module__)


def _package(module: str) -> str:
    return module.partition(".")[0]


def _name(hook: Any) -> str:
    return f"{getattr(hook, '__module__', '')}.{getattr(hook, '__qualname__', type(hook).__name__)}"
