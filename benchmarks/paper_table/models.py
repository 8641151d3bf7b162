"""Any model: its two tiers, the wording that it is asked in, and whether it fits into the memory."""

import importlib.util
import os
import re
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ilis_guard.config.guard_yaml import read_config
from ilis_guard.config.tiers import PACKAGED_PREFIX, TierConfig
from ilis_guard.errors import MissingDependencyError, ModelError
from ilis_guard.models.weights import converted_folder, packaged_weights
from ilis_guard.types import Precision

BUNDLES: Final = Path(__file__).parents[1] / "bundles.yaml"
CHAT: Final = "smollm2-135m-instruct-full"
BASE: Final = "gemma-3-270m-full"
"""Tiers of `BUNDLES` whose wordings other models are asked in: a chat model, and one without a chat template."""
GIB: Final = 2**30


def model_name(model: str) -> str:
    """Name a model by the last part of its folder or hub id, in characters that a tier's name may have."""
    last = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(model.removeprefix(PACKAGED_PREFIX)).name).strip("-")
    return last if last[:1].isalpha() else f"model-{last}"


def tiers_of(
    model: str, *, prompt: str | None, max_new_tokens: int, device_map: str | None = None
) -> tuple[TierConfig, TierConfig]:
    """Make a model's tiers at full precision and at 4 bits, which differ in nothing else.

    Args:
        model: a folder, a hub id, or ``packaged:NAME``.
        prompt: the wording around a question; None for that of this repository's bundles.
        max_new_tokens: of an answer.
        device_map: transformers' own.

    Raises:
        MissingDependencyError: bitsandbytes isn't installed.
        ModelError: the model's tokenizer can't be read.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            "4 bits (NF4) need bitsandbytes, which isn't installed: install 'ilis-guard[hf]'. Nothing was asked yet"
        )
    name = str(Path(model).resolve()) if Path(model).is_dir() else model
    wording = prompt or read_config(BUNDLES).tier(CHAT if _has_chat_template(name) else BASE).prompt

    def tier(precision: Precision) -> TierConfig:
        return TierConfig(
            name=f"{model_name(model)}-{precision}",
            model=name,
            precision=precision,
            prompt=wording,
            max_new_tokens=max_new_tokens,
            device_map=device_map,
        )

    return tier("full"), tier("nf4")


def check_memory(tier: TierConfig) -> None:
    """Check that a model's weights fit into the memory at full precision, before they are loaded.

    Where the system kills a process that takes too much, nothing is said. With a `device_map`, nothing is checked.

    Raises:
        ModelError: they don't.
    """
    if tier.device_map is not None or tier.precision != "full":
        return
    needed = _weight_count(str(tier.model)) * (2 if torch.cuda.is_available() else 4)
    free = _free_memory()
    if needed > free:
        where = "the GPU's memory" if torch.cuda.is_available() else "the memory"
        raise ModelError(
            f"the model {tier.model!r} has no room: its weights need {needed / GIB:.1f} GiB at full precision, and "
            f"{free / GIB:.1f} GiB of {where} are free. Free some, take a larger machine, or spread it over several "
            "devices with --device-map auto"
        )


def _has_chat_template(model: str) -> bool:
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(_source(model), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"the model {model!r} can't be read: {type(error).__name__}: {str(error).strip()[:400]}"
        ) from error
    return tokenizer.chat_template is not None


def _weight_count(model: str) -> int:
    """The number of weights, without loading any; 0 where that isn't known, and loading says why."""
    try:
        config = AutoConfig.from_pretrained(_source(model), trust_remote_code=False)
        with torch.device("meta"):
            empty: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]  # transformers types it partly
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError):
        return 0
    return sum(weights.numel() for weights in empty.parameters())


def _free_memory() -> int:
    if torch.cuda.is_available():
        free, _all = torch.cuda.mem_get_info()
        return int(free)
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _source(model: str) -> str:
    if model.startswith(PACKAGED_PREFIX):
        return str(converted_folder(packaged_weights(model.removeprefix(PACKAGED_PREFIX))))
    return model
