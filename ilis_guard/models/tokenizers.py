"""Tokenizers in memory: their digest, and whether they go with their model."""

import hashlib
from collections.abc import Iterable
from typing import Any, Final

from ilis_guard.errors import ModelError

PROBE: Final = (
    "The quick brown fox's 12,345.67 jumps -- over\tTHE lazy dog!?\n\n  def f(x): return {'a': [x**2, 0x1F]}  "
    "na\u00efve Stra\u00dfe \ufb01ne cafe\u0301 \u03ac\u03c2 \u0440\u0443\u0438\u0439 \u05e2\u05d1\u05e8 "
    "\u0627\u0644\u0639 \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 \u65e5\u672c\u8a9e \ud55c\uad6d "
    "\U0001f642 \u00bd \u2211 \u00a0 \u200b \u2581\u0120"
)
"""A text of many scripts, on which tokenizers of one vocabulary and different rules disagree."""

_MOVING: Final = frozenset({"_in_target_context_manager", "name_or_path", "padding_side", "truncation_side", "verbose"})
"""Attributes that change no token of a text."""


def tokenizer_digest(tokenizer: Any, ends: Iterable[int]) -> str:
    """Digest a tokenizer by its vocabulary, by what it makes of a text, and by the tokens that end an answer.

    Its files aren't digested: each release of its library writes them differently.
    """
    digest = hashlib.sha256()
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda each: (each[1], each[0])):
        digest.update(f"{number} {token}\n".encode("utf-8", "surrogatepass"))
    for special in (False, True):
        digest.update(f"{tokenizer(PROBE, add_special_tokens=special)['input_ids']}\n".encode())
    digest.update(f"{sorted(tokenizer.all_special_ids)} {sorted(ends)}".encode())
    return digest.hexdigest()[:16]


class TokenizerSnapshot:
    """The state of a tokenizer, all but its vocabulary of hundreds of kilobytes, of which the size must do.

    Args:
        tokenizer: transformers' own.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._state = self._read()

    def is_changed(self) -> bool:
        """Whether the tokenizer was changed since this was made."""
        return self._read() != self._state

    def _read(self) -> list[Any]:
        given = self._tokenizer
        own = getattr(given, "backend_tokenizer", None)
        state: list[Any] = [
            {
                name: value
                for name, value in vars(given).items()
                if name not in _MOVING and (isinstance(value, bool | str) or callable(value) or name == "chat_template")
            },
            sorted(given.all_special_ids),
        ]
        if own is None:
            return [*state, str(given.added_tokens_decoder), given.vocab_size]
        steps = (own.normalizer, own.pre_tokenizer, own.post_processor, own.decoder)
        state += [None if step is None else step.__getstate__() for step in steps]
        options = (getattr(own.model, name, None) for name in ("dropout", "byte_fallback", "fuse_unk", "unk_token"))
        return [
            *state,
            str(own.get_added_tokens_decoder()),
            own.get_vocab_size(),
            type(own.model),
            *options,
        ]


def vocabulary_size(model: Any) -> int:
    """Return how many tokens a model has embeddings of."""
    return int(model.get_input_embeddings().weight.shape[0])


def check_tokenizer(tokenizer: Any, model: Any, name: str) -> None:
    """Check that a tokenizer has a vocabulary that its model knows, and a chat template that works.

    Raises:
        ModelError: it doesn't.
    """
    if not callable(getattr(tokenizer, "get_vocab", None)):
        raise ModelError(f"the model {name!r} has no tokenizer, got a {type(tokenizer).__name__}")
    # Named tokens may lie beyond: Gemma's text models know no image, and its tokenizer has a word for one.
    known, rows = tokenizer.vocab_size, vocabulary_size(model)
    if known < 2:
        raise ModelError(f"the tokenizer of {name!r} has no vocabulary: tokenizer.json or its like is missing")
    if known > rows:
        raise ModelError(
            f"the tokenizer of {name!r} has {known} words and the model knows {rows} (vocab_size in config.json): they "
            "don't belong together"
        )
    if tokenizer.chat_template is not None:
        try:
            tokenizer.apply_chat_template(
                [{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program, and may fail in any way
            raise ModelError(
                f"the chat template of {name!r} (chat_template.jinja or tokenizer_config.json) doesn't render a "
                f"conversation of one turn: {type(error).__name__}: {error}"
            ) from error
