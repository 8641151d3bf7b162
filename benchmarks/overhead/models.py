"""The measured models: packaged ones, and models of any shape with random weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import transformers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ilis_guard.models.local import LocalModel
from ilis_guard.models.weights import converted_folder, packaged_weights
from ilis_guard.types import Message, Precision

SMOLLM2: Final = "smollm2-135m-instruct"
GEMMA: Final = "gemma-3-270m"
FOLDER: Final = Path("build/overhead")
HEAD: Final = 96
"""Width of an attention head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Llama with SmolLM2's vocabulary."""

    layers: int
    hidden: int

    def __str__(self) -> str:
        return f"random {self.layers} x {self.hidden}"


def load(model: str | Shape, precision: Precision, tokens: int) -> LocalModel:
    """A model whose answers have exactly so many tokens, on one torch thread."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers types it partly
    is_base = model == GEMMA
    return LocalModel.load(
        f"packaged:{model}" if isinstance(model, str) else str(_random(model)),
        precision=precision,
        prompt="Question: {question}\nAnswer:" if is_base else "{question}",
        max_new_tokens=tokens,
        decoding={"min_new_tokens": tokens},
    )


def prompts(model: LocalModel, count: int, tokens: int) -> list[tuple[Message, ...]]:
    """Different prompts of exactly so many tokens, the template's included."""

    def saying(number: int, words: int) -> tuple[Message, ...]:
        return (Message(role="user", content=" ".join([*"abcdefghijklmnopqrstuvwxyz"[number % 26], *["the"] * words])),)

    added = tokens - (model.generate(saying(0, 0), proceed=lambda _: False).prompt_tokens or 0)
    conversations = [saying(number, added) for number in range(count)]
    found = {model.generate(asked, proceed=lambda _: False).prompt_tokens for asked in conversations[:26]}
    if found != {tokens}:
        raise SystemExit(f"prompts of {tokens} tokens were wanted, got {sorted(map(str, found))}")
    return conversations


def _random(shape: Shape) -> Path:
    folder = FOLDER / f"{shape.layers}x{shape.hidden}"
    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=shape.hidden,
        intermediate_size=shape.hidden * 8 // 3,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // HEAD,
        num_key_value_heads=shape.hidden // HEAD // 3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    # The configuration comes last: where it stands, the rest does too.
    AutoTokenizer.from_pretrained(converted_folder(packaged_weights(SMOLLM2))).save_pretrained(folder)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
