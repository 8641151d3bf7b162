"""Model folders: the files of a checkpoint, checked before transformers reads them.

What is wrong with a file is said with its name here. transformers' own errors come from deep inside, and some files it
reads as something else: it asks on standard input whether to run a folder's code, loads a PEFT adapter together with
another folder's weights, and fills in weights that are missing by chance.

Importing this module imports neither torch nor transformers.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from ilis_guard.errors import ModelError
from ilis_guard.types import Precision

CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"
TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
ADAPTER: Final = "adapter_config.json"
CUSTOM_GENERATE: Final = "custom_generate/generate.py"

_MEBIBYTE: Final = 2**20
SIZES: Final = {
    CONFIG: 16 * _MEBIBYTE,
    GENERATION_CONFIG: _MEBIBYTE,
    "special_tokens_map.json": 16 * _MEBIBYTE,
    TOKENIZER_CONFIG: 64 * _MEBIBYTE,
    TOKENIZER: 256 * _MEBIBYTE,
    INDEX: 64 * _MEBIBYTE,
}
"""The JSON files that are read, and the most bytes of each; the largest known are below a fifth of that."""
HEADER_SIZE: Final = 100_000_000
"""The most bytes of a safetensors file's header, as in the format's own reader."""
COUNTS: Final = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4_096),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads"), 65_536),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "head_dim"), 2**24),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions", "n_ctx"), 2**31),
}
"""Sizes in a configuration that must be whole numbers from 1 to this, where they are given. Architectures that have one
size per layer give lists, which transformers checks."""


def check_folder(folder: Path, precision: Precision) -> None:
    """Check that a folder holds one whole model that can be loaded at a precision, without code of its own.

    Raises:
        ModelError: it doesn't; the message names the file.
    """
    if (folder / ADAPTER).exists():
        raise adapter_error(str(folder / ADAPTER))
    if (folder / CUSTOM_GENERATE).exists():
        raise custom_generate_error(str(folder / CUSTOM_GENERATE))
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{str(folder)!r} is no model: it has no {CONFIG!r}")
    files = {name: read_json(folder / name) for name in SIZES if name != TOKENIZER and (folder / name).exists()}
    check_config(files[CONFIG], str(folder / CONFIG), precision)
    tokenizer = folder / TOKENIZER
    if tokenizer.exists():
        _check_size(tokenizer)
    _check_weights(folder, files.get(INDEX))


def check_config(config: Mapping[str, Any], name: str, precision: Precision) -> None:
    """Check the sizes in a configuration, and that its weights can be held at a precision.

    Args:
        config: the content of a ``config.json``.
        name: of the file, for errors.
        precision: of the tier.

    Raises:
        ModelError: a size is none, or the weights are quantised otherwise.
    """
    texts = [nested for nested in (config.get("text_config"), config) if isinstance(nested, Mapping)]
    for text in texts:
        for key, most in COUNTS.items():
            value = text.get(key)
            if value is None or isinstance(value, list):
                continue
            if type(value) is not int or not 1 <= value <= most:
                raise ModelError(f"{name!r}: {key!r} must be a whole number from 1 to {most}, got {value!r:.80}")
    quantisation = config.get("quantization_config")
    if quantisation is None:
        return
    method = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else quantisation
    if precision == "full" or method != "bitsandbytes":
        raise ModelError(
            f"{name!r}: the weights in this folder are quantised already ({method!r:.80}), and the tier's precision is "
            f"{precision!r}; take the unquantised model, or `precision: nf4` where they are bitsandbytes' NF4 with "
            "double quantisation"
        )


def adapter_error(name: str) -> ModelError:
    """Build the error for a PEFT adapter in the place of a model."""
    return ModelError(
        f"{name!r} makes this a PEFT adapter, whose model would be another one with peft installed than without; merge "
        "it (`model.merge_and_unload().save_pretrained(folder)`), then harvest and fit a bundle for the merged model"
    )


def custom_generate_error(name: str) -> ModelError:
    """Build the error for a model that brings its own way to generate."""
    return ModelError(
        f"{name!r} is code by which this model wants to generate, and code that comes with a model is never run; take "
        "the file out to generate as transformers does"
    )


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: the file can't be read, is too large, or holds something else.
    """
    _check_size(file)
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{str(file)!r} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{str(file)!r} must hold a JSON object, got a {type(content).__name__}")
    return content


def check_safetensors(file: Path) -> None:
    """Check that a safetensors file is whole: eight bytes of header length, a JSON header, and the tensors' bytes.

    Raises:
        ModelError: it isn't.
    """
    try:
        problem = _safetensors_problem(file)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{str(file)!r} isn't a whole safetensors file: {error}") from error
    if problem is not None:
        raise ModelError(f"{str(file)!r} isn't a whole safetensors file: {problem}")


def _safetensors_problem(file: Path) -> str | None:
    size = file.stat().st_size
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if 8 + length > size or length > HEADER_SIZE:
            return f"its header should have {length} bytes, the whole file has {size}"
        header = json.loads(content.read(length))
    header.pop("__metadata__", None)
    if not header:
        return "it holds no tensor"
    expected = 8 + length + max(tensor["data_offsets"][1] for tensor in header.values())
    return None if expected == size else f"it has {size} bytes, and should have {expected}"


def _check_size(file: Path) -> None:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise ModelError(f"{str(file)!r} can't be read: {error.strerror}") from error
    if size > SIZES[file.name]:
        raise ModelError(f"{str(file)!r} has {size} bytes; more than {SIZES[file.name]} aren't read")


def _check_weights(folder: Path, index: Mapping[str, Any] | None) -> None:
    """Check the files that transformers would read: one, or those of an index."""
    if (folder / WEIGHTS).exists():
        files = [folder / WEIGHTS]
    elif index is not None:
        files = [folder / name for name in dict.fromkeys(_shards(index, folder / INDEX))]
    else:
        raise ModelError(
            f"{str(folder)!r} holds neither {WEIGHTS!r} nor {INDEX!r}; convert the checkpoint to safetensors (pickled "
            "weights, which can run code, are never read)"
        )
    for file in files:
        check_safetensors(file)


def _shards(index: Mapping[str, Any], file: Path) -> Iterator[str]:
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(
            f"{str(file)!r}: its 'weight_map' must say for each tensor which file it is in, got {places!r:.80}"
        )
    for tensor, name in places.items():
        # A file beside it, and no path to anywhere else.
        if not isinstance(name, str) or PurePosixPath(name).name != name or "\\" in name:
            raise ModelError(f"{str(file)!r}: {tensor!r:.80} must be in a file of the same folder, got {name!r:.80}")
        if not (file.parent / name).is_file():
            raise ModelError(f"{str(file)!r}: {tensor!r:.80} should be in {name!r:.80}, which isn't in the folder")
        yield name
