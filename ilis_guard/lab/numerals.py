"""Numbers in texts: digits of any script, separators of several countries, scales, fractions, exponents, words."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from text_to_num import alpha2digit, text2num

_SCALES: Final = {
    "hundred": 10**2,
    "dozen|dozens|dutzend|douzaines?": 12,
    "thousand|thousands|tausend|mille|mila|mil|duizend|tusen|тысяч[аи]?|тыс|हज़ार|k|千|천": 10**3,
    "만|万|萬": 10**4,
    "lakhs?|लाख": 10**5,
    "(?-i:M)(?<=\\dM)|millions?|millionen|mio|mln|millones|mill[oó]n|milh[aã]o|milh[oõ]es|milione|milioni|miljoen|miljon|miljoner"
    "|миллион(?:а|ов)?|млн|مليون|백만|百万": 10**6,
    "crores?|करोड़|천만|千万": 10**7,
    "억|億|亿": 10**8,
    "(?-i:B)(?<=\\dB)|billions?|bn|milliarden?|mrd|milliards?|miliardo|miliardi|miljard|миллиард(?:а|ов)?|млрд": 10**9,
    "trillions?|billionen|조|兆": 10**12,
}
_SCALE: Final = "|".join(f"(?P<scale{index}>{words})" for index, words in enumerate(_SCALES))
_PERCENT: Final = "|".join(
    (
        r"[%\N{FULLWIDTH PERCENT SIGN}]|percent|per\ cent|prozent|pour\ cent|por\ ciento|por\ cento",
        r"per\ cento|procent|процент(?:а|ов)?|パーセント|퍼센트",
    )
)
_SPACES: Final = "\\ \u00a0\u2009\u202f"
_NUMBER: Final = re.compile(
    rf"""
    (?<![^\W_])(?<!\d\.)                            # not inside a word: the 2 of H2O is no number
    (?P<sign>(?<![^\s(\[=:$€£])[-+])?
    [$€£¥]?
    (?:(?P<underscored>\d{{1,3}}(?:_\d{{3}})+(?!\d))                                           # 1_234_567
      |(?P<indian>\d{{1,2}}(?:,\d{{2}})+,\d{{3}}(?!\d)(?:\.\d+)?)                              # 12,34,567
      |(?P<points>\d{{1,3}}(?:\.\d{{3}})+(?=,\d|\.\d{{3}})(?:\.\d{{3}})*(?:,\d+)?)(?![\d.,]*\d)   # 1.234,5  1.500.000
      |(?P<grouped>\d{{1,3}}(?:,\d{{3}})+(?!\d)(?:\.\d+)?)                                       # 1,234.5
      |(?P<spaced>\d{{1,3}}(?:[{_SPACES}'\N{{RIGHT SINGLE QUOTATION MARK}}]\d{{3}})+(?!\d)(?:[.,]\d+)?(?!/))   # 1 234,5
      |(?P<comma>(?<!\d,)\d+,\d+(?!,?\d))                                                        # 3,5
      |(?P<plain>\d+(?:\.\d+)?|\.\d+))
    (?:(?<=\d)[{_SPACES}](?P<top>\d+)/(?P<bottom>\d+)  # 3 1/2
      |(?<=\d)/(?P<under>\d+)                         # 1/2
      |(?:\s?[x×*·]\s?(?P<base>10))?(?:\^|\*\*)(?P<power>[-+]?\d{{1,3}})(?!\d)   # 10^6  6 x 10^6
      |[eE](?P<exponent>[-+]?\d{{1,3}})(?![^\W_]))?
    (?:\s?(?:{_SCALE})(?![^\W_]|\.\d))?
    (?P<percent>\s?(?:{_PERCENT})(?![^\W_]))?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_MINUS: Final = re.compile(
    r"\b(?:minus|negative|moins|menos|meno|минус)\s+(?=[$€£¥]?\d)|(?:マイナス|负|負)(?=\d)", re.IGNORECASE
)
_LONE_MINUS: Final = re.compile(r"^\s*\N{EN DASH}(?=[$€£¥]?\d[\d.,]*\W*$)")
_POWER: Final = re.compile(r"(?<=\d)[\N{SUPERSCRIPT MINUS}⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_SHARES: Final = {
    r"\b(?:a|one)\s+half\b": "1/2",
    r"\b(?:a|one)\s+third\b": "1/3",
    r"\b(?:a|one)\s+quarter\b": "1/4",
    r"\btwo[\s-]+thirds\b": "2/3",
    r"\bthree[\s-]+quarters\b": "3/4",
    r"\b(?:a|one)\s+dozen\b": "12",
    r"^\W*half\W*$": "1/2",
    r"^\W*(?:none|nil|nought)\W*$": "0",
}
_SMALL: Final = {
    r"\btwo\b": "2",
    r"\bthree\b": "3",
    r"(?<=\d)\s+and\s+1/2\b": " 1/2",
}
"""What `alpha2digit` leaves as it is."""
_ONES: Final = "one two three four five six seven eight nine ten".split()
_HALVES: Final = re.compile(
    rf"\b({'|'.join(_ONES)})\s+and\s+a\s+half\s+(?=thousand|million|billion|trillion)", re.IGNORECASE
)
_NEGATED: Final = re.compile(r"(?:minus|negative|moins|menos|meno)\s+(?P<words>[^\W\d].*)")
_COUNTED: Final = re.compile(
    r"(?P<number>[〇零一二三四五六七八九十百千万萬億亿兆]+|[일이삼사오육칠팔구십백천만억]{2,}|하나|둘|셋|넷|[한두세네](?=\s?[개명마살시번])|다섯|여섯|일곱|여덟|아홉|열)"
    r"\s?(?:つ|个|個|人|名|本|匹|枚|歳|岁|歲|件|条|只|隻|回|개|명|마리|살|시|번)?(?:です|입니다|이에요)?"
)
"""A numeral as the whole answer, with its counter; in a sentence a lone character is a word more often."""
_KOREAN: Final = {
    **dict(zip("일이삼사오육칠팔구십백천만억", "一二三四五六七八九十百千万億", strict=True)),
    **dict(
        zip(
            "하나 둘 셋 넷 다섯 여섯 일곱 여덟 아홉 열 한 두 세 네".split(), "一二三四五六七八九十一二三四", strict=True
        )
    ),
}
_MYRIADS: Final = re.compile(
    r"(?<![\d.])[\d.]*[〇零一二三四五六七八九十百千万萬億亿兆][\d.〇零一二三四五六七八九十百千万萬億亿兆]*"
)
_MYRIAD_DIGITS: Final = dict(zip("〇零一二三四五六七八九", (0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9), strict=True))
_TENS: Final = {"十": 10, "百": 100, "千": 1000}
_GREAT: Final = {"万": 10**4, "萬": 10**4, "億": 10**8, "亿": 10**8, "兆": 10**12}
_DIGITS_OF_A_YEAR: Final = 4
_MOST_DIGITS: Final = 60
_LANGUAGES: Final = ("de", "fr", "es", "it", "pt", "nl")
_NO: Final = "non"
"""French and Italian, which `text2num` reads as a Portuguese nine."""
_LEAST_TOLD: Final = 13
"""Names of smaller numbers are words of other languages."""
_MOST_WORDS: Final = 4
"""Of an answer that may be a number in words of another language than English, whose short words are others' too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numeral:
    """A number in a text that `digits_of` made."""

    start: int
    end: int
    value: Fraction
    is_percent: bool

    @property
    def text(self) -> str:
        """The same for every way of writing the number."""
        value = self.value
        if value.denominator == 1:
            return str(value.numerator)
        exact = Fraction(repr(float(value))) == value
        return repr(float(value)) if exact else f"{value.numerator}/{value.denominator}"


def digits_of(text: str) -> str:
    """Write a text's numbers with ASCII digits: other scripts' digits, superscripts, fractions, words."""
    text = _POWER.sub(lambda match: "^" + unicodedata.normalize("NFKC", match.group()), text)
    text = "".join(map(_digit, text)).replace("\N{FRACTION SLASH}", "/").replace("\N{MINUS SIGN}", "-")
    text = text.replace("\N{ARABIC DECIMAL SEPARATOR}", ".").replace("\N{ARABIC THOUSANDS SEPARATOR}", ",")
    text = _MYRIADS.sub(_myriads, text)
    text = _HALVES.sub(lambda match: f"{_ONES.index(match[1].casefold()) + 1}.5 ", text)
    words = text.strip(" .!。\n").casefold()
    if counted := _COUNTED.fullmatch(words):
        return _myriads_of(counted["number"])
    sign = ""
    if negated := _NEGATED.fullmatch(words):
        sign, words = "-", negated["words"]
    if len(words) > 2 and words != _NO and len(words.split()) <= _MOST_WORDS and not any(map(str.isdigit, words)):
        for language in ("en", *_LANGUAGES):
            try:
                return sign + str(text2num(words, language))
            except ValueError:
                continue
    # A scale after digits is left to `numerals_in`: "1.5 million" isn't 1.5 and a million.
    pieces, end = [], 0
    for match in _NUMBER.finditer(text):
        if match.lastgroup is not None and match.lastgroup.startswith(("scale", "percent")):
            pieces += [_spelt(text[end : match.start()]), match.group()]
            end = match.end()
    text = "".join([*pieces, _spelt(text[end:])])
    return _LONE_MINUS.sub("-", _MINUS.sub("-", text))


def numerals_in(text: str) -> Iterator[Numeral]:
    """Find the numbers in a text that `digits_of` made, in order."""
    for match in _NUMBER.finditer(text):
        value = _value(match)
        if value is not None:
            yield Numeral(start=match.start(), end=match.end(), value=value, is_percent=match["percent"] is not None)


def spelt_elsewhere(text: str) -> str:
    """Write numbers in digits that stand in a sentence of another language than English; only larger ones are told."""
    for language in _LANGUAGES:
        found = str(alpha2digit(text, language))
        if any(numeral.value >= _LEAST_TOLD for numeral in numerals_in(found)):
            return found
    return text


def _spelt(text: str) -> str:
    """Write English numbers in digits."""
    if not any(map(str.isalpha, text)):
        return text
    for words, digits in _SHARES.items():
        text = re.sub(words, digits, text, flags=re.IGNORECASE)
    text = str(alpha2digit(text, "en"))
    for words, digits in _SMALL.items():
        text = re.sub(words, digits, text, flags=re.IGNORECASE)
    return text


def _digit(character: str) -> str:
    decimal = unicodedata.decimal(character, None)
    if decimal is not None:
        return str(decimal)
    if unicodedata.decomposition(character).startswith("<fraction>"):
        return f" {unicodedata.normalize('NFKC', character)}"
    return character


def _value(match: re.Match[str]) -> Fraction | None:
    """The number that was matched; None where it has none (a division by zero) or floats don't reach it."""
    if len(match.group()) > _MOST_DIGITS:
        return None
    size = _size(match)
    divisor = int(match["bottom"] or match["under"] or 1)
    if divisor == 0:
        return None
    size = size + Fraction(int(match["top"]), divisor) if match["top"] else size / divisor
    if match["power"]:
        power = Fraction(10 if match["base"] else size) ** int(match["power"]) if size or match["base"] else Fraction(0)
        size = size * power if match["base"] else power
    if match["exponent"]:
        size *= Fraction(10) ** int(match["exponent"])
    for index, factor in enumerate(_SCALES.values()):
        if match[f"scale{index}"]:
            size *= factor
    if abs(size) > Fraction(10) ** 300:
        return None
    return -size if match["sign"] == "-" else size


def _size(match: re.Match[str]) -> Fraction:
    if match["points"]:
        return Fraction(match["points"].replace(".", "").replace(",", "."))
    if whole := match["grouped"] or match["indian"] or match["underscored"]:
        return Fraction(whole.replace(",", "").replace("_", ""))
    if match["spaced"]:
        return Fraction(
            re.sub(rf"[{_SPACES}'\N{{RIGHT SINGLE QUOTATION MARK}}]", "", match["spaced"]).replace(",", ".")
        )
    return Fraction((match["comma"] or match["plain"]).replace(",", "."))


def _myriads(match: re.Match[str]) -> str:
    """Write a Chinese or Japanese numeral in digits; a lone character is a word more often than a number."""
    text = match.group()
    if len(text) == _DIGITS_OF_A_YEAR and all(character in _MYRIAD_DIGITS for character in text):
        return "".join(str(_MYRIAD_DIGITS[character]) for character in text)
    if len(text) == 1 or not any(character in _GREAT or character in _TENS for character in text):
        return text
    return _myriads_of(text)


def _myriads_of(text: str) -> str:
    text = _KOREAN.get(text, "".join(_KOREAN.get(character, character) for character in text))
    total = section = Fraction(0)
    number: Fraction | None = None
    digits = ""
    for character in [*text, ""]:
        if character and character in "0123456789.":
            digits += character
            continue
        if digits:
            try:
                number = Fraction(digits)
            except ValueError:
                return text
            digits = ""
        if character in _MYRIAD_DIGITS:
            number = Fraction(_MYRIAD_DIGITS[character])
        elif character in _TENS:
            section += (1 if number is None else number) * _TENS[character]
            number = None
        elif character in _GREAT:
            total += (section + (number or 0) or 1) * _GREAT[character]
            section, number = Fraction(0), None
    total += section + (number or 0)
    return str(total.numerator) if total.denominator == 1 else repr(float(total))
