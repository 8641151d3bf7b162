"""Conditions in CEL: type-checked when a policy loads, evaluated when it is asked.

CEL (Common Expression Language, by Google) always ends: it has no loops but bounded ones, and no input or output.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cel_expr_python import cel

from ilis_guard.policy.facts import VISIBLE, Facts, seen
from ilis_guard.strict_yaml import nearest

MAX_LENGTH: Final = 2000
"""Characters of one condition; more belongs into several rules."""
MAX_BRIEF: Final = 120
"""Characters of a condition that a reason shows."""

_TYPES: Final = {"double": cel.Type.DOUBLE, "int": cel.Type.INT, "string": cel.Type.STRING, "bool": cel.Type.BOOL}
_VARIABLES: Final = {name: _TYPES[kind.cel] for name, kind in VISIBLE.items()} | {
    "labels": cel.Type.Map(cel.Type.STRING, cel.Type.DYN)
}
_ENVIRONMENT: Final = cel.NewEnv(variables=_VARIABLES)
_WITHOUT: Final = {
    name: cel.NewEnv(variables={other: kind for other, kind in _VARIABLES.items() if other != name}) for name in VISIBLE
}
"""By fact: an environment in which there is no such fact."""

_COMPLAINT: Final = re.compile(r"^(?:.*: )?ERROR: <input>:(\d+):(\d+): (.*?)(?: \[\w+\])?$", re.MULTILINE)
_UNDECLARED: Final = re.compile(r"undeclared reference to '([^']*)'")
_NO_OVERLOAD: Final = re.compile(r"found no matching overload for '([^']*)' applied to '\(([^']*)\)'")
_STRING: Final = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_LABEL: Final = re.compile(r"(?<![\w.])labels\.[A-Za-z_]\w*")
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
        try:
            compiled = _ENVIRONMENT.compile(text)
        except RuntimeError as complaint:
            raise ConditionError(_problems(text, str(complaint))) from None
        if compiled.return_type() != cel.Type.BOOL:
            got = compiled.return_type().name()
            what = f"a condition must be true or false, got {got}; compare it with something (labels.vip == true)"
            raise ConditionError([Problem(what)])
        one_line = " ".join(text.split())
        brief = one_line if len(one_line) <= MAX_BRIEF else f"{one_line[: MAX_BRIEF - 3]}..."
        return cls(text=text, names=_names(text), brief=brief, _compiled=compiled)

    def check(self, situation: "Situation") -> bool | str:
        """Whether the condition is true; a string where it can't be evaluated, and says why."""
        return self._evaluate(situation.activation)

    def might_hold(self, situation: "Situation") -> bool:
        """Whether the condition could be true, for all that is known, if the missing numbers were there.

        CEL tells by itself what doesn't hang on what it isn't given: ``false && x`` is false without `x`.
        """
        return self._evaluate(situation.known) is not False

    def _evaluate(self, activation: Any) -> bool | str:
        try:
            value = self._compiled.eval(activation).value()
        except Exception as problem:  # noqa: BLE001  # whatever CEL raises, deciding must go on without this rule
            return _in_words(str(problem))
        return value if isinstance(value, bool) else _in_words(str(value))


class Conditions:
    """Conditions that are checked in one go: crossing over to CEL once per condition takes ten times as long."""

    def __init__(self, conditions: Sequence[Condition]) -> None:
        self._each = tuple(conditions)
        # On lines of their own, because a condition may end in a comment.
        together = ",".join(f"(\n{condition.text}\n)" for condition in conditions)
        try:
            self._all: Any = _ENVIRONMENT.compile(f"[{together}]")
        except RuntimeError:  # too long or too deep for CEL, though each alone isn't
            self._all = None

    def check(self, situation: "Situation") -> Iterable[bool | str]:
        """What `Condition.check` says for each, in order."""
        outcomes = self._check_all(situation)
        # One that can't be evaluated spoils the whole; asked one by one, each answers for itself.
        return outcomes if isinstance(outcomes, list) else (each.check(situation) for each in self._each)

    def _check_all(self, situation: "Situation") -> Any:
        if self._all is None:
            return None
        try:
            return self._all.eval(situation.activation).plain_value()
        except Exception:  # noqa: BLE001  # as in Condition.check
            return None


class Situation:
    """Facts made ready for CEL: built once, checked against many conditions.

    Args:
        facts: what the conditions look at.
        names: all that they look at, as `looked_at` has it: the less there is, the sooner it is handed over to CEL.
    """

    __slots__ = ("_known", "_missing", "_names", "_values", "_words", "activation")

    def __init__(self, facts: Facts, names: Sequence[str] = tuple(_VARIABLES)) -> None:
        self._values = seen(facts)
        self._names = names
        # Only NaN differs from itself.
        self._missing = frozenset(name for name, value in self._values.items() if value != value)  # noqa: PLR0124
        self._words: dict[tuple[str, ...], str] = {}
        self._known: Any = None
        self.activation: Any = _ENVIRONMENT.Activation({name: self._values[name] for name in names})

    @property
    def known(self) -> Any:
        """As `activation`, without the numbers that are missing."""
        if self._known is None:
            known = {name: self._values[name] for name in self._names if name not in self._missing}
            self._known = _ENVIRONMENT.Activation(known)
        return self._known

    def missing(self, names: tuple[str, ...]) -> str:
        """The first of these facts that is a number and isn't known; empty where all are."""
        if self._missing.isdisjoint(names):
            return ""
        return next(name for name in names if name in self._missing)

    def describe(self, names: tuple[str, ...]) -> str:
        """``uncertainty 0.43, shift missing, ``: the values of some facts, ready to put before a condition."""
        words = self._words.get(names)
        if words is None:
            words = self._words[names] = "".join(f"{name} {self._value(name)}, " for name in names)
        return words

    def _value(self, name: str) -> str:
        is_label = name.startswith("labels.")
        value = self._values["labels"].get(name.removeprefix("labels.")) if is_label else self._values[name]
        if value is None or name in self._missing:
            return "missing"
        if isinstance(value, bool):
            return "true" if value else "false"
        if value == "":
            return "empty"
        text = f"{value:.6g}" if isinstance(value, float) else repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."  # about as much as is read


def looked_at(conditions: Iterable[Condition]) -> tuple[str, ...]:
    """The facts that conditions look at, each once, and `labels`, which they may look at under any name."""
    named = (name for condition in conditions for name in condition.names if name in VISIBLE)
    return tuple(dict.fromkeys([*named, "labels"]))


def _names(text: str) -> tuple[str, ...]:
    """A condition looks at a fact if it is none without it: a name in a comment or in a string is no look."""
    last_part = {name: name.rpartition(".")[2] for name in VISIBLE}
    places = {name: text.find(last) for name, last in last_part.items() if last in text and not _compiles(text, name)}
    for match in _LABEL.finditer(_STRING.sub(lambda string: "'" * len(string.group()), text)):
        places.setdefault(match.group(), match.start())
    return tuple(sorted(places, key=lambda name: places[name]))


def _compiles(text: str, without: str) -> bool:
    try:
        _WITHOUT[without].compile(text)
    except RuntimeError:
        return False
    return True


def _problems(text: str, complaint: str) -> list[Problem]:
    """CEL's complaints in words a policy's author understands."""
    found = [(int(line), int(column) - 1, what) for line, column, what in _COMPLAINT.findall(complaint)]
    if not found:
        what = "is nested too deeply" if "recursion" in complaint else complaint.splitlines()[0]
        return [Problem(f"the condition {what}; split it into several rules")]
    if "Syntax error" in found[0][2]:  # what follows a syntax error are its consequences
        found = found[:1]
    lines = text.splitlines()
    return [_problem(what, line, offset, lines[line - 1] if line <= len(lines) else "") for line, offset, what in found]


def _problem(what: str, line: int, offset: int, line_text: str) -> Problem:
    if match := _UNDECLARED.search(what):
        name = match.group(1)
        # CEL points behind the name's first part, or at a call's parenthesis.
        start = line_text.rfind(name, 0, offset + len(name))
        return Problem(f"unknown name {name!r}{_suggested(name)}", line, offset if start < 0 else start)
    if match := _NO_OVERLOAD.search(what):
        operator, types = match.group(1).replace("_", ""), match.group(2)
        return Problem(f"`{operator}` can't be applied to ({types}); {_remedy(types)}", line, offset)
    if what.startswith("Syntax error"):
        brief = what.removeprefix("Syntax error: ").partition(" expecting ")[0]
        return Problem(f"not a condition: {brief}; CEL writes && || ! == for and, or, not, equals", line, offset)
    return Problem(f"{what}; see the list of facts and CEL's operators", line, offset)


def _suggested(name: str) -> str:
    first, _, rest = name.partition(".")
    if rest and nearest(first, ["labels"]):
        return f"; did you mean 'labels.{rest}'?"
    return nearest(name, [*VISIBLE, "labels"]) or f"; facts are {', '.join(VISIBLE)}, labels.NAME"


def _remedy(types: str) -> str:
    if {"double", "int"} <= set(types.split(", ")):
        counts = "prompt_length, text_length, attempt and tokens"
        return f"{counts} go with whole numbers (1); all other numbers need a point: write 1.0"
    return "compare like with like: numbers with numbers, text with 'text' in quotes"


def _in_words(complaint: str) -> str:
    if match := _ABSENT_KEY.search(complaint):
        name = match.group(1)
        return f"the label {name!r} is absent; ask has(labels.{name}) first"
    return complaint.partition("\n")[0]
