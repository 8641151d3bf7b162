"""Snapshots of models in memory: whether a model is still the one whose fingerprint was taken."""

import copy
from itertools import chain
from typing import Any, Final

import torch
from accelerate.utils import has_offloaded_params
from torch import Tensor, nn

from ilis_guard.errors import ModelError
from ilis_guard.models.structure import MOVING, is_moving
from ilis_guard.models.surroundings import Surroundings, foreign_hook
from ilis_guard.models.tokenizers import TokenizerSnapshot

SAMPLE: Final = 16
"""Values that are compared of each tensor that is no matrix, at most."""
SETTINGS: Final = (bool, int, float, str, tuple, torch.dtype)
"""Types of modules' attributes that are compared."""
_INTEGERS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ModelSnapshot:
    """The state of a model, with which the model is compared before and after each answer.

    It must be cheap, so it doesn't read all weights again. It compares the modules, the identity, the place and the
    version of each tensor, which torch counts up when one is changed in place, and a sample of each tensor's values:
    changes through ``.data``, as PEFT merges adapters, aren't counted. The sample has a value of each row and of each
    column of a matrix, so that it shows a token's other embedding too; a single value that is changed so may escape.
    What isn't in the model and computes with it is compared too: the functions that it calls, and its tokenizer.

    Args:
        model: in evaluation mode.
        tokenizer: its own.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._surroundings = Surroundings(model)
        self._tokenizer = TokenizerSnapshot(tokenizer)
        self._device = str(model.device.type)
        self._config = copy.deepcopy(vars(model.config))
        self._all = list(model.modules())
        self._modules = [vars(module) for module in self._all]
        """Attributes of all modules: reading these is faster than asking the modules."""
        self._attributes = [
            (own, name)
            for own in self._modules
            for name, value in own.items()
            if isinstance(value, SETTINGS) and not name.startswith("_") and name not in MOVING
        ]
        # Weights that are only moved in for each pass are others each time.
        watched = [module for module in model.modules() if not has_offloaded_params(module)]
        self._watched = [vars(module)["_parameters"] for module in watched]
        self._tensors = [tensor for module in watched for tensor in _tensors(module)]
        self._views = _views(self._tensors)
        self._structure = self._read_structure()
        self._weights = self._read_weights()
        self._values = self._read_values()

    def check(self) -> None:
        """Check that the model is unchanged.

        Raises:
            ModelError: it was changed, or is called under autocast, in which it computes in another dtype.
        """
        if torch.is_autocast_enabled(self._device):
            raise ModelError(
                "the model is called under torch.autocast, in which it computes in another dtype than its fingerprint "
                "says; call the guard outside of it"
            )
        if self._read_structure() != self._structure:
            raise _changed("its modules")
        if any(own["_forward_hooks"] or own["_forward_pre_hooks"] for own in self._modules):
            for path, module in self._model.named_modules():
                if (hook := foreign_hook(module)) is not None:
                    raise _changed(f"{path or type(module).__name__!r} got the hook {hook!r}")
        if self._read_weights() != self._weights or not all(map(torch.equal, self._read_values(), self._values)):
            raise _changed("its weights")
        if vars(self._model.config) != self._config:
            raise _changed("its configuration")
        if (what := self._surroundings.changed()) is not None:
            raise _changed(what)
        if self._tokenizer.is_changed():
            raise _changed("its tokenizer")

    def _read_structure(self) -> tuple[list[Any], list[Any]]:
        return [
            (own["training"], own.get("forward"), own.get("_compiled_call_impl"), *map(id, own["_modules"].values()))
            for own in self._modules
        ] + [type(module) for module in self._all], [own.get(name) for own, name in self._attributes]

    def _read_weights(self) -> list[int]:
        found = [id(tensor) for tensor in chain.from_iterable(own.values() for own in self._watched)]
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - torch's own way around 4-bit tensors' slow one
            for tensor in self._tensors:
                # Tensors that were made in inference mode aren't counted: only samples of theirs are compared.
                found += (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)  # noqa: SLF001
        return found

    def _read_values(self) -> list[Tensor]:
        return [torch.cat(views) for views in self._views]


def _tensors(module: nn.Module) -> list[Tensor]:
    """List a module's own tensors: parameters, the scales of 4-bit ones, and buffers that no prompt changes."""
    tensors: list[Tensor] = list(module.parameters(recurse=False))
    tensors += [buffer for name, buffer in module.named_buffers(recurse=False) if not is_moving(module, name)]
    states = [state for tensor in tensors if (state := getattr(tensor, "quant_state", None)) is not None]
    return tensors + [scales for state in states for scales in (state.absmax, state.state2.absmax)]


def _views(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Make views of a sample of each tensor's values, as integers, in groups that can be put together."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel() and tensor.is_contiguous() and tensor.element_size() in _INTEGERS:
            flat = tensor.detach().as_subclass(Tensor).view(-1)
            values = flat[:: _step(tensor)].view(_INTEGERS[tensor.element_size()])
            groups.setdefault((values.device, values.dtype), []).append(values)
    return list(groups.values())


def _step(tensor: Tensor) -> int:
    """How far the values of a sample are from one another."""
    if tensor.dim() == 2 and min(tensor.shape) > SAMPLE:
        # It walks down the diagonals, through all rows and columns.
        return min(tensor.shape) + 1
    return -(-tensor.numel() // SAMPLE)


def _changed(what: str) -> ModelError:
    return ModelError(
        f"the model was changed in memory after its fingerprint was taken: {what}. Its answers can't be scored "
        "any more; load or wrap the changed model anew, with a bundle that is fitted to it"
    )
