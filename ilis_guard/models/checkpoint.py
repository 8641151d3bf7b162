"""Checkpoints: a model and its tokenizer in memory, the digest of its weights, and the proof of its taps."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ilis_guard import events
from ilis_guard.errors import MissingDependencyError, ModelError

try:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig
    from transformers.utils.hub import cached_file
except ImportError as error:
    raise MissingDependencyError(
        f"local models need torch and transformers: install torch, then 'ilis-guard[hf]' ({error})"
    ) from error

from ilis_guard.config.tiers import PACKAGED_PREFIX
from ilis_guard.models.decoding import end_tokens
from ilis_guard.models.held_precision import held_precision
from ilis_guard.models.model_files import (
    ADAPTER,
    CONFIG,
    CUSTOM_GENERATE,
    GENERATION_CONFIG,
    INDEX,
    SIZES,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHTS,
    adapter_error,
    check_config,
    check_folder,
    custom_generate_error,
    read_json,
)
from ilis_guard.models.prompts import PromptTemplate
from ilis_guard.models.snapshot import ModelSnapshot
from ilis_guard.models.structure import check_class, check_structure, name_of
from ilis_guard.models.tokenizers import check_tokenizer, tokenizer_digest
from ilis_guard.models.weights import (
    LOADING,
    Progress,
    cache_folder,
    converted_folder,
    installed_version,
    packaged_weights,
)
from ilis_guard.models.weights_digest import weights_digest
from ilis_guard.signature import TapPoint, pattern, prove
from ilis_guard.types import Dtype, Fingerprint, Precision

DeviceMap = str | Mapping[str, str | int]
"""transformers' device_map: a device, `auto` for as many as there are, or modules' paths to devices."""
ERROR_LENGTH: Final = 400
"""Characters of a stranger's error that are kept: some list all architectures that there are."""
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
    """Digest of its weights and its configuration, hexadecimal."""
    layers: int
    hidden: int
    snapshot: ModelSnapshot
    """Tells whether the model, or its tokenizer, was changed since."""

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

        Code that comes with a model is never run, and pickled weights are never read.

        Raises:
            ModelError: it can't be loaded; the message names the file.
        """
        source = _source(name, progress)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        wanted = dtype or ("bfloat16" if device == "cuda" else "float32")
        quantisation = BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # transformers types it partly
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, wanted),
        )
        _check_files(name, source, precision)
        with _reading(name, source, CONFIG):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        is_quantised = getattr(config, "quantization_config", None) is not None
        with _reading(name, source, TOKENIZER, TOKENIZER_CONFIG):
            tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", trust_remote_code=False)
        if Path(source, GENERATION_CONFIG).exists():
            with _reading(name, source, GENERATION_CONFIG):
                GenerationConfig.from_pretrained(source)
        with _reading(name, source, CONFIG, WEIGHTS, INDEX), LOADING:
            found: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=getattr(torch, wanted),
                device_map=device_map or device,
                use_safetensors=True,  # a pickled checkpoint could run code
                trust_remote_code=False,
                # A folder that is quantised already says how; what it has become is read from the modules.
                quantization_config=quantisation if precision == "nf4" and not is_quantised else None,
                output_loading_info=True,
            )
        model, loaded = found
        if missing := sorted(loaded["missing_keys"]):
            raise ModelError(
                f"the model {name!r} can't be loaded: its files lack {len(missing)} of the weights that its {CONFIG} "
                f"wants, such as {missing[0]!r}, which would be filled in by chance"
            )
        model.eval()
        checkpoint = cls._in_memory(model, tokenizer, name)
        if (checkpoint.precision, dtype or checkpoint.dtype) != (precision, checkpoint.dtype):
            raise ModelError(
                f"the model {name!r} is held as {checkpoint.precision} and computes in {checkpoint.dtype}, as its "
                f"{CONFIG} says, and the tier wants {precision}, in {wanted}"
            )
        return checkpoint

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> "Checkpoint":
        """Take a transformers model that the caller has loaded, as it is.

        Raises:
            ModelError: it isn't what its class and its configuration make, it isn't in evaluation mode, its precision
                is neither full nor NF4, or it has another model's tokenizer.
        """
        return cls._in_memory(model, tokenizer, name_of(model))

    @classmethod
    def _in_memory(cls, model: Any, tokenizer: Any, name: str) -> "Checkpoint":
        check_class(model)
        if any(module.training for module in model.modules()):
            raise ModelError(f"the model {name!r} is in training mode, in which its answers vary; call model.eval()")
        _compute_in_dtype(model)
        precision, dtype = held_precision(model)
        check_structure(model)
        config = model.config.get_text_config()
        if missing := [field for field in ("num_hidden_layers", "hidden_size") if not hasattr(config, field)]:
            raise ModelError(
                f"the model {name!r} can't be tapped: its configuration has no {' and no '.join(missing)}, so that "
                "neither its layers nor their width are known"
            )
        check_tokenizer(tokenizer, model, name)
        return cls(
            model=model,
            tokenizer=tokenizer,
            precision=precision,
            dtype=dtype,
            weights=weights_digest(model),
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            snapshot=ModelSnapshot(model, tokenizer),
        )

    def fingerprint(
        self, points: Sequence[TapPoint], *, temperature: float, decoding: str, template: PromptTemplate
    ) -> Fingerprint:
        """Build the fingerprint of this checkpoint, tapped at these points.

        Args:
            points: the taps, of one site.
            temperature: of the signature's softmax.
            decoding: its name, from `decoding_name`.
            template: the wording of its prompts.
        """
        # The tokens with a line break, which end a base model's answers too, follow from the vocabulary.
        ends = end_tokens(self.model, self.tokenizer, chat=True)
        prompt = f"{template.digest} {tokenizer_digest(self.tokenizer, ends)}"
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
            prompt=hashlib.sha256(prompt.encode()).hexdigest()[:16],
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


def _check_files(name: str, source: str, precision: Precision) -> None:
    """Check a folder's files, or those of the hub's that say what the others are."""
    if Path(source).is_dir():
        check_folder(Path(source), precision)
        return
    for file, error in ((ADAPTER, adapter_error), (CUSTOM_GENERATE, custom_generate_error)):
        if _hub_file(source, file) is not None:
            raise error(f"{name}: {file}")
    with _reading(name, source, CONFIG):
        file = str(cached_file(source, CONFIG))
    check_config(read_json(Path(file)), f"{name}: {CONFIG}", precision)


def _hub_file(source: str, file: str) -> str | None:
    try:
        return cached_file(source, file, _raise_exceptions_for_missing_entries=False)
    except OSError:  # there is no such model, or no connection: loading it says so
        return None


@contextmanager
def _reading(name: str, source: str, *files: str) -> Iterator[None]:
    """Name the model and the files in whatever error transformers raises while it reads them."""
    try:
        yield
    except Exception as error:  # a file that isn't what it should be may fail anywhere
        folder = Path(source)
        found = [file for file in files if (folder / file).exists()]
        contents = {file: read_json(folder / file) for file in found if file in SIZES}
        if isinstance(error, ValueError) and "trust_remote_code" in str(error):
            found = [file for file, content in contents.items() if "auto_map" in content] or found
            problem = (
                "wants code of its own to be run (auto_map), and code that comes with a model is never run; take a "
                "model whose architecture transformers has"
            )
        else:
            problem = f"{type(error).__name__}: {str(error).strip()[:ERROR_LENGTH]}"
        place = " or ".join(repr(str(folder / file)) for file in found) or f"{name}: {files[0]}"
        raise ModelError(f"the model {name!r} can't be loaded: {place}: {problem}") from error
