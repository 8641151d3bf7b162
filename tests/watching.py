"""Hooks of tests, which pass for our own: a model that takes no hooks of strangers has none."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.hooks import RemovableHandle


def watch(module: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = False) -> RemovableHandle:
    """Call a hook after each pass through a module; what it returns replaces the output."""

    def of_module(passed: nn.Module, *given: Any) -> Any:
        return hook(passed, *given) if passed is module else None

    of_module.__module__ = "ilis_guard.testing"
    return register_module_forward_hook(of_module, with_kwargs=with_kwargs)
