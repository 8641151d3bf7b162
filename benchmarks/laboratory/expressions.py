"""Python expressions and small programs, asked for their values, to a model for code.

Each text is made here, of forms, drawn numbers and words, and its answer is what Python makes of it. Nothing that comes
from elsewhere is ever evaluated. Only what all versions of Python agree on is asked.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from benchmarks.laboratory.drafts import DRAWN, chance, draft, truth_draft
from benchmarks.laboratory.forms import Form, form, in_turn, number, numbers, one_of, word
from ilis_guard.lab.questions import Question


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expressions:
    """A set that asks for the values of expressions."""

    wording: str
    kind: Literal["numeric", "literal"]
    forms: tuple[Form, ...]


def _replacement(dice: random.Random) -> str:
    """A letter that the word has."""
    of = word(dice)
    return f"'{of}'.replace('{dice.choice(of)}', '{dice.choice('xyz')}')"


_SETS: Final = {
    "integer-arithmetic": _Expressions(
        wording="What does this Python expression return? {}",
        kind="numeric",
        forms=(
            form("{} + {}", number(11, 60), number(11, 60)),
            form("{} - {}", number(50, 99), number(5, 45)),
            form("{} * {}", number(2, 12), number(2, 12)),
            form("{} ** 2", number(2, 30)),
            form("{} + {} + {}", number(2, 9), number(2, 9), number(2, 9)),
            form("{} * 10 + {}", number(2, 30), number(1, 9)),
            form("abs({} - {})", number(2, 20), number(2, 20)),
        ),
    ),
    "list-operation": _Expressions(
        wording="Which list results from this Python code? {}",
        kind="literal",
        forms=(
            form("{} + {} * 2", numbers(2), numbers(1)),
            form("sorted({})", numbers(4)),
            form("{}[::-1]", numbers(4)),
            form("sorted({}, reverse=True)", numbers(4)),
            form("list(range({}, {}, {}))", number(1, 5), number(9, 14), number(2, 4)),
            form("[x * {} for x in {}]", number(2, 5), numbers(3)),
            form("[x for x in {} if x > {}]", numbers(5), number(3, 6)),
            form("{}[{}:{}]", numbers(5), number(1, 2), number(3, 4)),
        ),
    ),
    "string-method": _Expressions(
        wording="Which string does this Python method return? {}",
        kind="literal",
        forms=(
            form("'{}'.upper()", word),
            _replacement,
            form("'{} {}'.title()", word, word),
            form("'{}'.capitalize()", lambda dice: word(dice).upper()),
            form("'{}'.join(['{}', '{}'])", one_of("-+.,"), word, word),
            form("'{},{},{}'.split(',')[{}]", word, word, word, number(0, 2)),
            form("'--{}--'.{}('-')", word, one_of(("strip", "lstrip", "rstrip"))),
            form("'{}'.removeprefix('{}')", word, one_of("abcdefghmprst")),
        ),
    ),
    "aggregate": _Expressions(
        wording="Which number does Python print for print({})?",
        kind="numeric",
        forms=(
            form("sum({})", numbers(4)),
            form("max({})", numbers(5, 40)),
            form("min({}) + {}", numbers(4, 40), number(2, 9)),
            form("len({})", lambda dice: [dice.randint(1, 9) for _ in range(dice.randint(2, 9))]),
            form("sorted({})[{}]", numbers(5, 40), number(0, 3)),
            form("sum(x for x in {} if x % 2 == 0)", numbers(5)),
            form("{}.count({})", numbers(6, 3), number(1, 3)),
            form("len('{}') + len('{}')", word, word),
        ),
    ),
    "format": _Expressions(
        wording="How does Python write this out? {}",
        kind="literal",
        forms=(
            form("f'{{{}:.2f}}'", lambda dice: dice.randint(100, 9999) / 1000),
            form("f'{{{}:05d}}'", number(2, 999)),
            form("f'{{{}:,}}'", number(1000, 9999999)),
            form("f'{{{}:b}}'", number(2, 20)),
            form("f'{{{}:.1%}}'", lambda dice: dice.randint(10, 990) / 1000),
            form("'{{1}} {{0}}'.format('{}', '{}')", word, word),
            form("'%s-%03d' % ('{}', {})", word, number(1, 99)),
        ),
    ),
}
_COMPARISONS: Final[tuple[Form, ...]] = (
    form("{} < {} < {}", number(1, 20), number(1, 20), number(1, 20)),
    form("{} > {} and {} > {}", number(1, 20), number(1, 20), number(1, 20), number(1, 20)),
    form("{} == {} or {} < {}", number(1, 3), number(1, 3), number(1, 20), number(1, 20)),
    form("not {} > {}", number(1, 20), number(1, 20)),
    form("'{}' < '{}'", word, word),
    form("{} in {}", number(1, 8), numbers(4, 8)),
    form("'{}' in '{}'", one_of("aeiou"), word),
    form("{} % {} == {}", number(10, 60), number(2, 4), number(0, 1)),
)


def _values(name: str) -> Iterator[Question]:
    of_set = _SETS[name]
    for expression in in_turn(name, of_set.forms):
        value = _value(expression)
        if value or value == 0:  # an empty list or text is the answer to too many
            answer = repr(value) if of_set.kind == "literal" else str(value)
            yield draft(of_set.wording.format(expression), answer, kind=of_set.kind)


def _comparison() -> Iterator[Question]:
    """As many that are true as are false."""
    wanted = True
    for expression in in_turn("comparison", _COMPARISONS):
        if _value(expression) is wanted:
            yield truth_draft(f"Is this Python expression True or False? {expression}", wanted)
            wanted = not wanted


def _assignment() -> Iterator[Question]:
    dice = chance("assignment")
    for index in range(DRAWN):
        a, b, c = (dice.randint(2, 20) for _ in range(3))
        steps = ("a, b = b, a", "a, b = b, a + b", f"a = b; b = a + {c}", f"b += a; a = {c}", "a *= 2; b -= a", "b = a")
        program, name = f"a = {a}; b = {b}; {steps[index % 6]}", dice.choice("ab")
        answer = _printed(f"{program}\nprint({name})")
        yield draft(f"After the Python code `{program}`, what is {name}?", answer, kind="numeric")


def _value(expression: str) -> Any:
    """What Python makes of an expression that this module has made."""
    return eval(expression)  # noqa: S307  # made here, of nobody's text


def _printed(program: str) -> str:
    """What a program prints that this module has made."""
    lines: list[str] = []
    exec(program, {"print": lambda value: lines.append(str(value))})  # noqa: S102  # made here, of nobody's text
    return "\n".join(lines)


EXPRESSIONS: Final[dict[str, Callable[[], Iterator[Question]]]] = {
    **{name: partial(_values, name) for name in _SETS},
    "comparison": _comparison,
    "assignment": _assignment,
}
"""Makers by the names of their sets."""
