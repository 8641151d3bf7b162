"""Decoding: greedy unless a tier sets options; the checkpoint's own generation config never counts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ilis_guard.config.tiers import GREEDY
from ilis_guard.errors import ModelError
from ilis_guard.types import Departure, in_order

ALLOWED: Final = frozenset(
    {
        "cache_implementation",
        "do_sample",
        "min_new_tokens",
        "min_p",
        "no_repeat_ngram_size",
        "repetition_penalty",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "use_cache",
    }
)
"""Options of transformers' GenerationConfig with which every token of an answer comes from a pass of its own."""
LENGTHS: Final = frozenset({"max_length", "max_new_tokens"})
"""Options that say how long an answer may be."""
SWITCHES: Final = ("do_sample", "use_cache")
SAMPLING: Final = frozenset(
    {"temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}
)
"""Options without a meaning where nothing is sampled."""
IGNORED: Final = frozenset(
    {"bos_token_id", "decoder_start_token_id", "disable_compile", "pad_token_id", "transformers_version"}
    | {"output_attentions", "output_hidden_states", "output_logits", "output_scores", "return_dict_in_generate"}
)
"""Options that change no token of an answer that is generated alone."""
BEAMS: Final = frozenset(
    {"assistant_early_exit", "assistant_model", "assistant_tokenizer", "constraints", "custom_generate", "dola_layers"}
    | {"force_words_ids", "num_assistant_tokens", "num_beam_groups", "num_beams", "num_return_sequences"}
    | {"penalty_alpha", "prompt_lookup_num_tokens"}
)
"""Options with which tokens come from several candidates, models, or layers."""
NO_OPTIONS: Final = frozenset(
    {"attention_mask", "generation_config", "input_ids", "inputs", "prefix_length", "streamer", "tokenizer"}
)
"""Arguments of ``generate`` that choose no token."""


def generation_config(
    decoding: Mapping[str, Any], *, max_new_tokens: int, end_tokens: Sequence[int]
) -> GenerationConfig:
    """Build the generation config of a tier's options, in place of the checkpoint's, which may sample.

    Raises:
        ModelError: an option isn't one of those allowed, or has a value that transformers refuses.
    """
    if refused := sorted(set(decoding) - ALLOWED):
        why = (
            "with beam search, assisted decoding and their like the tokens of an answer come from passes of several "
            "candidates, models or layers, so that no signature belongs to the answer; decode greedily or sample "
            "(do_sample)"
            if set(refused) & BEAMS
            else f"known are {sorted(ALLOWED)!r}; the length is the tier's max_new_tokens"
        )
        raise ModelError(f"decoding can't have {refused!r}: {why}")
    # In YAML 1.2 `no` is a word, and any word would switch them on.
    if unclear := [name for name in SWITCHES if not isinstance(decoding.get(name, True), bool)]:
        raise ModelError(f"decoding's {unclear[0]!r} must be true or false, got {decoding[unclear[0]]!r}")
    try:
        config = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers types it partly
            **{"do_sample": False, **decoding},
            max_new_tokens=max_new_tokens,
            eos_token_id=list(end_tokens),
            pad_token_id=end_tokens[0],
            disable_compile=True,  # a compiled graph skips hooks
        )
        config.validate(strict=True)
    except (TypeError, ValueError) as error:
        raise ModelError(f"transformers refuses the decoding {dict(decoding)!r}: {error}") from error
    return config


def parse_decoding(name: str) -> dict[str, Any]:
    """Return the options that `decoding_name` named."""
    return {} if name == GREEDY else dict(json.loads(name))


def decoding_differences(model: Any, given: Mapping[str, Any], ours: GenerationConfig) -> list[str]:
    """List the options in which a third party's call of ``generate`` differs from ours, with all defaults filled in.

    Args:
        model: its own generation config fills in the options that are left open.
        given: the arguments of ``generate``, which may include a ``generation_config``.
        ours: from `generation_config`.
    """
    theirs = model.generation_config.to_diff_dict()
    if (config := given.get("generation_config")) is not None:
        theirs |= config.to_diff_dict()
    theirs = _effective(theirs | {name: value for name, value in given.items() if name in ours.to_dict()})
    wanted = _effective(ours.to_diff_dict())
    different = {name for name in theirs.keys() | wanted.keys() if theirs.get(name) != wanted.get(name)}
    # What a configuration doesn't hold, such as an assistant model or processors of logits, `generate` takes beside it.
    known = NO_OPTIONS | ours.to_dict().keys()
    return sorted(different | {name for name, value in given.items() if name not in known and value is not None})


def hard_decoding_differences(model: Any, given: Mapping[str, Any], ours: GenerationConfig) -> list[str]:
    """List those with which tokens don't each come from a pass of their own, so that no signature is the answer's."""
    return sorted(set(decoding_differences(model, given, ours)) - ALLOWED - SAMPLING - LENGTHS)


def decoding_departures(model: Any, given: Mapping[str, Any], ours: GenerationConfig) -> tuple[Departure, ...]:
    """What the other differences are called: with them, scores aren't calibrated."""
    soft = set(decoding_differences(model, given, ours)) & (ALLOWED | SAMPLING | LENGTHS)
    return in_order("length" if name in LENGTHS else "decoding" for name in soft)


def _effective(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in defaults, and drop the options that have no effect."""
    defaults = GenerationConfig._get_default_generation_params()  # noqa: SLF001 - transformers fills them in by this
    # None leaves an option open.
    filled = defaults | {name: value for name, value in options.items() if value is not None}
    ends = filled.pop("eos_token_id", None)
    filled["eos_token_id"] = sorted(ends) if isinstance(ends, list) else [ends]
    ignored = IGNORED if filled["do_sample"] else IGNORED | SAMPLING
    if "max_new_tokens" in filled:
        ignored |= {"max_length"}
    return {name: value for name, value in filled.items() if name not in ignored and not name.startswith("_")}


def check_decoding(model: Any, config: GenerationConfig, decoding: Mapping[str, Any]) -> None:
    """Generate one token: transformers checks some values (a temperature below 0) and caches only then.

    Raises:
        ModelError: it refuses one.
    """
    tokens = torch.tensor([[config.pad_token_id]], device=model.device)
    one = GenerationConfig(**config.to_dict() | {"max_new_tokens": 1, "min_new_tokens": 1})  # type: ignore[no-untyped-call]  # as above
    try:
        with torch.no_grad():
            model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), generation_config=one)
    except Exception as error:  # a cache of another kind wants a package or a device, and each says so in its own way
        raise ModelError(f"transformers refuses the decoding {dict(decoding)!r}: {error}") from error


def continue_config(config: GenerationConfig, tokens: int) -> GenerationConfig:
    """Build the config that continues answers of so many tokens."""
    left = {"max_new_tokens": config.max_new_tokens - tokens}
    if config.min_new_tokens is not None:
        left["min_new_tokens"] = max(0, config.min_new_tokens - tokens)
    return GenerationConfig(**config.to_dict() | left)  # type: ignore[no-untyped-call]  # as above


def row_cache(model: Any, config: GenerationConfig) -> DynamicCache | None:
    """Build the cache that transformers would build, if rows can be taken out of it; else None.

    State spaces, linear attention and convolutions keep states of other shapes, and a static cache has a fixed size.
    """
    if config.use_cache is False or config.cache_implementation is not None:
        return None
    if not model._supports_default_dynamic_cache():  # noqa: SLF001 - as `generate` asks it
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    is_by_rows = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    return cache if is_by_rows else None


def special_tokens(tokenizer: Any) -> list[int]:
    """List the tokens that decoding leaves out: named ones, and those only marked special, as most of Llama 3's."""
    marked = (token for token, added in tokenizer.added_tokens_decoder.items() if added.special)
    return sorted({*tokenizer.all_special_ids, *marked})


def end_tokens(model: Any, tokenizer: Any, *, chat: bool) -> list[int]:
    """List the tokens that end an answer: the model's own, and for a base model every token with a line break."""
    configured = model.generation_config.eos_token_id
    named = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    if wrong := [token for token in named if token is not None and (type(token) is not int or token < 0)]:
        raise ModelError(f"eos_token_id (generation_config.json or config.json) must be tokens' numbers, got {wrong!r}")
    own = set(named) - {None}
    if not own:
        raise ModelError("neither the model nor its tokenizer names an end-of-sequence token")
    if chat:
        return sorted(own)
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return sorted(own) + [token for token, text in enumerate(texts) if "\n" in text and token not in own]


def context_length(model: Any) -> int:
    """Return how many tokens a model can read.

    Raises:
        ModelError: its configuration doesn't say.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(context, int):
        raise ModelError(
            f"{type(model).__name__} doesn't say how much it can read: its configuration has no max_position_embeddings"
        )
    return context
