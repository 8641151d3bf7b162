"""Conditions in CEL: compiled and type-checked when a policy loads, evaluated at every decision.

CEL (Common Expression Language, by Google) always ends: it has no loops but bounded ones, and no input or output.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cel_expr_python import cel

from ilis_guard.errors import error_text
from ilis_guard.policy.comparisons import functions, strict, type_name, unlike_types
from ilis_guard.policy.diagnostics import ConditionError, Problem, compiler_problems, language_problems
from ilis_guard.policy.facts import VISIBLE, Facts, fact_values
from ilis_guard.policy.syntax import Node, compared_labels, names, tree
from ilis_guard.types import FactValue

MAX_LENGTH: Final = 2000
"""Characters of one condition; more belongs into several rules."""
MAX_BRIEF: Final = 120
"""Characters of a condition that a reason shows."""

_TYPES: Final = {"double": cel.Type.DOUBLE, "int": cel.Type.INT, "string": cel.Type.STRING, "bool": cel.Type.BOOL}
_VARIABLES: Final = {name: _TYPES[kind.cel] for name, kind in VISIBLE.items()} | {
    "labels": cel.Type.Map(cel.Type.STRING, cel.Type.DYN)
}
_MAYBE_MISSING_INTEGERS: Final = frozenset(
    name for name, kind in VISIBLE.items() if kind.may_be_missing and kind.cel == "int"
)
_ENVIRONMENT: Final = cel.NewEnv(variables=_VARIABLES, functions=functions())

_BEHIND: Final = {"certified": ("uncertainty", "calibrated", "threshold")}
"""The facts that a fact follows from, which explain it better than true or false."""

_COMPARING: Final = ("==", "!=", "in", "<", "<=", ">", ">=")
_ABSENT_KEY: Final = re.compile(r'Key not found in map : "(.*)"')


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """A compiled condition over facts."""

    text: str
    tree: Node
    """As CEL reads it."""
    names: tuple[str, ...]
    """The facts that it reads, in order, each once; labels as ``labels.NAME``."""
    brief: str
    """The text on one line, shortened."""
    _compiled: Any

    @classmethod
    def of(cls, text: str) -> "Condition":
        """Compile and type-check a condition.

        Raises:
            ConditionError: the text isn't CEL, names a fact that doesn't exist, compares what can't be compared, isn't
                Boolean, or uses what isn't in the policy language.
        """
        if len(text) > MAX_LENGTH:
            what = f"a condition has at most {MAX_LENGTH} characters, got {len(text)}; split it into several rules"
            raise ConditionError([Problem(what)])
        compiled = _compiled(text)
        if compiled.return_type() != cel.Type.BOOL:
            got = compiled.return_type().name()
            what = f"a condition must be true or false, got {got}; compare it with something (labels.vip == true)"
            raise ConditionError([Problem(what)])
        condition = cls._made(text, compiled)
        if problems := language_problems(text, condition.tree):
            raise ConditionError(problems)
        return condition

    @classmethod
    def part(cls, text: str) -> "Condition":
        """Compile a part of a condition, which needn't be Boolean: ``labels.vip`` of ``labels.vip && true``.

        Raises:
            ConditionError: the text isn't CEL, names a fact that doesn't exist, or compares what can't be compared.
        """
        return cls._made(text, _compiled(text))

    @classmethod
    def _made(cls, text: str, compiled: Any) -> "Condition":
        node = tree(compiled.serialize())
        return cls(
            text=text,
            tree=node,
            names=names(node),
            brief=_shortened(text),
            _compiled=_strict(compiled),
        )

    def check(self, situation: "Situation") -> bool | str:
        """Evaluate the condition; a string says why it can't be evaluated."""
        value = self._evaluate(situation.activation)
        if isinstance(value, bool):
            return value
        # A comparison with a missing fraction is false; a missing whole number makes the condition unknown to CEL.
        return False if situation.lacks_integer(self.names) else self._explained(value, situation)

    def might_hold(self, situation: "Situation") -> bool:
        """Whether the condition could be true, by all that is known, if the missing numbers were there.

        CEL itself finds what doesn't depend on unknown facts: ``false && x`` is false without `x`.
        """
        return self._evaluate(situation.known) is not False

    def known_value(self, situation: "Situation") -> bool | None:
        """The condition's value whatever the unknown facts are; None where it depends on them or fails."""
        value = self._evaluate(situation.known)
        return value if isinstance(value, bool) else None

    def _evaluate(self, activation: Any) -> bool | str:
        try:
            found = self._compiled.eval(activation)
            value = found.value()
        except Exception as problem:  # noqa: BLE001  # whatever CEL raises, deciding must go on without this rule
            return error_text(problem)
        if isinstance(value, bool):
            return value
        is_error = found.type() == cel.Type.ERROR
        return str(value) if is_error else f"it is a {found.type().name().lower()}, not true or false"

    def _explained(self, complaint: str, situation: "Situation") -> str:
        """Why it can't be evaluated, in words that name the label at fault."""
        if match := _ABSENT_KEY.search(complaint):
            name = match.group(1)
            return f"the label {name!r} is absent; ask has(labels.{name}) first"
        if (unlike := unlike_types(complaint)) is None:
            return complaint.partition("\n")[0]
        operator, types = unlike
        if len(types) == 2 and operator in _COMPARING:  # both sides
            for label, other in compared_labels(self.tree):
                got = situation.label_type(label)
                if got in types and got != other and (not other or other in types):
                    return f"the label {label!r} is a {got}, and is compared with a {_other(types, got)}"
            return f"`{operator}` compares a {types[0]} with a {types[1]}: unlike types can't be compared"
        if types:
            return f"`{operator}` can't be applied to {_listed(types)}"
        return f"`{operator}` needs {'a list on its right' if operator == 'in' else 'true and false'}"


class ConditionBatch:
    """Conditions that CEL evaluates as one list: a call for each takes ten times as long."""

    def __init__(self, texts: Iterable[str]) -> None:
        try:
            self._compiled: Any = _strict(_ENVIRONMENT.compile(f"[{','.join(f'({text})' for text in texts)}]"))
        except RuntimeError:  # too long or too deep for CEL, though each alone isn't
            self._compiled = None

    def evaluate(self, activation: Any) -> list[bool] | None:
        """Each condition's value, in order; None where one of them can't be evaluated, which fails the whole list."""
        if self._compiled is None:
            return None
        try:
            values = self._compiled.eval(activation).plain_value()
        except Exception:  # noqa: BLE001  # as in Condition.check
            return None
        return values if isinstance(values, list) else None


class Conditions:
    """Conditions that are checked as one batch where possible."""

    def __init__(self, conditions: Sequence[Condition]) -> None:
        self._each = tuple(conditions)
        self._together = ConditionBatch(condition.text for condition in conditions)

    def check(self, situation: "Situation") -> Iterable[bool | str]:
        """The result of `Condition.check` for each, in order."""
        outcomes: list[Any] | None = self._together.evaluate(situation.activation)
        if outcomes is None:  # one fails, and only alone does each have its own result
            return (each.check(situation) for each in self._each)
        return outcomes


class Situation:
    """Facts converted for CEL: built once, checked against many conditions.

    Args:
        facts: what the conditions read.
        names: all that they read, as `names_read` has it: fewer facts are converted faster.
        unknown: those of them that aren't known yet, whatever their values are.
    """

    __slots__ = ("_facts", "_known", "_lacking", "_missing", "_unknown", "_values", "activation")

    def __init__(
        self,
        facts: Facts,
        names: Sequence[str] = tuple(_VARIABLES),
        *,
        unknown: frozenset[str] = frozenset(),
    ) -> None:
        self._unknown = unknown
        self._values = fact_values(facts, names)
        # Only NaN differs from itself.
        self._missing = frozenset([name for name, value in self._values.items() if value != value])  # noqa: PLR0124
        self._facts: dict[tuple[str, ...], Mapping[str, FactValue | None]] = {}
        self._known: Any = None
        self._lacking = _MAYBE_MISSING_INTEGERS & self._missing
        held = self._values
        if self._lacking:
            held = {name: value for name, value in held.items() if name not in self._lacking}
        self.activation: Any = _ENVIRONMENT.Activation(held)

    def label_type(self, label: str) -> str:
        """What conditions call the type of a label's value; empty where it isn't there."""
        labels = self._values["labels"]
        return type_name(labels[label]) if label in labels else ""

    @property
    def known(self) -> Any:
        """As `activation`, without the numbers that are missing, and without what is unknown."""
        if self._known is None:
            unknown = self._missing | self._unknown
            known = {name: value for name, value in self._values.items() if name not in unknown}
            self._known = _ENVIRONMENT.Activation(known)
        return self._known

    @property
    def is_complete(self) -> bool:
        """Whether no number is missing that the conditions read."""
        return not self._missing

    def lacks_integer(self, names: tuple[str, ...]) -> bool:
        """Whether one of these facts is a whole number that isn't known."""
        return not self._lacking.isdisjoint(names)

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
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ConditionError([Problem("has half a character (a lone surrogate) in it; write whole ones")])
    try:
        return _ENVIRONMENT.compile(text)
    except RuntimeError as complaint:
        raise ConditionError(compiler_problems(text, str(complaint))) from None


def _shortened(text: str) -> str:
    """A condition's text on one line, at most `MAX_BRIEF` characters."""
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= MAX_BRIEF else f"{one_line[: MAX_BRIEF - 3]}..."


def names_read(conditions: Iterable[Condition]) -> tuple[str, ...]:
    """The facts that conditions read, and those behind them, each once; and `labels`."""
    named = (name for condition in conditions for name in condition.names if name in VISIBLE)
    return tuple(dict.fromkeys([*(fact for name in named for fact in (name, *_BEHIND.get(name, ()))), "labels"]))


def _strict(compiled: Any) -> Any:
    return _ENVIRONMENT.deserialize(strict(compiled.serialize()))


def _listed(types: Sequence[str]) -> str:
    return " and ".join(f"a {name}" for name in types)


def _other(types: Sequence[str], one: str) -> str:
    return types[1] if types[0] == one else types[0]
