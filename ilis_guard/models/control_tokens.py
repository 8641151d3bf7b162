"""Control tokens: kept out of the words that people write, so that no message ends its turn or begins another's."""

import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby, pairwise
from operator import itemgetter
from typing import Any, Final

from tokenizers import Tokenizer, pre_tokenizers

from ilis_guard.errors import ModelError
from ilis_guard.models.decoding import special_tokens

FILLERS: Final = tuple(map(chr, chain(range(0x10600, 0x10737), range(0x12000, 0x1239A))))
"""Letters of Linear A and cuneiform: they have no case, and nothing composes with them."""
MARKS: Final = tuple(map(chr, range(0x10FF00, 0x10FFFE)))
"""Private-use characters, which normalisation leaves alone."""
_MARKUP: Final = re.compile(r"\W*[<\[{].*[>\]}]\W*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedText:
    """A text, and which of its characters people wrote."""

    text: str
    written: tuple[bool, ...]
    """One each character; white space is nobody's."""

    @classmethod
    def of_people(cls, text: str) -> "MarkedText":
        """Mark a text that people wrote from beginning to end."""
        return cls(text=text, written=tuple(not character.isspace() for character in text))

    @classmethod
    def between(cls, text: str, filled: str) -> "MarkedText":
        """Mark a text where another of the same length has other characters."""
        return cls(text=text, written=tuple(ours != theirs for ours, theirs in zip(text, filled, strict=True)))

    def __add__(self, other: "MarkedText") -> "MarkedText":
        return MarkedText(text=self.text + other.text, written=self.written + other.written)

    def with_marks(self, places: Sequence[int], mark: str) -> "MarkedText":
        """Put a mark before each of some places, which are in order."""
        ends = (*places, len(self.text))
        pieces, written = [self.text[: ends[0]]], list(self.written[: ends[0]])
        for start, end in pairwise(ends):
            pieces.append(mark + self.text[start:end])
            written += (True, *self.written[start:end])
        return MarkedText(text="".join(pieces), written=tuple(written))

    def harmless(self) -> "MarkedText":
        """Put one letter in place of each part that people wrote."""
        letter, pieces, written = absent_from([self.text], FILLERS), list[str](), list[bool]()
        for is_written, part in groupby(zip(self.text, self.written, strict=True), key=itemgetter(1)):
            piece = letter if is_written else "".join(character for character, _ in part)
            pieces.append(piece)
            written += [is_written] * len(piece)
        return MarkedText(text="".join(pieces), written=tuple(written))


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlToken:
    """A control token that a tokenizer found in a text."""

    id: int
    start: int
    end: int

    def is_written(self, marked: MarkedText) -> bool:
        """Whether people wrote a part of it."""
        return any(marked.written[self.start : self.end])

    def place_to_cut(self, marked: MarkedText, boundaries: set[int]) -> int | None:
        """Find where to cut what people wrote of it, if possible where its plain spelling has a boundary."""
        places = [place for place in range(self.start + 1, self.end) if any(marked.written[place - 1 : place + 1])]
        return next((place for place in places if place in boundaries), next(iter(places), None))


def fill(text: str, letter: str) -> str:
    """Replace everything but white space, so that a chat template strips the same and recognises nothing."""
    return "".join(character if character.isspace() else letter for character in text)


def absent_from(texts: Iterable[str], candidates: Sequence[str]) -> str:
    """Return the first of the candidates, one character each, that stands in none of the texts.

    Raises:
        ModelError: all do.
    """
    present = set[str]().union(*texts)
    found = next((candidate for candidate in candidates if candidate not in present), None)
    if found is None:
        raise ModelError(
            f"a message holds all {len(candidates)} characters from {candidates[0]!r} to {candidates[-1]!r}, of which "
            "encoding needs one for itself: leave one out"
        )
    return found


class PlainTextEncoder:
    """Encodes texts so that only what nobody wrote, such as the marks of a chat template, becomes control tokens.

    transformers' own ``sanitize_control_tokens`` knows neither a base model's prompt nor an answer that is read, and
    encodes a conversation in pieces, which gives SentencePiece tokenizers other tokens at their borders.

    Args:
        tokenizer: transformers' own.
        lock: held while the tokenizer is in use.
    """

    def __init__(self, tokenizer: Any, lock: threading.Lock) -> None:
        self._tokenizer = tokenizer
        self._lock = lock
        self._control = control_tokens(tokenizer)
        # What a character that it doesn't know becomes, although nobody wrote that token.
        self._unknown = frozenset(tokenizer(FILLERS[0], add_special_tokens=False)["input_ids"])
        self._cutter: Tokenizer | None = None

    def encode(self, marked: MarkedText, *, special: bool) -> list[int]:
        """Encode a text: as the tokenizer does, but for control tokens that people wrote, which are spelled.

        Args:
            marked: the text.
            special: let the tokenizer add its own tokens around the text.

        Raises:
            ModelError: the control tokens aren't those that any other words would leave.
        """
        harmless = marked.harmless()
        with self._lock:
            ids, found = self._tokenize(marked.text, special=special)
            if any(token.is_written(marked) for token in found):
                mark = absent_from([marked.text], MARKS)
                marked, ids, found = self._cut(marked, mark, found, special=special)
            _, expected = self._tokenize(harmless.text, special=special)
        if _among_unwritten(found, marked) != _among_unwritten(expected, harmless):
            raise ModelError(
                "the words of a message change the control tokens of the prompt around them, as this tokenizer reads "
                f"it ({len(found)} instead of {len(expected)}): leave the text of control tokens out of messages"
            )
        return ids

    def cut(self, text: str, mark: str) -> str:
        """Put marks into all control tokens of a text that people wrote."""
        marked = MarkedText.of_people(text)
        with self._lock:
            _, found = self._tokenize(text, special=False)
            return self._cut(marked, mark, found, special=False)[0].text if found else text

    def controls(self, text: str) -> list[int]:
        """List the control tokens in a text."""
        with self._lock:
            return [token.id for token in self._tokenize(text, special=False)[1]]

    def _cut(
        self, marked: MarkedText, mark: str, found: Sequence[ControlToken], *, special: bool
    ) -> tuple[MarkedText, list[int], list[ControlToken]]:
        """Cut the control tokens that people wrote, and encode the text without them."""
        cutter = self._tokenizer_without(mark)
        cutter.encode_special_tokens = True
        boundaries = {start for start, _ in cutter.encode(marked.text, add_special_tokens=False).offsets}
        cutter.encode_special_tokens = False
        ids = list[int]()
        while places := [place for token in found if (place := token.place_to_cut(marked, boundaries)) is not None]:
            marked = marked.with_marks(places, mark)
            encoding = cutter.encode(marked.text, add_special_tokens=special)
            # A cut may uncover a shorter control token.
            ids, found, boundaries = encoding.ids, self._find(marked.text, encoding.ids, encoding.offsets), set()
        return marked, ids, list(found)

    def _tokenizer_without(self, mark: str) -> Tokenizer:
        """Return the tokenizer with one difference: it finds no token across a mark, and leaves the mark out."""
        own: Tokenizer | None = getattr(self._tokenizer, "backend_tokenizer", None)
        if own is None:
            raise ModelError(
                f"a message holds the text of a control token, which a {type(self._tokenizer).__name__} can't spell: "
                "leave it out of messages, or give the model a tokenizer.json"
            )
        if self._cutter is None:
            self._cutter = _copy(own)
        steps = [] if own.pre_tokenizer is None else [own.pre_tokenizer]
        # Last, because what splits before may add a space to each piece; byte-level tokenizers have spelled it by then.
        seen = mark if own.normalizer is None else own.normalizer.normalize_str(mark)
        for step in steps:
            seen = "".join(piece for piece, _ in step.pre_tokenize_str(seen))
        spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(mark)[0][0]
        pattern = spelled if spelled in seen else mark
        self._cutter.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.Split(pattern, "removed")])
        return self._cutter

    def _tokenize(self, text: str, *, special: bool) -> tuple[list[int], list[ControlToken]]:
        if self._tokenizer.is_fast:
            encoded = self._tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
            return list(encoded["input_ids"]), self._find(text, encoded["input_ids"], encoded["offset_mapping"])
        # Without offsets, every control token's text is taken for one.
        spellings = sorted(self._control.values(), key=len, reverse=True)
        ids = {spelling: id_ for id_, spelling in self._control.items()}
        return list(self._tokenizer(text, add_special_tokens=special)["input_ids"]), [
            ControlToken(id=ids[match.group()], start=match.start(), end=match.end())
            for match in re.finditer("|".join(map(re.escape, spellings)) or r"(?!)", text)
        ]

    def _find(self, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[ControlToken]:
        return [
            ControlToken(id=id_, start=start, end=end)
            for id_, (start, end) in zip(ids, offsets, strict=True)
            if id_ in self._control and (id_ not in self._unknown or text[start:end].strip() == self._control[id_])
        ]


def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the text of each control token.

    Special tokens are, and added ones that look like marks or stand in the chat template; others are words.
    """
    special, template = set(special_tokens(tokenizer)), str(tokenizer.chat_template or "")
    added = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items()}
    named = {id_: str(tokenizer.convert_ids_to_tokens(id_)) for id_ in special if id_ not in added}
    return named | {
        id_: content
        for id_, content in added.items()
        if id_ in special or (content.strip() and (_MARKUP.fullmatch(content) or content in template))
    }


def _among_unwritten(found: Iterable[ControlToken], marked: MarkedText) -> list[tuple[int, int, int]]:
    """Place control tokens by the characters before them that nobody wrote."""
    places = list(accumulate((not written for written in marked.written), initial=0))
    return [(token.id, places[token.start], places[token.end]) for token in found]


def _copy(tokenizer: Tokenizer) -> Tokenizer:
    """Copy a tokenizer, all but its vocabulary, which takes seconds and both can share."""
    copy = Tokenizer(tokenizer.model)
    added = tokenizer.get_added_tokens_decoder()
    copy.add_tokens([token for _, token in sorted(added.items())])
    if copy.get_added_tokens_decoder() != added:  # numbered with gaps
        copy = Tokenizer.from_str(tokenizer.to_str())
        copy.no_padding()
        copy.no_truncation()
    copy.normalizer, copy.post_processor = tokenizer.normalizer, tokenizer.post_processor
    return copy
