"""Python expressions and small programs: what a model for code may know the value of.

Each text is built here, from templates and drawn numbers and words, and its answer is what Python makes of it. Nothing
that comes from elsewhere is ever evaluated. Only what all versions of Python agree on is asked.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from benchmarks.laboratory.drafts import DRAWN, chance, draft, truth_draft
from ilis_guard.lab.questions import Question

Form = Callable[[random.Random], str]
"""Draws an expression, or a program, of one form."""

# fmt: off
_WORDS: Final = (
    "apple", "autumn", "banana", "basket", "bridge", "butter", "candle", "carrot", "castle", "cheese", "circle",
    "coffee", "copper", "cotton", "desert", "dinner", "dragon", "engine", "family", "finger", "flower", "forest",
    "garden", "guitar", "hammer", "harbor", "island", "jacket", "kitchen", "ladder", "lemon", "letter", "market",
    "meadow", "melon", "mirror", "monkey", "morning", "needle", "number", "orange", "office", "paper", "pencil",
    "pepper", "planet", "pocket", "rabbit", "river", "rocket", "school", "shadow", "silver", "spider", "summer",
    "table", "ticket", "tunnel", "valley", "velvet", "village", "violin", "walnut", "window", "winter", "yellow",
)
# fmt: on


def _value(expression: str) -> Any:
    """What Python makes of an expression that a form of this module has built."""
    return eval(expression)  # noqa: S307  # built here, of nobody's text


def _drawn(set_: str, forms: Sequence[Form]) -> Iterator[str]:
    """Texts of all forms in turn."""
    dice = chance(set_)
    for number in range(DRAWN):
        yield forms[number % len(forms)](dice)


def _numbers(dice: random.Random, least: int, most: int, count: int) -> list[int]:
    return [dice.randint(least, most) for _ in range(count)]


def _list(dice: random.Random, count: int, most: int = 9) -> list[int]:
    return _numbers(dice, 1, most, count)


def _integer_arithmetic() -> Iterator[Question]:
    forms: tuple[Form, ...] = (
        lambda dice: "{} + {} * {}".format(*_numbers(dice, 2, 9, 3)),
        lambda dice: "({} - {}) * {}".format(*_numbers(dice, 2, 9, 3)),
        lambda dice: "{} // {}".format(*_numbers(dice, 10, 60, 1), *_numbers(dice, 2, 9, 1)),
        lambda dice: "{} % {}".format(*_numbers(dice, 10, 60, 1), *_numbers(dice, 2, 9, 1)),
        lambda dice: "{} ** 2".format(*_numbers(dice, 2, 30, 1)),
        lambda dice: "abs({} - {})".format(*_numbers(dice, 2, 60, 2)),
        lambda dice: "{} - {} + {}".format(*_numbers(dice, 2, 20, 3)),
        lambda dice: "{} * {}".format(*_numbers(dice, 3, 25, 2)),
    )
    for expression in _drawn("integer-arithmetic", forms):
        yield draft(f"What does this Python expression return? {expression}", str(_value(expression)), kind="numeric")


def _list_operation() -> Iterator[Question]:
    forms: tuple[Form, ...] = (
        lambda dice: f"{_list(dice, 2)} + {_list(dice, 1)} * 2",
        lambda dice: f"sorted({_list(dice, 4)})",
        lambda dice: f"{_list(dice, 4)}[::-1]",
        lambda dice: f"sorted({_list(dice, 4)}, reverse=True)",
        lambda dice: "list(range({}, {}, {}))".format(*_numbers(dice, 1, 5, 1), *_numbers(dice, 9, 14, 1), dice.randint(2, 4)),
        lambda dice: f"[x * {dice.randint(2, 5)} for x in {_list(dice, 3)}]",
        lambda dice: f"[x for x in {_list(dice, 5)} if x > {dice.randint(3, 6)}]",
        lambda dice: f"{_list(dice, 5)}[{dice.randint(1, 2)}:{dice.randint(3, 4)}]",
    )
    for expression in _drawn("list-operation", forms):
        if value := _value(expression):
            yield draft(f"Which list results from this Python code? {expression}", repr(value), kind="literal")


def _string_method() -> Iterator[Question]:
    def word(dice: random.Random) -> str:
        return dice.choice(_WORDS)

    forms: tuple[Form, ...] = (
        lambda dice: f"'{word(dice)}'.upper()",
        lambda dice: _replaced(dice, word(dice)),
        lambda dice: f"'{word(dice)} {word(dice)}'.title()",
        lambda dice: f"'{word(dice).upper()}'.capitalize()",
        lambda dice: f"'{dice.choice('-+.,')}'.join(['{word(dice)}', '{word(dice)}'])",
        lambda dice: f"'{word(dice)},{word(dice)},{word(dice)}'.split(',')[{dice.randint(0, 2)}]",
        lambda dice: _stripped(dice, word(dice)),
        lambda dice: f"'{word(dice)}' + '{word(dice)}'.lower()",
    )
    for expression in _drawn("string-method", forms):
        yield draft(f"Which string does this Python method return? {expression}", repr(_value(expression)), kind="literal")


def _replaced(dice: random.Random, word: str) -> str:
    return f"'{word}'.replace('{dice.choice(word)}', '{dice.choice('xyz')}')"


def _stripped(dice: random.Random, word: str) -> str:
    mark = dice.choice("*-_.")
    return f"'{mark * dice.randint(1, 3)}{word}{mark * dice.randint(1, 3)}'.{dice.choice(('strip', 'lstrip', 'rstrip'))}('{mark}')"


def _comparison() -> Iterator[Question]:
    forms: tuple[Form, ...] = (
        lambda dice: "{} < {} < {}".format(*_numbers(dice, 1, 20, 3)),
        lambda dice: "{} > {} and {} > {}".format(*_numbers(dice, 1, 20, 4)),
        lambda dice: "{} == {} or {} < {}".format(*(_numbers(dice, 1, 3, 2) + _numbers(dice, 1, 20, 2))),
        lambda dice: "not {} > {}".format(*_numbers(dice, 1, 20, 2)),
        lambda dice: f"'{dice.choice(_WORDS)}' < '{dice.choice(_WORDS)}'",
        lambda dice: f"{dice.randint(1, 8)} in {_list(dice, 4, 8)}",
        lambda dice: f"'{dice.choice('aeiou')}' in '{dice.choice(_WORDS)}'",
        lambda dice: "{} % {} == {}".format(*_numbers(dice, 10, 60, 1), dice.randint(2, 4), dice.randint(0, 1)),
    )
    wanted = True
    for expression in _drawn("comparison", forms):
        if _value(expression) is wanted:
            yield truth_draft(f"Is this Python expression True or False? {expression}", wanted)
            wanted = not wanted


def _slice() -> Iterator[Question]:
    forms: tuple[Form, ...] = (
        lambda dice: f"[{dice.randint(1, 2)}:{dice.randint(3, 5)}]",
        lambda dice: f"[:{dice.randint(2, 4)}]",
        lambda dice: f"[{dice.randint(2, 4)}:]",
        lambda dice: f"[-{dice.randint(2, 4)}:]",
        lambda dice: f"[:-{dice.randint(1, 3)}]",
        lambda dice: "[::2]",
        lambda dice: "[::-1]",
        lambda dice: f"[{dice.randint(-4, 4)}]",
    )
    dice = chance("slice: words")
    for places in _drawn("slice", forms):
        expression = f"'{dice.choice(_WORDS)}'{places}"
        yield draft(f"Write the text that Python takes out here: {expression}", repr(_value(expression)), kind="literal")


def _dict_value() -> Iterator[Question]:
    dice = chance("dict-value")
    for number in range(DRAWN):
        names = dice.sample(_WORDS, 4)
        prices = {name: dice.randint(2, 20) for name in names[:3]}
        one, other = dice.sample(names[:3], 2)
        expression = (
            f"d['{one}'] + d['{other}']",
            f"d['{one}'] * {dice.randint(2, 5)}",
            f"d.get('{names[3]}', {dice.randint(2, 9)}) + d['{one}']",
            f"d['{one}'] - len(d)",
            f"max(d.values()) - d['{one}']",
            "sum(d.values())",
        )[number % 6]
        value = eval(expression, {"d": prices})  # noqa: S307  # built here, of nobody's text
        yield draft(f"A Python dictionary: d = {prices}. What is {expression}?", str(value), kind="numeric")


def _aggregate() -> Iterator[Question]:
    forms: tuple[Form, ...] = (
        lambda dice: f"sum({_list(dice, 4)})",
        lambda dice: (lambda of: f"max({of}) - min({of})")(_list(dice, 4, 40)),
        lambda dice: f"len({_list(dice, dice.randint(2, 7))}) * {dice.randint(2, 9)}",
        lambda dice: f"sorted({_list(dice, 5, 40)})[{dice.randint(0, 3)}]",
        lambda dice: f"sum(x for x in {_list(dice, 5)} if x % 2 == 0)",
        lambda dice: (lambda of: f"{of}.count({of[0]})")(_list(dice, 6, 4)),
        lambda dice: (lambda of: f"{of}.index({dice.choice(of)})")(dice.sample(range(1, 40), 5)),
        lambda dice: f"len('{dice.choice(_WORDS)}') + len('{dice.choice(_WORDS)}')",
    )
    for expression in _drawn("aggregate", forms):
        yield draft(f"Which number does Python print for print({expression})?", str(_value(expression)), kind="numeric")


def _set_operation() -> Iterator[Question]:
    def some(dice: random.Random) -> str:
        return "{" + ", ".join(map(str, sorted(dice.sample(range(1, 10), 4)))) + "}"

    forms: tuple[Form, ...] = (
        lambda dice: f"{some(dice)} & {some(dice)}",
        lambda dice: f"{some(dice)} | {some(dice)}",
        lambda dice: f"{some(dice)} - {some(dice)}",
        lambda dice: f"{some(dice)} ^ {some(dice)}",
    )
    for expression in _drawn("set-operation", forms):
        if value := _value(expression):
            yield draft(f"Which set is this in Python: {expression}", repr(value), kind="literal")


def _format() -> Iterator[Question]:
    forms: tuple[Form, ...] = (
        lambda dice: f"f'{{{dice.randint(100, 9999) / 1000}:.{dice.randint(1, 2)}f}}'",
        lambda dice: f"f'{{{dice.randint(2, 999)}:0{dice.randint(4, 6)}d}}'",
        lambda dice: f"f'{{{dice.randint(1000, 9999999)}:,}}'",
        lambda dice: f"f'{{{dice.randint(2, 20)}:b}}'",
        lambda dice: f"f'{{{dice.randint(10, 60)}:x}}'",
        lambda dice: f"'{{1}} {{0}}'.format('{dice.choice(_WORDS)}', '{dice.choice(_WORDS)}')",
        lambda dice: f"'%s-%03d' % ('{dice.choice(_WORDS)}', {dice.randint(1, 99)})",
        lambda dice: f"f'{{\"{dice.choice(_WORDS)}\":{dice.choice('*-.')}{dice.choice('<>^')}10}}'",
    )
    for expression in _drawn("format", forms):
        yield draft(f"How does Python write this out? {expression}", repr(_value(expression)), kind="literal")


_FAILURES: Final[Mapping[str, Sequence[Form]]] = {
    "ValueError": (
        lambda dice: f"int('{dice.choice(_WORDS)}')",
        lambda dice: f"float('{dice.choice(_WORDS)}')",
        lambda dice: f"[{dice.randint(1, 9)}, {dice.randint(1, 9)}].remove({dice.randint(10, 99)})",
        lambda dice: f"a, b = {_list(dice, 3)}",
        lambda dice: f"'{dice.choice(_WORDS)}'.index('q')",
    ),
    "TypeError": (
        lambda dice: f"'{dice.choice(_WORDS)}' + {dice.randint(1, 99)}",
        lambda dice: f"len({dice.randint(1, 999)})",
        lambda dice: f"sum(['{dice.choice(_WORDS)}', {dice.randint(1, 99)}])",
        lambda dice: f"{{{_list(dice, 2)}: '{dice.choice(_WORDS)}'}}",
        lambda dice: f"'{dice.choice(_WORDS)}'[0] = 'x'",
    ),
    "IndexError": (
        lambda dice: f"{_list(dice, 3)}[{dice.randint(3, 9)}]",
        lambda dice: f"'{dice.choice(_WORDS)}'[{dice.randint(10, 99)}]",
        lambda dice: f"{tuple(_list(dice, 2))}[-{dice.randint(3, 9)}]",
        lambda dice: f"{_list(dice, 2)}.pop({dice.randint(2, 9)})",
    ),
    "KeyError": (
        lambda dice: "{{'{}': {}}}['{}']".format(*dice.sample(_WORDS, 1), dice.randint(1, 99), dice.choice("abc")),
        lambda dice: f"{{{dice.randint(1, 9)}: '{dice.choice(_WORDS)}'}}[{dice.randint(10, 99)}]",
        lambda dice: f"{{'{dice.choice(_WORDS)}': {dice.randint(1, 99)}}}.pop('{dice.choice('xyz')}')",
        lambda dice: f"{{{dice.randint(1, 9)}, {dice.randint(10, 19)}}}.remove({dice.randint(20, 99)})",
    ),
    "ZeroDivisionError": (
        lambda dice: f"{dice.randint(1, 99)} / ({(of := dice.randint(2, 50))} - {of})",
        lambda dice: f"{dice.randint(1, 99)} % 0",
        lambda dice: f"{dice.randint(1, 99)} // len('')",
        lambda dice: f"{dice.randint(1, 99)} / int('0')",
    ),
    "AttributeError": (
        lambda dice: f"{_list(dice, 2)}.push({dice.randint(1, 99)})",
        lambda dice: f"'{dice.choice(_WORDS)}'.append('{dice.choice('abc')}')",
        lambda dice: f"({dice.randint(1, 99)}).upper()",
        lambda dice: f"{tuple(_list(dice, 2))}.sort()",
        lambda dice: f"None.{dice.choice(_WORDS)}",
    ),
    "NameError": (
        lambda dice: f"print({dice.choice(_WORDS)})",
        lambda dice: f"{dice.choice(_WORDS)} + {dice.randint(1, 99)}",
        lambda dice: f"{dice.choice(_WORDS)}({dice.randint(1, 99)})",
    ),
}
"""Statements that fail, by the exception that they raise; a test runs them."""


def _exception() -> Iterator[Question]:
    dice = chance("exception")
    for name, forms in list(_FAILURES.items()) * (DRAWN // len(_FAILURES)):
        yield draft(f"Which exception does this line of Python raise? {dice.choice(forms)(dice)}", name)


_TYPED: Final[Mapping[str, Sequence[Form]]] = {
    "int": (
        lambda dice: "{} // {}".format(*_numbers(dice, 2, 99, 2)),
        lambda dice: f"len('{dice.choice(_WORDS)}')",
        lambda dice: f"round({dice.randint(10, 99) / 10})",
        lambda dice: f"({dice.randint(2, 99)})",
        lambda dice: f"'{dice.choice(_WORDS)}'.find('{dice.choice('aeiou')}')",
        lambda dice: f"True + {dice.randint(2, 99)}",
    ),
    "float": (
        lambda dice: "{} / {}".format(*_numbers(dice, 2, 99, 2)),
        lambda dice: f"{dice.randint(2, 9)} * {dice.randint(1, 9)}.0",
        lambda dice: f"2 ** -{dice.randint(1, 9)}",
        lambda dice: f"{dice.randint(2, 9)}e{dice.randint(1, 5)}",
        lambda dice: f"sum([{dice.randint(1, 9)}, {dice.randint(1, 9)}.5])",
    ),
    "str": (
        lambda dice: f"'{dice.choice(_WORDS)}' * {dice.randint(2, 5)}",
        lambda dice: f"input.__name__ + '{dice.choice(_WORDS)}'",
        lambda dice: f"'{dice.choice(_WORDS)}'[{dice.randint(0, 3)}]",
        lambda dice: f"hex({dice.randint(10, 99)})",
        lambda dice: f"','.join(['{dice.choice(_WORDS)}'])",
        lambda dice: f"f'{{{dice.randint(1, 99)}}}'",
    ),
    "list": (
        lambda dice: f"'{dice.choice(_WORDS)} {dice.choice(_WORDS)}'.split()",
        lambda dice: f"sorted({tuple(_list(dice, 3))})",
        lambda dice: f"{_list(dice, 3)}[1:]",
        lambda dice: f"[x for x in range({dice.randint(2, 9)})]",
        lambda dice: f"sorted('{dice.choice(_WORDS)}')",
    ),
    "tuple": (
        lambda dice: f"({dice.randint(2, 99)},)",
        lambda dice: "divmod({}, {})".format(*_numbers(dice, 2, 99, 2)),
        lambda dice: "{}, {}".format(*_numbers(dice, 2, 99, 2)),
        lambda dice: f"'{dice.choice(_WORDS)}'.partition('{dice.choice('aeiou')}')",
    ),
    "bool": (
        lambda dice: "{} > {}".format(*_numbers(dice, 2, 99, 2)),
        lambda dice: f"'{dice.choice('aeiou')}' in '{dice.choice(_WORDS)}'",
        lambda dice: f"not '{dice.choice(_WORDS)}'",
        lambda dice: f"'{dice.choice(_WORDS)}'.isupper()",
        lambda dice: f"any({_list(dice, 2)})",
    ),
    "set": (
        lambda dice: "{{{}, {}}}".format(*_numbers(dice, 2, 99, 2)),
        lambda dice: f"{{x for x in '{dice.choice(_WORDS)}'}}",
        lambda dice: f"{{{dice.randint(1, 99)}}} | {{{dice.randint(1, 99)}}}",
        lambda dice: f"{{'{dice.choice(_WORDS)}'}}",
    ),
    "dict": (
        lambda dice: f"{{'{dice.choice(_WORDS)}': {dice.randint(1, 99)}}}",
        lambda dice: f"{{x: {dice.randint(1, 99)} for x in '{dice.choice(_WORDS)}'}}",
        lambda dice: f"dict({dice.choice(_WORDS)}={dice.randint(1, 99)})",
    ),
}
"""Expressions by the type of their value; a test evaluates them."""


def _type_name() -> Iterator[Question]:
    dice = chance("type-name")
    for name, forms in list(_TYPED.items()) * (DRAWN // len(_TYPED)):
        yield draft(f"Name the type of this Python value: {dice.choice(forms)(dice)}", name)


def _loop() -> Iterator[Question]:
    forms: tuple[Form, ...] = (
        lambda dice: f"s = {dice.randint(0, 9)}\nfor i in range({dice.randint(2, 5)}):\n    s += {dice.randint(2, 5)}\nprint(s)",
        lambda dice: f"s = 0\nfor i in {_list(dice, 3, 9)}:\n    s += i\nprint(s)",
        lambda dice: f"n = {dice.randint(20, 60)}\nwhile n > {dice.randint(5, 15)}:\n    n -= {dice.randint(4, 9)}\nprint(n)",
        lambda dice: f"s = 1\nfor i in range({dice.randint(2, 4)}):\n    s *= {dice.randint(2, 3)}\nprint(s)",
        lambda dice: f"c = 0\nfor x in '{dice.choice(_WORDS)}':\n    if x in 'aeiou':\n        c += 1\nprint(c)",
    )
    for program in _drawn("loop", forms):
        yield draft(f"What does this program print?\n{program}", _printed(program), kind="numeric")


def _printed(program: str) -> str:
    written: list[str] = []
    exec(program, {"print": lambda *values: written.append(" ".join(map(str, values)))})  # noqa: S102  # built here
    return "\n".join(written)


def _function_call() -> Iterator[Question]:
    dice = chance("function-call")
    for number in range(DRAWN):
        a, b, c = _numbers(dice, 2, 9, 3)
        body = (f"x * {a} + y", f"x + y * {a}", f"x - y + {a}", f"max(x, y) * {a}", f"x if x > y else y + {a}")[number % 5]
        arguments = (str(b), f"{b}, {c}", f"y={b}, x={c}")[number % 3]
        program = f"def f(x, y={dice.randint(2, 9)}): return {body}"
        yield draft(f"{program}\nWhat is f({arguments})?", _printed(f"{program}\nprint(f({arguments}))"), kind="numeric")


def _assignment() -> Iterator[Question]:
    dice = chance("assignment")
    for number in range(DRAWN):
        a, b, c = _numbers(dice, 2, 20, 3)
        step = (f"a, b = b, a", f"a, b = b, a + b", f"a = b; b = a + {c}", f"b += a; a = {c}", f"a *= 2; b -= a", f"a, b = a - b, a")[number % 6]
        name = dice.choice("ab")
        program = f"a = {a}; b = {b}; {step}"
        yield draft(f"After the Python code `{program}`, what is {name}?", _printed(f"{program}\nprint({name})"), kind="numeric")


def _string_search() -> Iterator[Question]:
    def known(dice: random.Random, word: str) -> str:
        return f"'{word}'.{dice.choice(('find', 'rfind', 'index', 'count'))}('{dice.choice(word)}')"

    forms: tuple[Form, ...] = (lambda dice: known(dice, dice.choice(_WORDS)),)
    for expression in _drawn("string-search", forms):
        yield draft(f"Give the integer that this Python call returns: {expression}", str(_value(expression)), kind="numeric")


def _bitwise() -> Iterator[Question]:
    forms: tuple[Form, ...] = (
        lambda dice: "{} & {}".format(*_numbers(dice, 1, 15, 2)),
        lambda dice: "{} | {}".format(*_numbers(dice, 1, 15, 2)),
        lambda dice: "{} ^ {}".format(*_numbers(dice, 1, 15, 2)),
        lambda dice: "{} << {}".format(*_numbers(dice, 1, 9, 1), dice.randint(1, 4)),
        lambda dice: "{} >> {}".format(*_numbers(dice, 8, 99, 1), dice.randint(1, 3)),
    )
    for expression in _drawn("bitwise", forms):
        yield draft(f"Work out this bitwise operation: {expression}", str(_value(expression)), kind="numeric")


def _pattern_match() -> Iterator[Question]:
    import re

    forms: tuple[Form, ...] = (
        lambda dice: "a.c", lambda dice: "[0-9]+", lambda dice: "ab*", lambda dice: "a+b", lambda dice: "[a-c]{2}",
        lambda dice: r"\d{3}", lambda dice: "colou?r", lambda dice: "x|y", lambda dice: r"\w+",  lambda dice: "[^a]b",
    )
    dice = chance("pattern-match: texts")
    wanted = True
    for pattern in [*_drawn("pattern-match", forms)] * 3:
        text = "".join(dice.choice("abc123") for _ in range(dice.randint(1, 4)))
        if (re.fullmatch(pattern, text) is not None) is wanted:
            yield truth_draft(f"Does the regular expression {pattern} match the whole text '{text}', yes or no?", wanted)
            wanted = not wanted


_PEOPLE: Final = ("Ann", "Bob", "Carl", "Dora", "Eve", "Finn", "Gus", "Hana", "Ida", "Jan", "Kim", "Leo")


def _query() -> Iterator[Question]:
    dice = chance("query")
    for number in range(DRAWN):
        people = dice.sample(_PEOPLE, 4)
        ages = dice.sample(range(18, 80), 4)
        table = ", ".join(f"({name}, {age})" for name, age in zip(people, ages, strict=True))
        order = sorted(zip(ages, people, strict=True))
        limit = dice.randint(20, 75)
        kind = number % 3
        if kind == 0:
            sql, answer, how = "SELECT name FROM people ORDER BY age DESC LIMIT 1", order[-1][1], "open"
        elif kind == 1:
            sql, answer, how = f"SELECT COUNT(*) FROM people WHERE age > {limit}", str(sum(a > limit for a in ages)), "numeric"
        else:
            sql, answer, how = "SELECT name FROM people ORDER BY age LIMIT 1", order[0][1], "open"
        yield draft(f"Table people (name, age): {table}. Result of {sql}?", answer, kind=how)


def _language() -> Iterator[Question]:
    forms = {
        "Python": ("{w} = [x for x in {v}]", "def {w}(self): pass", "for {w} in range({n}):"),
        "JavaScript": ("const {w} = () => {n};", "let {w} = {v} === {n};", "{w}.forEach(x => console.log(x));"),
        "Java": ("private static final int {w} = {n};", "List<String> {w} = new ArrayList<>();", "System.out.println({w});"),
        "C++": ("std::vector<int> {w};", "std::cout << {w} << std::endl;", "auto {w} = std::make_unique<int>({n});"),
        "C": ("printf(\"%d\", {w});", "int *{w} = malloc({n});", "#define {w} {n}"),
        "Rust": ("let mut {w} = {n};", "println!(\"{{}}\", {w});", "fn {w}(&self) -> i32 {{"),
        "Go": ("{w} := {n}", "fmt.Println({w})", "func {w}() error {{"),
        "Ruby": ("puts {w}", "{w}.each do |x|", "def {w}; @{v}; end"),
        "PHP": ("echo ${w};", "${w} = array({n});", "$this->{w} = {n};"),
        "SQL": ("SELECT {w} FROM {v};", "DELETE FROM {w} WHERE {v} = {n};", "ALTER TABLE {w} ADD {v} INT;"),
        "Kotlin": ("val {w}: Int = {n}", "fun {w}(x: Int): Int = x", "println(\"${w}\")"),
        "Swift": ("let {w}: Int = {n}", "guard let {w} = {v} else {{ return }}", "func {w}(_ x: Int) -> Int {{"),
        "Haskell": ("{w} :: Int -> Int", "{w} = map (+{n})", "main = putStrLn {w}"),
        "Perl": ("my ${w} = {n};", "foreach my $x (@{w}) {{", "print \"${w}\\n\";"),
    }
    dice = chance("language")
    for name, lines in list(forms.items()) * (DRAWN // len(forms)):
        one, other = dice.sample(_WORDS, 2)
        yield draft(f"In which programming language is this line written? {dice.choice(lines).format(w=one, v=other, n=dice.randint(1, 99))}", name)


EXPRESSIONS: Final[dict[str, Callable[[], Iterator[Question]]]] = {
    "integer-arithmetic": _integer_arithmetic,
    "list-operation": _list_operation,
    "string-method": _string_method,
    "comparison": _comparison,
    "slice": _slice,
    "dict-value": _dict_value,
    "aggregate": _aggregate,
    "set-operation": _set_operation,
    "format": _format,
    "exception": _exception,
    "type-name": _type_name,
    "loop": _loop,
    "function-call": _function_call,
    "assignment": _assignment,
    "string-search": _string_search,
    "bitwise": _bitwise,
    "pattern-match": _pattern_match,
    "query": _query,
    "language": _language,
}
