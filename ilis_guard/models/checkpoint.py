"""Checkpoints: a model and its tokenizer in memory, the digest of its weights, and the proof of its taps."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast, get_args

from ilis_guard import events
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
from ilis_guard.models.weights import (
    LOADING,
    Progress,
    cache_folder,
    converted_folder,
    installed_version,
    packaged_weights,
)
from ilis_guard.signature import TapPoint, pattern, prove
from ilis_guard.types import Dtype, Fingerprint, Precision

DeviceMap = str | Mapping[str, str | int]
"""transformers' device_map: a device, `auto` for as many as there are, or modules' paths to devices."""
DIGEST_SAMPLE: Final = 64
"""Bytes that the digest reads at the start, in the middle and at the end of each tensor."""
PROOF_PACKAGES: Final = ("torch", "transformers", "bitsandbytes", "accelerate", "ilis-guard")
"""Packages on whose versions a proof depends."""


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
        """Take a transformers model that the caller has loaded, as it is.

        Raises:
            ModelError: it isn't in evaluation mode, its files can't be found, or its precision is neither full nor NF4.
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
        _compute_in_dtype(model)
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

    def fingerprint(self, points: Sequence[TapPoint], *, temperature: float, decoding: str, prompt: str) -> Fingerprint:
        """Build the fingerprint of this checkpoint, tapped at these points.

        Args:
            points: the taps, of one site.
            temperature: of the signature's softmax.
            decoding: its name, from `decoding_name`.
            prompt: the template's digest.
        """
        return Fingerprint(
            weights=self.weights,
            precision=self.precision,
            dtype=self.dtype,
            layers=self.layers,
            hidden=self.hidden,
            site=points[0].site,
            taps=pattern(points),
            temperature=temperature,
            decoding=decoding,
            prompt=prompt,
        )

    def prove_taps(self, points: Sequence[TapPoint]) -> None:
        """Prove the taps, unless the cache has a proof for the same weights, taps, devices and versions.

        Raises:
            SignatureError: a tap isn't in the path to the logits; nothing is cached then.
        """
        cached = cache_folder() / "proofs" / f"{self._proof_key(points)}.json"
        if cached.exists():
            return
        moved = {proof.point.path: proof.moved for proof in prove(self.model, points, hidden=self.hidden)}
        events.log().info(events.TAPS_PROVEN, layers=len(moved), least_moved=min(moved.values()))
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=cached.parent, prefix=".", delete=False) as unfinished:
                unfinished.write(json.dumps(moved))
            os.replace(unfinished.name, cached)  # noqa: PTH105 - the name is a string
        except OSError as error:  # a read-only home costs a pass at each start, and no more
            events.log().warning(events.PROOF_NOT_STORED, error=type(error).__name__)

    def _proof_key(self, points: Sequence[TapPoint]) -> str:
        parts = [self.weights, self.precision, self.dtype, type(self.model).__name__]
        # A module without weights, such as a dropout, has no device.
        devices = (next((weight.device for weight in point.module.parameters()), None) for point in points)
        parts += [f"{point.path} {device}" for point, device in zip(points, devices, strict=True)]
        parts += [f"{package} {installed_version(package)}" for package in PROOF_PACKAGES]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _precision(model: Any, name: str) -> tuple[Precision, Dtype]:
    """Read how a loaded model holds its weights, and what it computes in."""
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


def _compute_in_dtype(model: Any) -> None:
    """Keep bitsandbytes from computing in bfloat16 where the dtype is float32.

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


def weights_digest(folder: Path) -> str:
    """Digest the names, types, shapes and a sample of the values of all tensors in a folder's safetensors files.

    Equal weights have equal digests on any device, and a fine-tune, which changes every sampled matrix, has another. It
    is no protection against forgery. A safetensors file is eight bytes of header length, a JSON header, and the
    tensors' bytes.

    Raises:
        ModelError: the folder holds no safetensors file, or one that can't be read.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{str(folder)!r} holds no safetensors file; convert the checkpoint to safetensors")
    digest = hashlib.sha256()
    for file in files:
        try:
            _digest_file(file, digest)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{str(file)!r} isn't a whole safetensors file: {error}") from error
    return digest.hexdigest()[:16]


def _digest_file(file: Path, digest: "hashlib._Hash") -> None:
    with file.open("rb") as tensors:
        size = file.stat().st_size
        length = int.from_bytes(tensors.read(8), "little")
        if 8 + length > size:
            raise ValueError(f"its header should have {length} bytes, the whole file has {size}")
        header = json.loads(tensors.read(length))
        header.pop("__metadata__", None)
        expected = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if expected != size:
            raise ValueError(f"it has {size} bytes, and should have {expected}")
        for name, tensor in sorted(header.items()):
            begin, end = tensor["data_offsets"]
            digest.update(f"{name} {tensor['dtype']} {tensor['shape']}".encode())
            for offset in (begin, (begin + end) // 2, max(begin, end - DIGEST_SAMPLE)):
                tensors.seek(8 + length + offset)
                digest.update(tensors.read(min(DIGEST_SAMPLE, end - offset)))
