"""Conditions in CEL: type-checked when a policy loads, evaluated when it is asked.

CEL (Common Expression Language, by Google) always ends: it has no loops but bounded ones, and no input or output.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cel_expr_python import cel

from ilis_guard.config.strict_yaml import shorten, suggest
from ilis_guard.policy.bounds import objections
from ilis_guard.policy.facts import VISIBLE, Facts, seen
from ilis_guard.policy.syntax import Kind, Node, expression, tree
from ilis_guard.types import FactValue

MAX_LENGTH: Final = 2000
"""Characters of one condition; more belongs into several rules."""
MAX_BRIEF: Final = 120
"""Characters of a condition that a reason shows."""

_TYPES: Final = {"double": cel.Type.DOUBLE, "int": cel.Type.INT, "string": cel.Type.STRING, "bool": cel.Type.BOOL}
_VARIABLES: Final = {name: _TYPES[kind.cel] for name, kind in VISIBLE.items()} | {
    "labels": cel.Type.Map(cel.Type.STRING, cel.Type.DYN)
}
_ENVIRONMENT: Final = cel.NewEnv(variables=_VARIABLES)

_TYPE_NAMES: Final = {str: "string", bool: "bool", int: "number", float: "number"}

_BEHIND: Final = {"certified": ("uncertainty", "threshold")}
"""What a fact follows from, which says more of it than true or false."""

_COMPLAINT: Final = re.compile(r"^(?:.*: )?ERROR: <input>:(\d+):(\d+): (.*?)(?: \[\w+\])?$", re.MULTILINE)
_UNDECLARED: Final = re.compile(r"undeclared reference to '([^']*)'")
_NO_OVERLOAD: Final = re.compile(r"found no matching overload for '([^']*)' applied to '\(([^']*)\)'")
_UNREADABLE: Final = re.compile(r"token recognition error at: '([^\x00-\x7f])")
_ABSENT_KEY: Final = re.compile(r'Key not found in map : "(.*)"')


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a condition can't be compiled."""

    what: str
    line: int = 1
    """In the condition's text, from 1."""
    offset: int = 0
    """Characters before the place in its line, from 0."""


class ConditionError(ValueError):
    """A text is no condition; `problems` holds every reason."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(problem.what for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """A compiled condition over facts."""

    text: str
    names: tuple[str, ...]
    """The facts it mentions, in order, each once; labels as ``labels.NAME``."""
    brief: str
    """The text on one line, shortened, for reasons."""
    compared: Mapping[str, frozenset[str]]
    """By label: the types of what ``==`` and ``in`` compare it with."""
    _compiled: Any

    @classmethod
    def of(cls, text: str) -> "Condition":
        """Compile and type-check a condition.

        Raises:
            ConditionError: the text isn't CEL, names a fact that doesn't exist, compares what can't be compared, or
                isn't a yes-or-no question.
        """
        if len(text) > MAX_LENGTH:
            what = f"a condition has at most {MAX_LENGTH} characters, got {len(text)}; split it into several rules"
            raise ConditionError([Problem(what)])
        compiled = _compiled(text)
        if compiled.return_type() != cel.Type.BOOL:
            got = compiled.return_type().name()
            what = f"a condition must be true or false, got {got}; compare it with something (labels.vip == true)"
            raise ConditionError([Problem(what)])
        made = cls._made(text, compiled)
        if problems := [_at(text, offset, what) for what, offset in objections(text, tree(compiled.serialize()))]:
            raise ConditionError(problems)
        return made

    @classmethod
    def part(cls, text: str) -> "Condition":
        """As `of`, for a part of a condition: ``labels.vip && true`` is one, and ``labels.vip`` may be anything.

        Raises:
            ConditionError: as `of`, but for what isn't a yes-or-no question, and for what no condition may hold.
        """
        return cls._made(text, _compiled(text))

    @classmethod
    def _made(cls, text: str, compiled: Any) -> "Condition":
        syntax = tree(compiled.serialize())
        names = tuple(dict.fromkeys(_names(syntax)))
        return cls(text=text, names=names, brief=shortened(text), compared=_compared(syntax), _compiled=compiled)

    def check(self, situation: "Situation") -> bool | str:
        """Whether the condition is true; a string where it can't be evaluated, and says why."""
        mistaken = (situation.mistaken(name, types) for name, types in self.compared.items())
        return next(filter(None, mistaken), "") or self._evaluate(situation.activation)

    def might_hold(self, situation: "Situation") -> bool:
        """Whether the condition could be true, for all that is known, if the missing numbers were there.

        CEL tells by itself what doesn't hang on what it isn't given: ``false && x`` is false without `x`.
        """
        return self._evaluate(situation.known) is not False

    def outlook(self, situation: "Situation") -> bool | None:
        """Whether the condition is true whatever becomes of what isn't known; None where it hangs on that.

        One that fails on what is known is taken to hang on it too.
        """
        value = self._evaluate(situation.known)
        return value if isinstance(value, bool) else None

    def _evaluate(self, activation: Any) -> bool | str:
        try:
            found = self._compiled.eval(activation)
            value = found.value()
        except Exception as problem:  # noqa: BLE001  # whatever CEL raises, deciding must go on without this rule
            return _in_words(str(problem))
        if isinstance(value, bool):
            return value
        is_error = found.type() == cel.Type.ERROR
        return _in_words(str(value)) if is_error else f"it is a {found.type().name().lower()}, not true or false"

    @property
    def tree(self) -> bytes:
        """How CEL reads it: ``expr`` of its ``cel.expr.CheckedExpr``, the same for texts that mean the same.

        Spaces, comments and needless parentheses don't count; places and types stand elsewhere.
        """
        return expression(self._compiled.serialize())


class Together:
    """Conditions that are evaluated in one go: crossing over to CEL once for each takes ten times as long."""

    def __init__(self, texts: Iterable[str]) -> None:
        try:
            self._compiled: Any = _ENVIRONMENT.compile(f"[{','.join(f'({text})' for text in texts)}]")
        except RuntimeError:  # too long or too deep for CEL, though each alone isn't
            self._compiled = None

    def evaluate(self, activation: Any) -> list[bool] | None:
        """What each comes to, in order; None where one of them can't be evaluated, which spoils the whole."""
        if self._compiled is None:
            return None
        try:
            values = self._compiled.eval(activation).plain_value()
        except Exception:  # noqa: BLE001  # as in Condition.check
            return None
        return values if isinstance(values, list) else None


class Conditions:
    """Conditions that are checked in one go, if they can be."""

    def __init__(self, conditions: Sequence[Condition]) -> None:
        self._each = tuple(conditions)
        self._together = Together(condition.text for condition in conditions)
        self._comparing: dict[tuple[str, frozenset[str]], list[int]] = {}
        for index, condition in enumerate(conditions):
            for compared in condition.compared.items():
                self._comparing.setdefault(compared, []).append(index)

    def check(self, situation: "Situation") -> Iterable[bool | str]:
        """What `Condition.check` says for each, in order."""
        outcomes: list[Any] | None = self._together.evaluate(situation.activation)
        if outcomes is None:  # asked one by one, each answers for itself
            return (each.check(situation) for each in self._each)
        for (name, types), indices in self._comparing.items():
            if mistaken := situation.mistaken(name, types):
                for index in indices:
                    outcomes[index] = mistaken
        return outcomes


class Situation:
    """Facts made ready for CEL: built once, checked against many conditions.

    Args:
        facts: what the conditions look at.
        names: all that they look at, as `looked_at` has it: the less there is, the sooner it is handed over to CEL.
        still_open: those of them that may come out otherwise, and so aren't known yet.
    """

    __slots__ = ("_facts", "_known", "_missing", "_still_open", "_values", "activation")

    def __init__(
        self,
        facts: Facts,
        names: Sequence[str] = tuple(_VARIABLES),
        *,
        still_open: frozenset[str] = frozenset(),
    ) -> None:
        self._still_open = still_open
        self._values = seen(facts, names)
        # Only NaN differs from itself.
        self._missing = frozenset([name for name, value in self._values.items() if value != value])  # noqa: PLR0124
        self._facts: dict[tuple[str, ...], Mapping[str, FactValue | None]] = {}
        self._known: Any = None
        self.activation: Any = _ENVIRONMENT.Activation(self._values)

    def mistaken(self, label: str, types: frozenset[str]) -> str:
        """Why a label can't be compared with something of these types; empty where it can, or isn't there.

        CEL itself refuses to ask whether 'true' is smaller than true, but calls them simply not equal: a caller that
        writes the one for the other would switch off the rule that asks for it.
        """
        labels = self._values["labels"]
        if label not in labels or (got := _TYPE_NAMES[type(labels[label])]) in types:
            return ""
        return f"the label {label!r} is a {got}, and is compared with a {' and a '.join(sorted(types))}"

    @property
    def known(self) -> Any:
        """As `activation`, without the numbers that are missing, and without what is still open."""
        if self._known is None:
            unknown = self._missing | self._still_open
            known = {name: value for name, value in self._values.items() if name not in unknown}
            self._known = _ENVIRONMENT.Activation(known)
        return self._known

    @property
    def is_complete(self) -> bool:
        """Whether no number is missing that the conditions look at."""
        return not self._missing

    def missing(self, names: tuple[str, ...]) -> str:
        """The first of these facts that is a number and isn't known; empty where all are."""
        if self._missing.isdisjoint(names):
            return ""
        return next(name for name in names if name in self._missing)

    def facts(self, names: tuple[str, ...]) -> Mapping[str, FactValue | None]:
        """The values of these facts and labels, and of the facts behind them; None where one is missing."""
        found = self._facts.get(names)
        if found is None:
            read = dict.fromkeys(fact for name in names for fact in _BEHIND.get(name, (name,)))
            found = self._facts[names] = {name: self._fact(name) for name in read}
        return found

    def _fact(self, name: str) -> FactValue | None:
        if name in self._missing:
            return None
        is_label = name.startswith("labels.")
        value: FactValue | None = (
            self._values["labels"].get(name.removeprefix("labels.")) if is_label else self._values[name]
        )
        return value


def _compiled(text: str) -> Any:
    try:
        return _ENVIRONMENT.compile(text)
    except RuntimeError as complaint:
        raise ConditionError(_problems(text, str(complaint))) from None


def shortened(text: str) -> str:
    """A condition's text on one line, as far as a reason shows it."""
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= MAX_BRIEF else f"{one_line[: MAX_BRIEF - 3]}..."


def looked_at(conditions: Iterable[Condition]) -> tuple[str, ...]:
    """The facts that conditions look at, and those behind them, each once; and `labels`, under whatever names."""
    named = (name for condition in conditions for name in condition.names if name in VISIBLE)
    return tuple(dict.fromkeys([*(fact for name in named for fact in (name, *_BEHIND.get(name, ()))), "labels"]))


def _names(condition: Node) -> Iterator[str]:
    """The facts in a condition, in order."""
    for node in condition.walk():
        if node.kind is Kind.NAME and node.text in VISIBLE:
            yield node.text
        elif (label := _label(node)) is not None:
            yield f"labels.{label}"


def _label(node: Node) -> str | None:
    """The name of the label that a part looks at: ``labels.NAME``, ``has(labels.NAME)`` or ``labels['NAME']``."""
    of_labels = bool(node.parts) and node.parts[0].kind is Kind.NAME and node.parts[0].text == "labels"
    if of_labels and node.kind is Kind.FIELD:
        return node.text
    if of_labels and node.kind is Kind.CALL and node.text == "_[_]":
        name = node.parts[1]
        return name.text if name.kind is Kind.CONSTANT and name.type == "string" else None
    return None


def _compared(condition: Node) -> dict[str, frozenset[str]]:
    """By label: the types of what it's compared with. Labels that are compared with something untyped aren't there."""
    compared: dict[str, set[str]] = {}
    for node in condition.walk():
        if node.kind is not Kind.CALL or node.text not in ("_==_", "@in"):
            continue
        one, other = node.parts
        if (label := _label(one)) is not None:
            compared.setdefault(label, set()).add(other.type.removeprefix("list "))
        if (label := _label(other)) is not None:
            compared.setdefault(label, set()).add(one.type)
    return {label: frozenset(types) for label, types in compared.items() if "" not in types}


def _problems(text: str, complaint: str) -> list[Problem]:
    """CEL's complaints in words a policy's author understands."""
    found = [(int(line), int(column) - 1, what) for line, column, what in _COMPLAINT.findall(complaint)]
    if not found:
        what = "is nested too deeply" if "recursion" in complaint else complaint.splitlines()[0]
        return [Problem(f"the condition {what}; split it into several rules")]
    if "Syntax error" in found[0][2]:  # what follows a syntax error are its consequences
        found = found[:1]
    lines = text.split("\n")
    # A name that is wrong 200 times is wrong once, where it stands first.
    once = {what: (line, offset) for line, offset, what in reversed(found)}
    return [_problem(what, line, offset, lines[line - 1]) for what, (line, offset) in reversed(once.items())]


def _at(text: str, offset: int, what: str) -> Problem:
    return Problem(what, text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset) - 1)


def _problem(what: str, line: int, offset: int, line_text: str) -> Problem:
    if match := _UNDECLARED.search(what):
        name = match.group(1)
        # CEL points behind the name's first part, or at a call's parenthesis.
        start = line_text.rfind(name, 0, offset + len(name))
        return Problem(f"unknown name {shorten(name)}{_suggested(name)}", line, offset if start < 0 else start)
    if match := _NO_OVERLOAD.search(what):
        operator, types = match.group(1).replace("_", ""), match.group(2)
        return Problem(f"`{operator}` can't be applied to ({types}); {_remedy(types)}", line, offset)
    if match := _UNREADABLE.search(what):
        letter = match.group(1)
        name = unicodedata.name(letter, f"U+{ord(letter):04X}")
        return Problem(
            f"got {letter!r} ({name}), which may look like another letter; write a-z, 0-9 and _", line, offset
        )
    if what.startswith("Syntax error"):
        brief = what.removeprefix("Syntax error: ").partition(" expecting ")[0]
        hint = "CEL writes && || ! == for and, or, not, equals"
        if re.match(r"\d,\d", line_text[max(0, offset - 1) :]):
            hint = "a fraction has a point: 0.25"
        return Problem(f"not a condition: {brief}; {hint}", line, offset)
    return Problem(f"{what}; see the list of facts and CEL's operators", line, offset)


def _suggested(name: str) -> str:
    first, _, rest = name.partition(".")
    if rest and suggest(first, ["labels"]):
        return f"; did you mean 'labels.{rest}'?"
    if name.lower() in ("true", "false"):
        return f"; write {name.lower()}"
    text_or_label = (
        "" if rest else f"; a text stands in quotes ('{name}'), a label after its first name (labels.{name})"
    )
    return suggest(name, [*VISIBLE, "labels"]) or f"{text_or_label}; facts are {', '.join(VISIBLE)}, labels.NAME"


def _remedy(types: str) -> str:
    if {"double", "int"} <= set(types.split(", ")):
        counts = "prompt_length, text_length, attempt and tokens"
        return f"{counts} go with whole numbers (1); all other numbers need a point: write 1.0"
    if types.startswith("bool, "):
        return "write each comparison by itself: 0.1 < uncertainty && uncertainty < 0.2"
    return "compare like with like: numbers with numbers, text with 'text' in quotes"


def _in_words(complaint: str) -> str:
    if match := _ABSENT_KEY.search(complaint):
        name = match.group(1)
        return f"the label {name!r} is absent; ask has(labels.{name}) first"
    return complaint.partition("\n")[0]
