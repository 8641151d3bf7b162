"""Checkpoints: a model and its tokenizer, loaded as asked and as nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from ilis_guard.errors import MissingDependencyError, ModelError

try:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from transformers.utils.hub import cached_file
except ImportError as error:
    raise MissingDependencyError(
        f"local models need torch and transformers: install torch, then 'ilis-guard[hf]' ({error})"
    ) from error

from ilis_guard.config.tiers import PACKAGED_PREFIX
from ilis_guard.models.fingerprint import weights_digest
from ilis_guard.models.weights import LOADING, Progress, converted_folder, packaged_weights
from ilis_guard.types import Dtype, Precision

DeviceMap = str | Mapping[str, str | int]
"""transformers' device_map: a device, `auto` for as many as there are, or modules' paths to devices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A causal language model in memory."""

    model: Any
    tokenizer: Any
    precision: Precision
    dtype: Dtype
    weights: str
    """Digest of its tensors, hexadecimal."""
    layers: int
    hidden: int

    @classmethod
    def load(
        cls,
        name: str,
        *,
        precision: Precision = "full",
        dtype: Dtype | None = None,
        device_map: DeviceMap | None = None,
        progress: Progress | None = None,
    ) -> "Checkpoint":
        """Load a folder, a hub id, or ``packaged:NAME``; by default all of it on one device, CUDA where there is one.

        Raises:
            ModelError: it can't be loaded.
        """
        source = _source(name, progress)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = dtype or ("bfloat16" if device == "cuda" else "float32")
        quantisation = BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # transformers types it partly
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
            with LOADING:
                model = AutoModelForCausalLM.from_pretrained(
                    source,
                    dtype=getattr(torch, dtype),
                    device_map=device_map or device,
                    use_safetensors=True,  # a pickled checkpoint could run code
                    quantization_config=quantisation if precision == "nf4" else None,
                )
            folder = Path(str(cached_file(source, "config.json"))).parent
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"the model {name!r} can't be loaded: {error}") from error
        model.eval()  # type: ignore[no-untyped-call]  # transformers types it partly
        return cls._in_memory(model, tokenizer, name, folder, precision=precision, dtype=dtype)

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> "Checkpoint":
        """Of a model of transformers that somebody else has loaded, as it is.

        Raises:
            ModelError: it isn't in evaluation mode, its files can't be found, or its precision is none that signatures
                are known in.
        """
        name = str(getattr(model, "name_or_path", ""))
        if getattr(model, "training", True):
            raise ModelError(f"the model {name!r} is in training mode, in which its answers vary; call model.eval()")
        try:
            folder = Path(str(cached_file(name, "config.json", local_files_only=True))).parent
        except (OSError, ValueError) as error:
            raise ModelError(
                f"the files of the model {name!r} aren't on this machine, so it can't be told which weights it has"
            ) from error
        precision, dtype = _precision(model, name)
        return cls._in_memory(model, tokenizer, name, folder, precision=precision, dtype=dtype)

    @classmethod
    def _in_memory(
        cls, model: Any, tokenizer: Any, name: str, folder: Path, *, precision: Precision, dtype: Dtype
    ) -> "Checkpoint":
        _compute_as_asked(model)
        config = model.config.get_text_config()
        if missing := [field for field in ("num_hidden_layers", "hidden_size") if not hasattr(config, field)]:
            raise ModelError(
                f"the model {name!r} can't be tapped: its configuration has no {' and no '.join(missing)}, so that "
                "neither its layers nor their width are known"
            )
        return cls(
            model=model,
            tokenizer=tokenizer,
            precision=precision,
            dtype=dtype,
            weights=weights_digest(folder),
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
        )


def _precision(model: Any, name: str) -> tuple[Precision, Dtype]:
    """How somebody else's model holds its weights, and what it computes in."""
    quantisation = getattr(model.config, "quantization_config", None)
    if quantisation is None:
        precision: Precision = "full"
        computed = model.dtype
    elif isinstance(quantisation, BitsAndBytesConfig) and _is_nf4(quantisation):
        precision = "nf4"
        computed = quantisation.bnb_4bit_compute_dtype
    else:
        raise ModelError(
            f"the model {name!r} is quantised otherwise than NF4 with double quantisation (bitsandbytes), the one kind "
            "that signatures are known of"
        )
    dtype = str(computed).removeprefix("torch.")
    if dtype not in get_args(Dtype):
        raise ModelError(f"the model {name!r} computes in {dtype!r}; signatures are known in {get_args(Dtype)!r}")
    return precision, cast("Dtype", dtype)


def _is_nf4(quantisation: BitsAndBytesConfig) -> bool:
    return bool(
        quantisation.load_in_4bit
        and quantisation.bnb_4bit_quant_type == "nf4"
        and quantisation.bnb_4bit_use_double_quant
    )


def _compute_as_asked(model: Any) -> None:
    """Keep bitsandbytes from computing in bfloat16 where float32 was asked for.

    On processors with AVX512-BF16 its 4-bit layers repack their weights and round activations to bfloat16, whatever
    the compute dtype says (bitsandbytes 0.50, ``Linear4bit.forward``). Maps would differ by percents from one
    processor to the next, and a bundle would hold on one and not on the other.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _source(name: str, progress: Progress | None) -> str:
    if name.startswith(PACKAGED_PREFIX):
        return str(converted_folder(packaged_weights(name.removeprefix(PACKAGED_PREFIX)), progress))
    return name
