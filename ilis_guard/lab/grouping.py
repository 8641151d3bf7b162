"""Groups of rows that depend on one another: the same question, however it is written, or the same owner.

Rows of a group count once in a guarantee and stay on one side of a split. docs/fitting.md says what was measured of
these rules: how often they join different questions, and how often they miss a repeated one.
"""

import hashlib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from ilis_guard.lab.attempts import Answers
from ilis_guard.types import Dtype

SAME: Final = 0.8
"""Two questions are the same if they share this much of their words and pairs of neighbouring words, each weighted by
how rare it is (a weighted Jaccard index)."""
SAME_WITH_ANSWER: Final = 0.6
"""As `SAME`, of two questions that share a right answer, too."""
LEAST_LETTERS: Final = 5
"""A shorter word that differs in a letter is another word."""
MOST_WORDS_OF_TYPO: Final = 40
"""In a longer question a misspelt word leaves more than `SAME` of the rest."""

SAME_MAPS: Final[Mapping[Dtype, float]] = {"float32": 0.0001, "bfloat16": 0.01, "float16": 0.01}
"""Prompts' maps are the same if none of their cells, as log(1 + nats), differs by more: a question that is asked again
in another batch has other rounding errors, of 0.00002 at most in float32. Different questions differ by 0.05 at least
in SmolLM2, and by 0.0006 in Gemma 3 270M, whose last token is always the same colon."""
SAME_STATISTICS: Final = 1e-9
CERTAIN: Final = 0.01
"""Nats of log-probability up to which a model is as good as certain of an answer."""

PARTS: Final = 8
"""Parts of the columns whose means are compared first."""

Groups = Int64[np.ndarray, " rows"]
"""For each row the index of the first row of its group."""
Tokens = tuple[str, ...]

_SPACELESS: Final = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Scripts that are written without spaces, or whose syllables are words: each sign is a token, so no two words that
differ in a sign pass for a slip of the keyboard."""
_TOKEN: Final = re.compile(rf"\d+(?:[.,:/]\d+)*|[{_SPACELESS}]|[^\W\d_{_SPACELESS}]+|\S")
_FORMAL: Final = re.compile(r"[\[\]{}()=<>+*/\\^|&~%#@]|\d\s*[-\N{MINUS SIGN}]\s*\d|\s[-\N{MINUS SIGN}]\s?\d")
"""Signs of formulas and code, in which punctuation has a meaning: ``5 - 3``, ``x[1:]``."""
_NUMBERED: Final = re.compile(r"(?<![\w-])(?=[\w:.,/-]*\d)[\w:.,/-]+")
"""A number, a date, a time or an identifier."""
_INNER_APOSTROPHE: Final = re.compile(r"(?<=\w)['\N{RIGHT SINGLE QUOTATION MARK}](?=\w)")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionText:
    """What is compared of a question."""

    question: str
    """With its choices, where it has some."""
    context: str = ""
    """What it refers to: a passage, or the turns before it."""
    answers: frozenset[str] = frozenset()
    """The right answers, or the one that was given; empty where none is known."""
    owner: str | None = None
    """The document or user that it belongs to."""


def question_groups(questions: Sequence[QuestionText]) -> Groups:
    """Group questions that are the same, or have one owner.

    Questions are the same if their contexts are and their texts are equal but for case, spaces and punctuation, share
    `SAME` or `SAME_WITH_ANSWER` of their words and pairs, or differ in one slip of the keyboard. Numbers are never the
    same unless they are equal, or the questions share a right answer and words that no other answer's have: a number
    of a request, or the time of day, makes no other question.
    """
    known = {text: _Item.of(text) for text in {one.context for one in questions}}
    contexts = [known[one.context] for one in questions]
    same = join_rows(len(questions), _same(contexts)).tolist()
    items = [
        _Item.of(one.question, one.answers, place if context.tokens else None)
        for one, context, place in zip(questions, contexts, same, strict=True)
    ]
    return join_rows(len(questions), _same(items), equal_rows([one.owner for one in questions]))


def text_digest(text: QuestionText) -> str:
    """Digest a question's text, the same for all spellings that mean the same; empty of a text without words."""
    tokens = tokens_of(text.question)
    parts = "\0".join(" ".join(each) for each in (tokens, tokens_of(text.context)))
    return hashlib.sha256(parts.encode()).hexdigest()[:16] if tokens else ""


def answer_groups(answers: Answers) -> Groups:
    """Group answers that the table groups, and answers to what, going by the model's own numbers, was one prompt.

    Answers of several harvests to one question, in several wordings, have one id.
    """
    columns = (answers.ids, answers.groups, answers.owners)
    named = (equal_rows(names.tolist()) for names in columns if names is not None)
    return join_rows(len(answers), *named, _equal_features(answers))


def equal_rows(values: Sequence[Hashable]) -> Iterator[tuple[int, int]]:
    """Pair each row with the first one of the same value; rows whose value is None with none."""
    first: dict[Hashable, int] = {}
    for row, value in enumerate(values):
        if value is not None and (known := first.setdefault(value, row)) != row:
            yield known, row


def close_rows(values: Float64[np.ndarray, "rows values"], tolerance: float) -> Iterator[tuple[int, int]]:
    """Pair rows none of whose values differ by more than a tolerance, directly or through equal rows.

    The means of parts of such rows don't differ by more either, and a tree of these few numbers finds the candidates.
    """
    first: dict[bytes, int] = {}
    for row, value in enumerate(values):
        known = first.setdefault(value.tobytes(), row)
        if known != row:
            yield known, row
    distinct = np.array(list(first.values()), dtype=np.int64)
    parts = np.array_split(np.arange(values.shape[1]), min(PARTS, values.shape[1]))
    means = np.column_stack([values[distinct][:, part].mean(axis=1) for part in parts])
    candidates = KDTree(means).query_pairs(tolerance, p=np.inf, output_type="ndarray")
    for one, other in distinct[candidates].tolist():
        if np.abs(values[one] - values[other]).max() <= tolerance:
            yield one, other


def join_rows(rows: int, *pairs: Iterable[tuple[int, int]]) -> Groups:
    """Group rows that these pairs link, directly or through others."""
    links = np.array([pair for each in pairs for pair in each], dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(links), dtype=np.int8), (links[:, 0], links[:, 1])), shape=(rows, rows))
    _, labels = connected_components(graph, directed=False)
    _, first, group = np.unique(labels, return_index=True, return_inverse=True)
    groups: Groups = first[group].astype(np.int64)
    return groups


def _equal_features(answers: Answers) -> Iterator[tuple[int, int]]:
    """Pair answers to prompts of which the model's layers say the same, or of remote models with one log-probability.

    A prompt's map doesn't depend on its answer, which may be sampled.
    """
    if answers.signatures:
        maps = answers.signatures["prompt"].reshape(len(answers), -1)
        yield from close_rows(np.log1p(maps, dtype=np.float64), SAME_MAPS[answers.manifest.tapped().dtype])
        return
    # Many answers of which a model is certain have the very same log-probability.
    telling = np.flatnonzero(np.abs(answers.statistics[:, 0]) >= CERTAIN)
    for one, other in close_rows(answers.statistics[telling], SAME_STATISTICS):
        yield int(telling[one]), int(telling[other])


def tokens_of(text: str) -> Tokens:
    """Split a text into words, numbers and signs, the same for spellings that mean the same.

    Compatibility forms, case, spaces and invisible characters never count, and punctuation only in formulas and code.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if not folded.isascii():
        folded = "".join(sign for sign in folded if unicodedata.category(sign) != "Cf")
    is_formal = _FORMAL.search(folded) is not None
    found = _TOKEN.findall(_INNER_APOSTROPHE.sub("", folded))
    return tuple(token for token in found if token[0].isalnum() or not _is_ignored(token, is_formal=is_formal))


def _is_ignored(sign: str, *, is_formal: bool) -> bool:
    return sign in "?!." if is_formal else unicodedata.category(sign)[0] == "P"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """A text, as it is compared."""

    tokens: Tokens
    block: Hashable
    """Only texts of one block are compared."""
    answers: frozenset[Tokens] = frozenset()
    words: Tokens = ()
    """The tokens of all that has no digit in it."""
    context: Hashable = None

    @classmethod
    def of(cls, text: str, answers: Iterable[str] = (), block: Hashable = None) -> "_Item":
        tokens = tokens_of(text)
        numbers = tuple(token for token in tokens if token[0].isdigit())
        known = frozenset(filter(None, map(tokens_of, answers)))
        words = tokens_of(_NUMBERED.sub(" ", text)) if numbers else tokens
        return cls(tokens=tokens, block=(block, numbers), answers=known, words=words, context=block)

    def may_share_an_answer(self, other: "_Item") -> bool:
        return not self.answers or not other.answers or bool(self.answers & other.answers)

    def shares_an_answer(self, other: "_Item") -> bool:
        return bool(self.answers & other.answers)


def _same(items: Sequence[_Item]) -> Iterator[tuple[int, int]]:
    """Pair rows whose texts are the same. A text without words is like no other."""
    rows: dict[tuple[Hashable, Tokens], list[int]] = defaultdict(list)
    for row, item in enumerate(items):
        if item.tokens:
            rows[item.block, item.tokens].append(row)
    distinct: list[_Item] = []
    places: list[int] = []
    for (block, tokens), equal in rows.items():
        yield from ((equal[0], row) for row in equal[1:])
        answers = frozenset[Tokens]().union(*(items[row].answers for row in equal))
        first = items[equal[0]]
        distinct.append(_Item(tokens=tokens, block=block, answers=answers, words=first.words, context=first.context))
        places.append(equal[0])
    for one, other in (*_misspelt(distinct), *_Shingles.of(distinct).similar(), *_renumbered(distinct)):
        yield places[one], places[other]


def _renumbered(items: Sequence[_Item]) -> Iterator[tuple[int, int]]:
    """Pair texts that are the same but for numbers, and share an answer.

    They also share words, or are all the same words, that stand only in texts with that answer. In
    arithmetic, and in other templates, the words are those of many answers, and the numbers are the question.
    """
    whole: dict[tuple[Hashable, Tokens], list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        if item.answers and item.words:
            whole[item.context, item.words].append(place)
    for equal in whole.values():
        if frozenset.intersection(*(items[place].answers for place in equal)):
            yield from ((equal[0], place) for place in equal[1:])
    # Each wording once: a template may have thousands of rows.
    equals = list(whole.values())
    known = [
        _Item(
            tokens=words, block=context, answers=frozenset[Tokens]().union(*(items[place].answers for place in equal))
        )
        for (context, words), equal in whole.items()
    ]
    shingles = _Shingles.of(known)
    common: dict[int, frozenset[Tokens]] = {}
    for equal, each in zip(equals, shingles.of_each, strict=True):
        of_all = frozenset.intersection(*(items[place].answers for place in equal))
        for shingle in each:
            common[shingle] = common.get(shingle, of_all) & of_all
    for one, other in shingles.similar():
        shared = known[one].answers & known[other].answers
        if shared and any(common[shingle] for shingle in shingles.of_each[one] & shingles.of_each[other]):
            yield from _with_one_answer(items, equals[one], equals[other], shared)


def _with_one_answer(
    items: Sequence[_Item], places: Sequence[int], others: Sequence[int], answers: frozenset[Tokens]
) -> Iterator[tuple[int, int]]:
    """Pair the items of two wordings that have the same one of these answers."""
    for answer in answers:
        first = next(place for place in places if answer in items[place].answers)
        other = next(place for place in others if answer in items[place].answers)
        yield from ((first, place) for place in others if answer in items[place].answers)
        yield from ((place, other) for place in places if answer in items[place].answers)


def _misspelt(items: Sequence[_Item]) -> Iterator[tuple[int, int]]:
    """Pair texts that differ in one letter of one word, or in two letters that changed places.

    Words that do so have a spelling in common once a letter is taken out of one or both.
    """
    candidates: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, item in enumerate(items):
        words = item.tokens if len(item.tokens) <= MOST_WORDS_OF_TYPO else ()
        for place, word in enumerate(words):
            if len(word) >= LEAST_LETTERS - 1 and word.isalpha():
                rest = (item.block, item.tokens[:place], item.tokens[place + 1 :])
                shortened = {word, *(word[:letter] + word[letter + 1 :] for letter in range(len(word)))}
                for spelling in shortened:
                    candidates[hash((rest, spelling))].append((number, place))
    for alike in candidates.values():
        for (one, at), (other, there) in combinations(alike, 2):
            word, changed = items[one].tokens[at], items[other].tokens[there]
            if at == there and is_typo(word, changed) and items[one].may_share_an_answer(items[other]):
                yield one, other


def is_typo(one: str, other: str) -> bool:
    """Whether a slip of the keyboard makes one word of the other: a letter more, less or wrong, or two swapped."""
    if abs(len(one) - len(other)) > 1 or max(len(one), len(other)) < LEAST_LETTERS:
        return False
    same = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    rest, others = one[same:], other[same:]
    if len(one) != len(other):
        return rest[1:] == others or rest == others[1:]
    return rest[1:] == others[1:] or (rest[:2] == others[:2][::-1] and rest[2:] == others[2:])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shingles:
    """The words and pairs of neighbouring words of texts, with weights: what many texts have tells little of one."""

    items: Sequence[_Item]
    of_each: Sequence[frozenset[int]]
    """Shingles as numbers, rare ones before frequent ones."""
    weights: Sequence[float]
    totals: Sequence[float]
    """Weight of all shingles of each text."""

    @classmethod
    def of(cls, items: Sequence[_Item]) -> "_Shingles":
        shingles = [{*one.tokens, *pairwise(one.tokens)} for one in items]
        counts = Counter[Hashable](shingle for each in shingles for shingle in each)
        ordered = sorted(counts.items(), key=lambda each: each[1])
        rank = {shingle: place for place, (shingle, _) in enumerate(ordered)}
        weights = [math.log((len(items) + 1) / count) for _, count in ordered]
        of_each = [frozenset(map(rank.__getitem__, each)) for each in shingles]
        totals = [math.fsum(map(weights.__getitem__, each)) for each in of_each]
        return cls(items=items, of_each=of_each, weights=weights, totals=totals)

    def similar(self) -> Iterator[tuple[int, int]]:
        """Pair texts that share enough.

        From the lightest text on, each is indexed by its rarest shingles alone: by so many that a text which shares
        none of them can't share enough (prefix filtering).
        """
        index: dict[Hashable, list[int]] = defaultdict(list)
        for one in sorted(range(len(self.items)), key=self.totals.__getitem__):
            keys = [(self.items[one].block, shingle) for shingle in self._rarest(one)]
            for other in {known for key in keys for known in index[key]}:
                if self._are_similar(one, other):
                    yield one, other
            for key in keys:
                index[key].append(one)

    def _rarest(self, one: int) -> Iterator[int]:
        left = self.totals[one]
        for shingle in sorted(self.of_each[one]):
            if left < SAME_WITH_ANSWER * self.totals[one]:
                return
            yield shingle
            left -= self.weights[shingle]

    def _are_similar(self, one: int, other: int) -> bool:
        least = SAME_WITH_ANSWER if self.items[one].shares_an_answer(self.items[other]) else SAME
        if min(self.totals[one], self.totals[other]) < least * max(self.totals[one], self.totals[other]):
            return False
        shared = math.fsum(map(self.weights.__getitem__, self.of_each[one] & self.of_each[other]))
        return shared >= least * (self.totals[one] + self.totals[other] - shared)
