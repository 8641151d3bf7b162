"""Tiny models in memory, as somebody else loads and changes them."""

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from ilis_guard.models.local import LocalModel
from ilis_guard.models.tapped import TappedModel
from ilis_guard.types import Fingerprint

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

GREEDY = {"do_sample": False, "max_new_tokens": 8}


def in_memory(folder: "TinyFolder", **options: Any) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(folder.path, **{"dtype": torch.float32, **options})
    return model.eval()


def four_bits(**options: Any) -> Any:
    told = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32}
    return BitsAndBytesConfig(load_in_4bit=True, **told | options)  # type: ignore[no-untyped-call]  # transformers types it partly


def tapped(model: Any, folder: "TinyFolder", like: LocalModel, **options: Any) -> TappedModel:
    """As a chain's pipeline is tapped, for a bundle that was fitted to another model."""
    tokenizer = options.pop("tokenizer", None) or AutoTokenizer.from_pretrained(folder.path)
    return TappedModel.of(
        model, tokenizer, {**GREEDY, **options}, fitted=like.fingerprint, prompt="{question}", max_new_tokens=8
    )


def fingerprint(model: Any, folder: "TinyFolder", like: LocalModel) -> Fingerprint:
    return tapped(model, folder, like).fingerprint
