"""Tiny random models of several architectures, whose answers end, run into their limit, and hold special tokens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import AddedToken, Tokenizer, models as tokenizer_models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

LAYERS: Final = 5
HIDDEN: Final = 32
SPECIALS: Final = ("<pad>", "<bos>", "<eos>", "<tool>")
WORDS: Final = (*SPECIALS, "True", "False", "unknown", *(f"w{number}" for number in range(53)))
CHAT_TEMPLATE: Final = "{{ bos_token }}{% for turn in messages %} {{ turn.content }}{% endfor %}"
_SHAPE: Final[Mapping[str, Any]] = {
    "vocab_size": len(WORDS),
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.6,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
CONFIGS: Final[Mapping[str, PretrainedConfig]] = {
    "llama": LlamaConfig(**_SHAPE),
    "qwen3": Qwen3Config(**_SHAPE),
    "gemma3": Gemma3TextConfig(**_SHAPE, sliding_window=6),
}


def make(folder: Path, architecture: str, *, chat_template: str | None = CHAT_TEMPLATE, seed: int = 0) -> Path:
    """A checkpoint whose tokens are whole words."""
    words = Tokenizer(
        tokenizer_models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="unknown")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers types it partly
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", extra_special_tokens=["<tool>"]
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture])  # type: ignore[no-untyped-call]  # as above
    with torch.no_grad():  # so that answers end by themselves now and then, and hold special tokens
        model.lm_head.weight[SPECIALS.index("<eos>")] *= 1.7
        model.lm_head.weight[SPECIALS.index("<tool>")] *= 1.7
    model.save_pretrained(folder)
    return folder
