"""Scripts that write words side by side: where a name may begin and end in a run of letters."""

import re
import unicodedata
from typing import Final

_BEFORE_HAN: Final = frozenset("是为為在于於叫到从從和与與或即就乃称稱約约第由向对對被把给給而、及")
_NAMED_HAN: Final = re.compile(r"(?:首都|省会|城市|国家|國家|总统|總統|作者|答案|名字|名叫|称为|叫做|位于|位於)$")
"""Of what a name may follow at once."""
_AFTER_HAN: Final = re.compile(
    r"[都府県縣市区區町村州省国國島岛語语的是和与與或在不也就了吗嗎呢吧有位为為之而、及]|首都|城"
)
_AFTER_KANA: Final = re.compile(
    r"です|でし|である|であ|では|じゃ|だ|は|が|を|に|の|と|も|で|へ|や|か|から|まで|より|という|といい"
    r"|など|ね|よ|さん|様|氏|市|ま"
)
_BEFORE_KANA: Final = re.compile(r"(?:は|が|も|の|を|に|と|で|へ|や|か|から|まで|より)$")
_KOREAN_SUFFIX: Final = re.compile(
    r"(?:은|는|이|가|을|를|의|에|에서|에게|께서|로|으로|와|과|랑|이랑|도|만|까지|부터|보다|처럼|이나|나|이든|야|이야|이다|다"
    r"|입니다|이었습니다|였습니다|이었다|였다|이에요|예요|에요|이며|이고|라|이라|라고|이라고|라는|이라는|인|일|임|요"
    r"|시|특별시|광역시|도|군|구|님|씨|년|월|일|개|명|원)+"
)
_LEADING_VOWELS: Final = frozenset("เแโใไ")


def parts_around(first: str, last: str, run: str) -> list[str]:
    """Split a run of letters around a word, where its script lets words stand side by side.

    Args:
        first: a phrase's first word, which may have others before it.
        last: its last word, which may have others behind it.
        run: a word of the text.
    """
    for word in dict.fromkeys((first, last)):
        if word == run or not any(_script(character) for character in word):
            continue
        start = run.find(word)
        while start >= 0:
            before, behind = run[:start], run[start + len(word) :]
            if (not before or _begins(word, before, run)) and (not behind or _ends(word, behind)):
                return [part for part in (before, word, behind) if part]
            start = run.find(word, start + 1)
    return [run]


def _script(character: str) -> str:
    """The script of a character that may stand beside another word's; empty for the scripts that part words."""
    name = unicodedata.name(character, "").split(" ")[0]
    if character == "\N{KATAKANA-HIRAGANA PROLONGED SOUND MARK}":
        return "KATAKANA"
    return name if name in ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR") else ""


def _begins(word: str, before: str, run: str) -> bool:
    script, previous = _script(word[0]), _script(before[-1])
    match script:
        case "HANGUL":
            return previous != "HANGUL"
        case "CJK":
            is_japanese = any(_script(character) in ("HIRAGANA", "KATAKANA") for character in run)
            return (
                previous != "CJK"
                or (not is_japanese and (before[-1] in _BEFORE_HAN or _NAMED_HAN.search(before) is not None))
                or before[-1] in "約第"
            )
        case "HIRAGANA":
            return previous != "HIRAGANA" or _BEFORE_KANA.search(before) is not None
        case "KATAKANA":
            return previous != "KATAKANA"
        case _:
            return before[-1] not in _LEADING_VOWELS


def _ends(word: str, behind: str) -> bool:
    if unicodedata.category(behind[0]).startswith("M"):
        return False
    script, following = _script(word[-1]), _script(behind[0])
    if script == "HANGUL":
        return following != "HANGUL" or _KOREAN_SUFFIX.fullmatch(behind) is not None
    if script == "CJK" and following == "CJK":
        return _AFTER_HAN.match(behind) is not None
    if script in ("CJK", "HIRAGANA"):
        return following != "HIRAGANA" or _AFTER_KANA.match(behind) is not None
    return script != "KATAKANA" or following != "KATAKANA"
