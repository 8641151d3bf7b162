"""Slips of the pen in conditions, and what was likely meant.

Of some CEL only says that it can't read on; others it reads as what nobody means.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ilis_guard import errors
from ilis_guard.config.strict_yaml import suggest
from ilis_guard.policy.facts import VISIBLE
from ilis_guard.policy.syntax import Node, compared_facts, without_strings

_INF: Final = math.inf
RANGES: Final[Mapping[str, tuple[float, float]]] = {
    **{name: (kind.low, kind.high) for name, kind in VISIBLE.items() if kind.cel in ("double", "int")},
    "statistics.logprob_sum": (-_INF, 0.0),
    "statistics.logprob_mean": (-_INF, 0.0),
    "statistics.entropy_mean": (0.0, _INF),
    "statistics.margin_min": (0.0, 1.0),
}
"""By fact that is a number: the smallest and the largest that there is."""
SHARES: Final = tuple(name for name, limits in RANGES.items() if limits == (0.0, 1.0))

_QUOTES: Final = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb\u2032\u2033\u00b4`"
_SIGNS: Final = {
    **dict.fromkeys(("=", "==="), "=="),
    **dict.fromkeys(("!==", "<>", "\u2260"), "!="),
    **dict.fromkeys(("=<", "\u2264"), "<="),
    **dict.fromkeys(("=>", "\u2265"), ">="),
    **dict.fromkeys(("&", ";"), "&&"),
    **dict.fromkeys(("\u2013", "\u2014", "\u2212"), "-"),
    "|": "||",
    "\u2227": "&&",
    "\u2228": "||",
    "\u00ac": "!",
    "\u2266": "<=",
    "\u2267": ">=",
    "\u00b7": ".",
    "\u00d7": "*",
}
_WORDS: Final = {
    "and": "&&",
    "or": "||",
    "not": "!",
    "is": "==",
    "equals": "==",
    "is not": "!=",
    "not in": "`!(labels.x in [...])`",
    "between": "`0.1 < x && x < 0.2`",
    **dict.fromkeys(("lt", "less than", "below", "under"), "<"),
    **dict.fromkeys(("gt", "greater than", "more than", "above", "over"), ">"),
    **dict.fromkeys(("le", "at most"), "<="),
    **dict.fromkeys(("ge", "at least"), ">="),
    "eq": "==",
    "ne": "!=",
    "like": "`labels.x.contains('...')`",
    "if": "the condition alone: the action stands in `do`",
    "then": "the condition alone: the action stands in `do`",
}
_SLIP: Final = re.compile(
    r"(?P<percent>(?P<number>\d+(?:\.\d+)?)\s*%(?!\s*[\w.(]))"
    r"|(?P<sign>===|!==|=<|=>|<>|(?<![=!<>])=(?!=)|(?<!&)&(?!&)|(?<!\|)\|(?!\||\|)|;)"
    r"|(?<![.\w])(?P<word>not\s+in|is\s+not|and|or|not|is|equals|between|lt|gt|le|ge|eq|ne|like|if|then"
    r"|less\s+than|greater\s+than|more\s+than|at\s+most|at\s+least|below|above|under|over)\b"
    r"|(?P<open>['\"])",
    re.IGNORECASE,
)
_HYPHENATED: Final = re.compile(r"(?<![\w.])(?P<name>[A-Za-z_][\w.]*(?:-[A-Za-z_]\w*)+)(?![\w(])")
_MEANT: Final = {
    **dict.fromkeys(("score", "risk", "doubt", "p_wrong", "probability"), "; did you mean 'uncertainty'?"),
    **dict.fromkeys(
        ("confidence", "certainty", "p_correct"),
        "; there is only its opposite: a confidence above 0.8 is `uncertainty < 0.2`",
    ),
    **dict.fromkeys(("shift", "novelty", "ood"), "; did you mean 'typicality'? (1 is like the calibration rows)"),
    **dict.fromkeys(("model", "model_name"), "; did you mean 'tier'?"),
    **dict.fromkeys(
        ("none", "null", "nil", "undefined"), "; ask has(labels.NAME) whether a label is there: nothing is ever null"
    ),
    **dict.fromkeys(("if", "else", "for", "while"), "; a condition stands alone, and the action in `do`"),
    **dict.fromkeys(("yes", "on"), "; write true, or a text in quotes"),
    **dict.fromkeys(("no", "off"), "; write false, or a text in quotes"),
    **dict.fromkeys(("len", "length", "count"), "; did you mean `size`? (size(labels.x) > 1)"),
    **dict.fromkeys(("startswith", "starts_with", "hasprefix"), "; did you mean `startsWith`?"),
    **dict.fromkeys(("endswith", "ends_with", "hassuffix"), "; did you mean `endsWith`?"),
    **dict.fromkeys(("includes", "include"), "; did you mean `contains`?"),
    **dict.fromkeys(("get", "keys", "exists"), "; a label is read as labels.NAME, and has(labels.NAME) asks for it"),
    **dict.fromkeys(("lower", "upper", "strip", "trim"), "; texts are compared as they are: list the spellings"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slip:
    """Something in a condition that was likely meant otherwise."""

    what: str
    """What was got, and what was likely meant."""
    start: int
    """Characters before it, from 0."""
    end: int
    """Characters before what follows it."""


def syntax_slip(text: str) -> Slip | None:
    """The first thing in a text that CEL can't read and other languages can; None where there is none.

    Args:
        text: no condition, for CEL.
    """
    match = _SLIP.search(without_strings(text))
    if match is None:
        return _missing_end(text)
    got = " ".join(match.group().split())
    match match.lastgroup:
        case "percent" | "number":
            what = f"got `{got}`: a share is a fraction, {float(match['number']) / 100:g}"
        case "sign":
            what = f"got `{got}`: did you mean `{_SIGNS[got]}`?"
        case "word":
            what = f"got `{got}`, which CEL writes as {_in_ticks(_WORDS[got.lower()])}"
        case _:
            what = f"a text starts here ({got}) and doesn't end on its line; close it with the same mark"
    return Slip(what=what, start=match.start(), end=match.end())


def unreadable_letter(letter: str) -> str:
    """What a letter is that CEL can't read, and which one was likely meant."""
    name = unicodedata.name(letter, f"U+{ord(letter):04X}")
    got = f"got {letter!r} ({name})"
    plain = _SIGNS.get(letter) or unicodedata.normalize("NFKC", letter)
    if letter in _QUOTES:
        return f"{got}: a text stands between plain quotation marks, 'text' or \"text\""
    if plain.isspace():
        return f"{got}, which looks like a space and is none in CEL; write a plain space"
    if plain.isascii() and plain.isprintable():
        return f"{got}: did you mean `{plain}`?"
    return f"{got}, which may look like another letter; write a-z, 0-9 and _"


def hyphenated_names(text: str) -> Iterator[Slip]:
    """Names with hyphens in them, which CEL reads as differences."""
    for match in _HYPHENATED.finditer(without_strings(text)):
        name = match["name"]
        meant = name.replace("-", "_")
        if name.startswith("labels."):
            what = (
                f"got `{name}`, which CEL reads as a difference; a label's name has letters, digits and _ only: did "
                f"you mean `{meant}`? (a difference is written with spaces)"
            )
        elif meant in VISIBLE:
            what = f"got `{name}`, which CEL reads as a difference; did you mean `{meant}`?"
        else:
            continue
        yield Slip(what=what, start=match.start(), end=match.end())


def meant_by(name: str) -> str:
    """``; did you mean ...?`` for names that other tools have for a fact; empty for all others."""
    return _MEANT.get(name.lower(), "")


def odd_bounds(condition: Node) -> Iterator[tuple[str, int]]:
    """Comparisons with what a fact never is: what is odd and was likely meant, and the operator's place.

    ``uncertainty <= 1.0`` isn't odd: it holds where there is a score.
    """
    for compared in compared_facts(condition):
        name, operator, literal = compared.fact, compared.operator, compared.literal
        if name in RANGES and isinstance(literal, int | float):
            always = _always(operator, float(literal), *RANGES[name])
            if always is not None and not (always and literal in RANGES[name]):
                came_to = "true of every number" if always else "never true"
                yield (
                    f"`{compared.text}` is {came_to}: {_range_text(name)}{_meant_number(name, literal)}",
                    compared.offset,
                )
        elif isinstance(literal, str) and literal not in (known := _known_texts(name)) and known:
            hint = suggest(literal, known) or f", which is one of {', '.join(map(repr, known))}"
            yield f"`{compared.text}` compares with what `{name}` never is{hint}", compared.offset


def turned_round(condition: Node, *, answers: bool = True) -> str:
    """What a rule likely means whose comparison is the wrong way round; empty where that can't be told.

    Args:
        condition: of a rule that answers the uncertain or the untypical, or keeps back all others.
        answers: whether it answers.
    """
    for compared in compared_facts(condition):
        is_upside_down = compared.operator in _WRONG_WAY.get(compared.fact, ())
        if not answers and compared.fact in _WRONG_WAY:
            is_upside_down = not is_upside_down and compared.operator in _TURNED
        if is_upside_down and isinstance(compared.literal, float):
            turned = f"{compared.fact} {_TURNED[compared.operator]} {compared.literal}"
            confidence = ""
            if answers and compared.fact == "uncertainty" and 0.5 < compared.literal < 1:
                confidence = f", or, if {compared.literal} is a confidence, `uncertainty < {1 - compared.literal:.4g}`"
            return f"did you mean `{turned}`{confidence}?"
    return ""


_WRONG_WAY: Final = {"uncertainty": (">", ">="), "rank": (">", ">="), "typicality": ("<", "<=")}
_TURNED: Final = {">": "<", ">=": "<=", "<": ">", "<=": ">="}


def _always(operator: str, literal: float, low: float, high: float) -> bool | None:
    """Whether a comparison with a literal is true, or false, of all numbers from `low` to `high`; None if of some."""
    outcomes = {
        "<": (high < literal, low >= literal),
        "<=": (high <= literal, low > literal),
        ">": (low > literal, high <= literal),
        ">=": (low >= literal, high < literal),
        "==": (False, not low <= literal <= high),
        "!=": (not low <= literal <= high, False),
    }
    always, never = outcomes[operator]
    return True if always else False if never else None


def _range_text(name: str) -> str:
    low, high = RANGES[name]
    if math.isinf(high):
        return f"`{name}` is at least {low:g}"
    return f"`{name}` is at most {high:g}" if math.isinf(low) else f"`{name}` lies between {low:g} and {high:g}"


def _meant_number(name: str, literal: float) -> str:
    if name in SHARES and 1 < literal <= 100:
        tenth = f", or {literal / 10:g}" if literal < 10 else ""
        return f"; did you mean {literal / 100:g} ({literal:g} %){tenth}?"
    low, high = RANGES[name]
    return f"; did you mean {-literal:g}?" if low <= -literal <= high and literal else ""


def _known_texts(name: str) -> tuple[str, ...]:
    if name == "error":
        kinds = (kind for kind in vars(errors).values() if isinstance(kind, type))
        return ("", *(kind.__name__ for kind in kinds if issubclass(kind, errors.IlisGuardError)), "UnexpectedError")
    return VISIBLE[name].values if name in VISIBLE else ()


def _missing_end(text: str) -> Slip | None:
    """Brackets that are never closed."""
    opened = []
    for position, character in enumerate(without_strings(text)):
        if character in "([{":
            opened.append((position, character))
        elif character in ")]}" and opened:
            opened.pop()
    if not opened:
        return None
    position, bracket = opened[-1]
    return Slip(what=f"the `{bracket}` here is never closed", start=position, end=len(text))


def _in_ticks(text: str) -> str:
    return text if "`" in text else f"`{text}`"
