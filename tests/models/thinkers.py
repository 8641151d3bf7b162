"""Tiny random Qwen3s that think: byte-level tokenizers, real chat templates, and answers by script.

A script is what the model writes, whatever it was asked: its logits are raised at the positions where the script's
tokens come. All else stays random, and is computed as in any other model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from ilis_guard.models.local import LocalModel
from ilis_guard.types import Message

QUESTION = "Capital of Norway?"
ASK = [Message(role="user", content=QUESTION)]
END = "<|im_end|>"
_CHATML = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n"
    "{{ turn.content.split('</think>')[-1].strip() if turn.role == 'assistant' else turn.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)
QWEN = _CHATML + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
DEEPSEEK = _CHATML + "<think>\n"
HARMONY = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort|default('medium') }}<|end|>"
    "{% for turn in messages %}<|start|>{{ turn.role }}<|message|>{{ turn.content }}<|end|>{% endfor %}"
    "<|start|>assistant"
)


@dataclass(frozen=True)
class Family:
    """How a family of models marks its thinking."""

    template: str
    specials: tuple[str, ...]
    """Decoding leaves them out."""
    added: tuple[str, ...] = ()
    """One token each, and no special ones."""
    end: str = END


CHATML = ("<|im_start|>", END)
FAMILIES = {
    "qwen": Family(QWEN, CHATML, ("<think>", "</think>")),
    "deepseek": Family(DEEPSEEK, CHATML, ("<think>", "</think>")),
    "spelled": Family(QWEN, CHATML),
    "magistral": Family(_CHATML, (*CHATML, "[THINK]", "[/THINK]")),
    "cohere": Family(
        _CHATML,
        (*CHATML, "<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ),
    "seed": Family(_CHATML, CHATML, ("<seed:think>", "</seed:think>")),
    "harmony": Family(HARMONY, ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"), end="<|return|>"),
}
THOUGHT = "Is it Bergen? No, it's Oslo: 奥斯陆."
SCRIPTS = {
    "qwen": ("<think>\n", "\n</think>\n\n"),
    "deepseek": ("", "\n</think>\n\n"),
    "spelled": ("<think>", "</think>"),
    "magistral": ("[THINK]", "[/THINK]"),
    "cohere": ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    "seed": ("<seed:think>", "</seed:think>"),
    "harmony": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
}
"""What comes before a thought, and between it and the answer."""


def write_folder(folder: Path, family: str) -> Path:
    """Write a checkpoint of a family."""
    traits = FAMILIES[family]
    tokenizer = _tokenizer(traits)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(11)
    config = ScriptedConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=512,
        initializer_range=0.2,
        eos_token_id=tokenizer.convert_tokens_to_ids(traits.end),
        bos_token_id=None,
        pad_token_id=None,
    )
    ScriptedQwen3(config).save_pretrained(folder)
    return folder


def load(folder: Path, script: str, *, messages: Sequence[Message] = ASK, **options: Any) -> LocalModel:
    """Load a model that writes this script after a conversation."""
    model = LocalModel.load(str(folder), **{"max_new_tokens": 160, "proof": False} | options)
    tokens = model._tokenizer(script, add_special_tokens=False)["input_ids"]
    SCRIPTED[model._model] = (tokens, len(model.prompt_tokens(messages)))
    return model


class ScriptedConfig(Qwen3Config):  # type: ignore[no-untyped-call]  # transformers types it partly
    """Of a `ScriptedQwen3`."""

    model_type = "scripted_qwen3"


class ScriptedQwen3(Qwen3ForCausalLM):  # type: ignore[no-untyped-call]  # transformers types it partly
    """A Qwen3 whose logits are raised where `SCRIPTED` says so. A model in memory mustn't be changed."""

    config_class = ScriptedConfig

    def forward(
        self, input_ids: Any = None, position_ids: Any = None, past_key_values: Any = None, **options: Any
    ) -> Any:
        """As a Qwen3's, but for the logits."""
        output = super().forward(input_ids, position_ids=position_ids, past_key_values=past_key_values, **options)
        script, start = SCRIPTED.get(self, ((), 0))
        length, positions = input_ids.shape[1], position_ids
        if positions is None:
            before = 0 if past_key_values is None else past_key_values.get_seq_length() - length
            positions = torch.arange(before, before + length)[None]
        logits = output.logits
        for row, places in enumerate(positions[:, -logits.shape[1] :].expand(len(logits), -1).tolist()):
            for index, place in enumerate(places):
                if 0 <= place + 1 - start < len(script):
                    logits[row, index, script[place + 1 - start]] = logits[row, index].max() + 3
        return output


AutoConfig.register("scripted_qwen3", ScriptedConfig)
AutoModelForCausalLM.register(ScriptedConfig, ScriptedQwen3)
SCRIPTED: WeakKeyDictionary[Any, tuple[list[int], int]] = WeakKeyDictionary()
"""By model, the tokens that it writes, and the position of the first."""


def _tokenizer(traits: Family) -> PreTrainedTokenizerFast:
    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    words = [f"{THOUGHT} The capital of Norway is Oslo.\n\n", "user assistant system analysis final"] * 3
    bytes_.train_from_iterator(
        words,
        trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    bytes_.add_special_tokens([AddedToken(token, special=True) for token in traits.specials])
    bytes_.add_tokens([AddedToken(token, special=False) for token in traits.added])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_, eos_token=traits.end)  # type: ignore[no-untyped-call]
    tokenizer.chat_template = traits.template
    return tokenizer
