"""What an answer says to a question of yes or no, in the words of many languages."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ilis_guard.lab.assertions import is_denied
from ilis_guard.lab.mentions import Mention, Token, fold, tokens_of
from ilis_guard.lab.vocabulary import OPINION, folded_words

_YES: Final = folded_words(
    "yes yep yeah yup true correct oui vrai verdadero verdadera verdad verdadeiro"
    " verdade wahr richtig korrekt waar evet"
    " doğru igen kyllä sant верно правда правильно prawda"
    " benar ναι σωστό نعم صحيح हाँ हां सही はい 是 是的 对 對 正确 正確 네 예 ใช่"
)
_NO: Final = folded_words(
    "nope nah false incorrect untrue wrong nein faux falso falsa falsch onwaar hayır yanlış nej falskt неверно"
    " неправда неправильно fałsz salah όχι λάθος خطأ नहीं गलत いいえ 否 不是 不 不对 不對 错误 錯誤 아니요 아니오 ไม่ใช่"
)
"""Truths wherever they stand."""
_YES_ALONE: Final = folded_words("ja si sì sí sim да так tak ano da ya có đúng jo כן")
_NO_ALONE: Final = folded_words("no non não нет ні ni nie ne nem nu ei לא لا ไม่ không tidak nee nei")
"""Other words in other places, or in other languages: truths where they are a clause of their own."""
_LETTERS: Final = {"y": True, "t": True, "n": False, "f": False}
"""As the whole answer."""
_SUBJECTS: Final = folded_words(
    "it its they he she there this that these those i you we because as since not sir thanks thank"
)
"""After "no": "No it isn't". Another word makes it a quantity: "no evidence"."""
_CONNECTORS: Final = folded_words(
    "or and also but nor even oder und auch ou et aussi o y e ni или и both either neither maybe perhaps ve"
)
_RETRACTIONS: Final = folded_words("wait actually sorry correction rather oops scratch doch pardon perdón nein no")
_DIVIDED: Final = re.compile(r"\b(?:some|many)\b.*\bothers\b|\b(?:sometimes|partly)\b.*\b(?:sometimes|partly)\b")

_IN_A_RUN: Final[Sequence[tuple[re.Pattern[str], bool | None]]] = tuple(
    (re.compile(pattern), truth)
    for pattern, truth in (
        (r"(?:はい|いいえ)(?:と|か|または|でも)(?:はい|いいえ)", None),
        (r"わか|分か|判り|知り|不知|不确定|不確定|不清楚|不一定|不好说|不好說|모르|모릅|ไม่ทราบ|ไม่รู้|ไม่แน่|อาจ", None),
        (r"没错|沒錯|没问题|沒問題|는? 맞", True),
        (r".*(?:は|是|：|:)いいえ", False),
        (r".*(?:は|是|：|:)はい", True),
        (r"いいえ|いや|違|間違|正しくな|そうではな|不|没|沒|否|错|錯|아니|아닙|틀리|틀렸|ไม่", False),
        (r"はい|ええ|そうで|正しい|その通り|是的|对的|對的|正确|正確|当然|當然|맞|그렇습|그렇다|네요|ใช่|ถูก", True),
    )
)
"""What the first word of a script without spaces begins with; None for no truth."""
_UNKNOWN: Final = re.compile(
    r"\b(?:(?:dont|do not|doesnt|didnt|not|cannot|cant|nobody|no one|hard to|impossible to) "
    r"(?:really |quite )?(?:know|knows|sure|certain|clear|known|say|tell|enough|necessarily|determine)"
    r"|unsure|unclear|unknown|no (?:idea|clue|comment|answer|information|data)|cannot be (?:determined|known|answered)"
    r"|depends|weiss (?:es |das )?nicht|keine ahnung|sais pas|lo se|lo so|nao sei|не знаю|nie wiem|bilmiyorum)\b"
)
_AFFIRMATIONS: Final = frozenset(
    [
        "absolutely",
        "definitely",
        "certainly",
        "of course",
        "indeed",
        "exactly",
        "affirmative",
        "agreed",
        "sure",
        "surely",
        "naturally",
        "that right",
        "that is right",
        "right",
        "you are right",
        "no doubt",
        "without doubt",
        "no question",
        "das stimmt",
        "stimmt",
        "natürlich",
        "selbstverständlich",
        "bien sûr",
        "absolument",
        "claro",
        "claro que sí",
        "por supuesto",
        "desde luego",
        "certo",
        "certamente",
        "claro que sim",
        "конечно",
    ]
)
_DENIALS: Final = frozenset(
    [
        "absolutely not",
        "definitely not",
        "certainly not",
        "of course not",
        "surely not",
        "probably not",
        "not at all",
        "not really",
        "not true",
        "no way",
        "never",
        "negative",
        "by no means",
        "das stimmt nicht",
        "stimmt nicht",
        "natürlich nicht",
        "auf keinen fall",
        "keineswegs",
        "pas du tout",
        "absolument pas",
        "bien sûr que non",
        "claro que no",
        "por supuesto que no",
        "en absoluto",
        "assolutamente no",
        "claro que não",
        "конечно нет",
        "ni hablar",
    ]
)
_UNDECIDED: Final = re.compile(
    r"\b(?:impossible|hard|difficult|unable|cannot|cant|not) (?:to )?(?:say|tell|know) (?:yes|no|true|whether|if)\b"
)
_CLAUSES: Final = {
    " ".join(map(fold, phrase.split())): truth
    for phrases, truth in ((_AFFIRMATIONS, True), (_DENIALS, False))
    for phrase in phrases
}
"""First clauses that are a truth by themselves."""
_NONE: Final = frozenset(
    ("no", noun) for noun in ("evidence", "proof", "reason", "such", "one", "record", "scientific")
)
_SHORT: Final = re.compile(
    r"(?:it|they|he|she|that|this|there|you|we|i) (?:is|are|was|were|does|do|did|can|could|has|have|had|will|would"
    r"|should)"
    r"(?P<denied>nt| not| never)?(?: so| indeed)?|(?:it|they|he|she|that|you|we|i) (?P<never>cannot|cant|wont)"
)
"""``It is.``, ``They don't.``"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Truth:
    place: int
    value: bool


def truth_of(text: str) -> bool | None:
    """What a text says to a question of yes or no; None where it says neither, or both."""
    tokens = tokens_of(text)
    words = [token.text for token in tokens if token.is_word]
    if not words:
        return None
    if len(words) == 1 and words[0] in _LETTERS:
        return _LETTERS[words[0]]
    truths: list[_Truth] = []
    for place in range(len(tokens)):
        # An earlier truth denies no later one: "no or yes".
        start = truths[-1].place + 1 if truths else 0
        if (truth := _truth_at(tokens, place, start)) is not None:
            truths.append(truth)
    if _is_unknown(tokens, words, truths):
        return None
    if truths:
        return _settled(tokens, truths)
    for pattern, value in _IN_A_RUN:
        if pattern.match("".join(words)):
            return value
    return _clause(tokens, words)


def _is_unknown(tokens: Sequence[Token], words: Sequence[str], truths: Sequence[_Truth]) -> bool:
    """Whether the text says that it doesn't know, and nothing after that."""
    said = " ".join(words)
    unknown = _UNKNOWN.search(said)
    is_last = unknown and not any(_words_until(tokens, truth.place) >= unknown.end() for truth in truths)
    return bool(is_last) or _UNDECIDED.search(said) is not None


def _truth_at(tokens: Sequence[Token], place: int, start: int) -> _Truth | None:
    token = tokens[place]
    if not token.is_word:
        return None
    is_plain = token.text in _YES or token.text in _NO
    if not is_plain and not ((token.text in _YES_ALONE or token.text in _NO_ALONE) and _is_alone(tokens, place)):
        return None
    value = token.text in _YES or token.text in _YES_ALONE
    # What follows "no" explains it: "No, it isn't".
    around = tokens[start:] if token.text in _YES else tokens[start : place + 1]
    denied = is_denied(Mention(tuple(around), place - start, place - start))
    return _Truth(place=place, value=value is not denied)


def _is_alone(tokens: Sequence[Token], place: int) -> bool:
    """Whether a word is a clause, the last word, or one of two truths that are joined."""
    before = tokens[place - 1] if place else None
    behind = tokens[place + 1] if place + 1 < len(tokens) else None
    begins = before is None or not before.is_word or before.text in _CONNECTORS
    is_last = not any(token.is_word for token in tokens[place + 1 :])
    if behind is None or not behind.is_word:
        return begins or is_last
    if behind.text in _CONNECTORS:
        return begins
    return place == 0 and tokens[place].text == "no" and behind.text in _SUBJECTS


def _settled(tokens: Sequence[Token], truths: Sequence[_Truth]) -> bool | None:
    """The first truth, unless the text takes it back or says both."""
    first, *others = truths
    other = next((truth for truth in others if truth.value is not first.value), None)
    if other is None:
        return first.value
    between = tokens[first.place + 1 : other.place]
    words = {token.text for token in between if token.is_word}
    said = " ".join(token.text for token in tokens if token.is_word)
    if _DIVIDED.search(said):
        return None
    before = " ".join(token.text for token in tokens[: first.place] if token.is_word)
    if OPINION.search(before):
        return _settled(tokens, [truth for truth in truths if truth.place >= other.place])
    if words & _RETRACTIONS or any(token.text in "?？" for token in between):
        return _settled(tokens, [truth for truth in truths if truth.place >= other.place])
    if words <= _CONNECTORS:
        return None
    return first.value


def _words_until(tokens: Sequence[Token], place: int) -> int:
    return len(" ".join(token.text for token in tokens[:place] if token.is_word))


def _clause(tokens: Sequence[Token], words: Sequence[str]) -> bool | None:
    """What the first clause says without a word of truth: ``Of course not``, ``It is``."""
    end = next((place for place, token in enumerate(tokens) if not token.is_word and place), len(tokens))
    clause = " ".join(token.text for token in tokens[:end] if token.is_word)
    if clause in _CLAUSES:
        return _CLAUSES[clause]
    if match := _SHORT.fullmatch(clause):
        return not (match["denied"] or match["never"])
    return False if words[0] in ("not", "never") or tuple(words[:2]) in _NONE else None
