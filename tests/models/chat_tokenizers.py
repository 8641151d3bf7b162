"""Fast tokenizers like those of well-known chat models: their kind, their control tokens, their chat templates.

The vocabularies are small and trained here; normalisers, pre-tokenizers and added tokens are as the models have them.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS: Final = [
    "The capital of Norway is Oslo, and the user asks the assistant: what is it?",
    "system user assistant model start end turn header id im eot begin of text sentence INST SYS think",
    "<|im_start|> <|im_end|> </s> <s> [INST] [/INST] <start_of_turn> <|eot_id|> 0123456789 -.,;:!?()[]{}<>|/_ é ü 日本",
] * 20
DIGITS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
)
"""How Llama 3, Qwen and Phi-4 split words."""

CHATML: Final = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3: Final = (
    "{% for m in messages %}{% set content = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"
)
LLAMA3: Final = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA: Final = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ first if loop.first else '' }}"
    "{{ m['content'] | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA2: Final = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set turns = messages %}{% set system = '' %}{% endif %}{{ bos_token }}"
    "{% for m in turns %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL3: Final = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% endif %}{% endfor %}"
)
PHI3: Final = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PHI4: Final = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
ZEPHYR: Final = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
COMMAND_R: Final = (
    "{{ bos_token }}{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|><|' + "
    "{'user': 'USER', 'system': 'SYSTEM', 'assistant': 'CHATBOT'}[m['role']] + '_TOKEN|>' + m['content'].strip() "
    "+ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
DEEPSEEK: Final = (
    "{{ bos_token }}{% for m in messages %}{% set content = m['content'] %}"
    "{% if m['role'] == 'assistant' %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<\uff5cAssistant\uff5c>' + content + '<\uff5cend\u2581of\u2581sentence\uff5c>' }}"
    "{% elif m['role'] == 'user' %}{{ '<\uff5cUser\uff5c>' + content }}{% else %}{{ content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<\uff5cAssistant\uff5c><think>\n' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a tokenizer is made of."""

    build: Callable[[Sequence[AddedToken]], Tokenizer]
    template: str
    special: tuple[str, ...]
    plain: tuple[str, ...] = ()
    """Added, but not special."""
    strips: tuple[str, ...] = ()
    """Of the special ones: those that take the white space behind them."""
    bos: str | None = None
    eos: str | None = None


def byte_level(added: Sequence[AddedToken], *, nfc: bool = False, words: str | None = None) -> Tokenizer:
    """A byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    first = [] if words is None else [pre_tokenizers.Split(Regex(words), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, last])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_tokens(list(added))
    return tokenizer


def sentencepiece(added: Sequence[AddedToken], *, prefix: str | None = "always") -> Tokenizer:
    """A SentencePiece BPE with byte fallback, its control tokens in the vocabulary; as Gemma's without a prefix."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("\u2581"), replace]) if prefix == "always" else replace
    )
    if prefix == "first":
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    if prefix is None:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps if prefix is None else [*steps, decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", *(token.content for token in added), *bytes_], show_progress=False
    )
    tokenizer.train_from_iterator([word for line in CORPUS for word in line.replace(" ", " \n").split("\n")], trainer)
    trained = Tokenizer.from_str(tokenizer.to_str())
    return _without_added(trained, added)


def unigram(added: Sequence[AddedToken]) -> Tokenizer:
    """A SentencePiece Unigram, whose vocabulary holds its control tokens as pieces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=["<unk>", *(token.content for token in added)],
        unk_token="<unk>",
        initial_alphabet=["\n", *(chr(code) for code in range(33, 127))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _without_added(tokenizer, added)


def _without_added(tokenizer: Tokenizer, added: Sequence[AddedToken]) -> Tokenizer:
    """The same with other added tokens: training adds its own, with its own options."""
    settings = json.loads(tokenizer.to_str())
    settings["added_tokens"] = []
    bare = Tokenizer.from_str(json.dumps(settings))
    bare.add_tokens([AddedToken("<unk>", special=True, normalized=False), *added])
    return bare


BARS: Final = ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>")
KINDS: Final[dict[str, Kind]] = {
    "chatml": Kind(
        build=lambda added: byte_level(added, nfc=True, words=DIGITS),
        template=CHATML,
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
    ),
    "qwen3": Kind(
        build=lambda added: byte_level(added, nfc=True, words=DIGITS),
        template=QWEN3,
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        plain=("<think>", "</think>", "<tool_call>", "<|fim_prefix|>"),
        eos="<|im_end|>",
    ),
    "llama3": Kind(
        build=lambda added: byte_level(added, words=DIGITS),
        template=LLAMA3,
        special=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
    ),
    "gemma": Kind(
        build=lambda added: sentencepiece(added, prefix=None),
        template=GEMMA,
        special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        plain=("\n\n", "<b>", "</s>"),
        bos="<bos>",
        eos="<eos>",
    ),
    "llama2": Kind(build=sentencepiece, template=LLAMA2, special=("<s>", "</s>"), bos="<s>", eos="</s>"),
    "mistral3": Kind(
        build=lambda added: sentencepiece(added, prefix="first"),
        template=MISTRAL3,
        special=("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"),
        bos="<s>",
        eos="</s>",
    ),
    "phi3": Kind(
        build=sentencepiece,
        template=PHI3,
        special=("<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|user|>", "<|end|>"),
        plain=("</s>",),
        strips=("<|assistant|>", "<|system|>", "<|user|>", "<|end|>"),
        eos="<|end|>",
    ),
    "phi4": Kind(
        build=lambda added: byte_level(added, words=DIGITS),
        template=PHI4,
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"),
        strips=("<|im_sep|>", "<|im_end|>"),
        eos="<|im_end|>",
    ),
    "zephyr": Kind(build=sentencepiece, template=ZEPHYR, special=("<s>", "</s>"), bos="<s>", eos="</s>"),
    "command-r": Kind(
        build=lambda added: byte_level(added, nfc=True),
        template=COMMAND_R,
        special=(
            "<PAD>",
            "<BOS_TOKEN>",
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
        ),
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
    ),
    "deepseek": Kind(
        build=byte_level,
        template=DEEPSEEK,
        special=BARS,
        plain=("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<think>", "</think>"),
        bos=BARS[0],
        eos=BARS[1],
    ),
    "unigram": Kind(
        build=unigram, template=ZEPHYR, special=("<s>", "</s>", "<|user|>", "<|assistant|>"), bos="<s>", eos="</s>"
    ),
}


@cache
def chat_tokenizer(name: str) -> Any:
    """Build one of `KINDS`."""
    kind = KINDS[name]
    special = [AddedToken(text, special=True, normalized=False, rstrip=text in kind.strips) for text in kind.special]
    # Tokens that aren't special are matched in normalised text, unless they say otherwise.
    added = special + [AddedToken(text, special=False, normalized=True) for text in kind.plain]
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers types it partly
        tokenizer_object=kind.build(added), bos_token=kind.bos, eos_token=kind.eos
    )
    tokenizer.chat_template = kind.template
    return tokenizer
