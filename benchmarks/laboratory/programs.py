"""What a line of code is: the type of its value, the exception that it raises, the language in which it's written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from benchmarks.laboratory.drafts import draft
from benchmarks.laboratory.forms import Form, form, in_turn_by_answer, number, numbers, one_of, word
from ilis_guard.lab.questions import Question

TYPES: Final[Mapping[str, Sequence[Form]]] = {
    "int": (
        form("{} // {}", number(2, 99), number(2, 99)),
        form("len('{}')", word),
        form("round({})", lambda dice: dice.randint(10, 99) / 10),
        form("({})", number(2, 99)),
        form("'{}'.find('{}')", word, one_of("aeiou")),
        form("True + {}", number(2, 99)),
    ),
    "float": (
        form("{} / {}", number(2, 99), number(2, 99)),
        form("{} * {}.0", number(2, 9), number(1, 9)),
        form("2 ** -{}", number(1, 9)),
        form("{}e{}", number(2, 9), number(1, 5)),
        form("sum([{}, {}.5])", number(1, 9), number(1, 9)),
    ),
    "str": (
        form("'{}' * {}", word, number(2, 5)),
        form("input.__name__ + '{}'", word),
        form("'{}'[{}]", word, number(0, 3)),
        form("hex({})", number(10, 99)),
        form("','.join(['{}'])", word),
        form("f'{{{}}}'", number(1, 99)),
    ),
    "list": (
        form("'{} {}'.split()", word, word),
        form("sorted({})", lambda dice: tuple(dice.randint(1, 9) for _ in range(3))),
        form("{}[1:]", numbers(3)),
        form("[x for x in range({})]", number(2, 9)),
        form("sorted('{}')", word),
    ),
    "tuple": (
        form("({},)", number(2, 99)),
        form("divmod({}, {})", number(2, 99), number(2, 99)),
        form("{}, {}", number(2, 99), number(2, 99)),
        form("'{}'.partition('{}')", word, one_of("aeiou")),
    ),
    "bool": (
        form("{} > {}", number(2, 99), number(2, 99)),
        form("'{}' in '{}'", one_of("aeiou"), word),
        form("not '{}'", word),
        form("'{}'.isupper()", word),
        form("any({})", numbers(2)),
    ),
    "set": (
        form("{{{}, {}}}", number(2, 99), number(2, 99)),
        form("{{x for x in '{}'}}", word),
        form("{{{}}} | {{{}}}", number(1, 99), number(1, 99)),
        form("{{'{}'}}", word),
    ),
    "dict": (
        form("{{'{}': {}}}", word, number(1, 99)),
        form("{{x: {} for x in '{}'}}", number(1, 99), word),
        form("dict({}={})", word, number(1, 99)),
    ),
}
"""Expressions by the names of their values' types."""
EXCEPTIONS: Final[Mapping[str, Sequence[Form]]] = {
    "ValueError": (
        form("int('{}')", word),
        form("float('{}')", word),
        form("[{}, {}].remove({})", number(1, 9), number(1, 9), number(10, 99)),
        form("a, b = {}", numbers(3)),
        form("'{}'.index('q')", word),
    ),
    "TypeError": (
        form("'{}' + {}", word, number(1, 99)),
        form("len({})", number(1, 999)),
        form("sum(['{}', {}])", word, number(1, 99)),
        form("{{{}: '{}'}}", numbers(2), word),
        form("'{}'[0] = 'x'", word),
    ),
    "IndexError": (
        form("{}[{}]", numbers(3), number(3, 9)),
        form("'{}'[{}]", word, number(10, 99)),
        form("{}.pop({})", numbers(2), number(2, 9)),
    ),
    "KeyError": (
        form("{{'{}': {}}}['{}']", word, number(1, 99), one_of("abc")),
        form("{{{}: '{}'}}[{}]", number(1, 9), word, number(10, 99)),
        form("{{'{}': {}}}.pop('{}')", word, number(1, 99), one_of("xyz")),
    ),
    "ZeroDivisionError": (
        form("{} / (3 - 3)", number(1, 999)),
        form("{} % 0", number(1, 999)),
        form("{} // len('')", number(1, 999)),
    ),
    "AttributeError": (
        form("{}.push({})", numbers(2), number(1, 99)),
        form("'{}'.append('{}')", word, one_of("abc")),
        form("({}).upper()", number(1, 99)),
        form("None.{}", word),
    ),
    "NameError": (
        form("print({})", word),
        form("{} + {}", word, number(1, 99)),
        form("{}({})", word, number(1, 99)),
    ),
}
"""Statements by the names of the exceptions that they raise."""
LANGUAGES: Final[Mapping[str, Sequence[Form]]] = {
    "Python": (
        form("{} = [x for x in {}]", word, word),
        form("def {}(self): pass", word),
        form("for {} in range({}):", word, number(1, 99)),
    ),
    "JavaScript": (
        form("const {} = () => {};", word, number(1, 99)),
        form("let {} = {} === {};", word, word, number(1, 99)),
        form("{}.forEach(x => console.log(x));", word),
    ),
    "Java": (
        form("private static final int {} = {};", word, number(1, 99)),
        form("List<String> {} = new ArrayList<>();", word),
        form("System.out.println({});", word),
    ),
    "C++": (form("std::vector<int> {};", word), form("std::cout << {} << std::endl;", word)),
    "C": (
        form('printf("%d", {});', word),
        form("int *{} = malloc({});", word, number(1, 99)),
        form("#define {} {}", word, number(1, 99)),
    ),
    "Rust": (
        form("let mut {} = {};", word, number(1, 99)),
        form('println!("{{}}", {});', word),
        form("fn {}(&self) -> i32 {{", word),
    ),
    "Go": (
        form("{} := {}", word, number(1, 99)),
        form("fmt.Println({})", word),
        form("func {}() error {{", word),
    ),
    "Ruby": (form("puts {}", word), form("{}.each do |x|", word), form("def {}; @{}; end", word, word)),
    "PHP": (form("echo ${};", word), form("${} = array({});", word, number(1, 99)), form("$this->{} = 1;", word)),
    "SQL": (form("SELECT {} FROM {};", word, word), form("ALTER TABLE {} ADD {} INT;", word, word)),
    "Kotlin": (form("val {}: Int = {}", word, number(1, 99)), form("fun {}(x: Int): Int = x", word)),
    "Swift": (form("guard let {} = {} else {{ return }}", word, word), form("func {}(_ x: Int) -> Int {{", word)),
    "Haskell": (form("{} :: Int -> Int", word), form("{} = map (+{})", word, number(1, 99))),
    "Perl": (form("my ${} = {};", word, number(1, 99)), form("foreach my $x (@{}) {{", word)),
}
"""Lines by the names of the languages in which they're written."""


_ALSO: Final = {"int": ("integer",), "str": ("string",), "bool": ("boolean",), "dict": ("dictionary",)}
"""Other names of the same type."""


def _named(set_: str, wording: str, forms: Mapping[str, Sequence[Form]]) -> Iterator[Question]:
    for text, answer in in_turn_by_answer(set_, forms):
        yield draft(wording.format(text), answer, *_ALSO.get(answer, ()))


PROGRAMS: Final[dict[str, Callable[[], Iterator[Question]]]] = {
    "type-name": partial(_named, "type-name", "Name the type of this Python value: {}", TYPES),
    "exception": partial(_named, "exception", "Which exception does this line of Python raise? {}", EXCEPTIONS),
    "language": partial(_named, "language", "In which programming language is this line written? {}", LANGUAGES),
}
"""Makers by the names of their sets."""
