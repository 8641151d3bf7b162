"""What is wrong with a condition, in words that a policy's author understands, each problem with its place.

Conditions may use only a part of CEL, so that a decision takes bounded time and a condition says what it seems to say.
Of CEL's macros only those that ask (`all`, `exists`, `exists_one`) are in the language, one inside no other: each
alone takes as many steps as its list has items, while five inside one another, or a text that doubles in each of 30
`map`, would run until the memory is full. `matches` isn't, because a pattern of 12 characters can take a fifth of a
second to prepare, each time anew.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ilis_guard.config.strict_yaml import shorten, suggest
from ilis_guard.policy.facts import VISIBLE
from ilis_guard.policy.slips import (
    SHARES,
    Slip,
    hyphenated_names,
    meant_by,
    syntax_slip,
    unreadable_letter,
)
from ilis_guard.policy.syntax import Kind, Node, read_label, without_strings

FUNCTIONS: Final = ("size", "startsWith", "endsWith", "contains", "int", "double", "string", "type")
"""Those that conditions may call; beside operators, ``has``, and the macros."""
MACROS: Final = ("all", "exists", "exists_one")
_FIRST_NAMES: Final = {name.partition(".")[0] for name in (*VISIBLE, "labels")}
_NUMBERS: Final = frozenset({"add_int64", "add_uint64", "add_double"})

_COMPLAINT: Final = re.compile(r"^(?:.*: )?ERROR: <input>:(\d+):(\d+): (.*?)(?: \[\w+\])?$", re.MULTILINE)
_UNDECLARED: Final = re.compile(r"undeclared reference to '([^']*)'")
_RESERVED: Final = re.compile(r"reserved identifier: (\w+)")
_PARSER: Final = re.compile(r"(?:extraneous input|mismatched input|no viable alternative at input|error at:) '(.*)'")
_NO_OVERLOAD: Final = re.compile(r"found no matching overload for '([^']*)' applied to '\(([^']*)\)'")
_PERCENTAGE: Final = re.compile(r"[<>=!]=?\s*([0-9]{1,3})\b(?!\.)")
_UNREADABLE: Final = re.compile(r"token recognition error at: '([^\x00-\x7f])")


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


def compiler_problems(text: str, complaint: str) -> list[Problem]:
    """Put what CEL's compiler complains of into words."""
    found = [(int(line), int(column) - 1, what) for line, column, what in _COMPLAINT.findall(complaint)]
    if not found:
        what = "is nested too deeply" if "recursion" in complaint else complaint.splitlines()[0]
        return [Problem(f"the condition {what}; split it into several rules")]
    lines = text.split("\n")
    found = [one for one in found if _RESERVED.match(one[2])][:1] or found
    if "Syntax error" in found[0][2]:  # what follows a syntax error are its consequences
        found = found[:1]
        slip = syntax_slip(text)
        if slip is not None and not _UNREADABLE.search(found[0][2]) and slip.start <= _index(lines, *found[0][:2]) + 1:
            return [_slip_problem(text, slip)]
    hyphenated = list(hyphenated_names(text))
    problems = [_slip_problem(text, slip) for slip in hyphenated]
    found = [one for one in found if not any(slip.start <= _index(lines, *one[:2]) <= slip.end for slip in hyphenated)]
    # A name that is wrong 200 times is wrong once, where it stands first.
    once = {what: (line, offset) for line, offset, what in reversed(found)}
    return problems + [_problem(what, *place, lines[place[0] - 1]) for what, place in reversed(once.items())]


def _problem(what: str, line: int, offset: int, line_text: str) -> Problem:
    if match := _UNDECLARED.search(what):
        name = match.group(1)
        # CEL points behind the name's first part, or at a call's parenthesis.
        start = line_text.rfind(name, 0, offset + len(name))
        return Problem(f"unknown name {shorten(name)}{_suggested(name)}", line, offset if start < 0 else start)
    if match := _NO_OVERLOAD.search(what):
        operator, types = match.group(1).replace("_", ""), match.group(2)
        remedy = _percentage(line_text, offset) or _remedy(types)
        return Problem(f"`{operator}` can't be applied to ({types}); {remedy}", line, offset)
    if match := _UNREADABLE.search(what):
        return Problem(unreadable_letter(match.group(1)), line, offset)
    if what.startswith("Syntax error"):
        brief = what.removeprefix("Syntax error: ").partition(" expecting ")[0]
        hint = "CEL writes && || ! == for and, or, not, equals"
        if match := re.match(r"(\d+),(\d+)", line_text[len(line_text[:offset].rstrip("0123456789")) :]):
            hint = f"a fraction has a point: {match[1]}.{match[2]}"
        return Problem(f"not a condition: {_plainly(brief)}; {hint}", line, offset)
    return Problem(_other_complaint(what), line, offset)


def _other_complaint(what: str) -> str:
    if match := _RESERVED.match(what):
        hint = meant_by(match[1]) or "; it is a word of CEL's own, and can't be a name"
        return f"got `{match[1]}`{hint}"
    if what.startswith("has() argument"):
        return "`has` asks whether a label is there: write has(labels.NAME)"
    return f"{what}; see the list of facts and CEL's operators"


def _plainly(brief: str) -> str:
    """What CEL's parser says, without its own words for it."""
    match = _PARSER.search(brief)
    if match is None:
        return brief
    got = match[1]
    if got == "<EOF>":
        return "it ends where something is missing"
    if got in (")", "]", "}"):
        return f"`{got}` closes what isn't open"
    return f"can't read on at `{shorten(got)[1:-1]}`"


def _index(lines: Sequence[str], line: int, offset: int) -> int:
    """Characters before a place in the whole text."""
    return sum(len(each) + 1 for each in lines[: line - 1]) + offset


def _slip_problem(text: str, slip: Slip) -> Problem:
    return _placed(text, slip.what, slip.start)


def _placed(text: str, what: str, offset: int) -> Problem:
    return Problem(what, text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset) - 1)


def _percentage(line_text: str, offset: int) -> str:
    """What to write in place of a whole number of percents that a share is compared with."""
    match = _PERCENTAGE.match(line_text, offset)
    name = line_text[:offset].rstrip()
    if match is None or not name.endswith(SHARES) or not 1 < int(match[1]) <= 100:
        return ""
    return f"it is a share, from 0 to 1: write {int(match[1]) / 100:g} for {match[1]} %"


def _suggested(name: str) -> str:
    if meant := meant_by(name):
        return meant
    first, _, rest = name.partition(".")
    if rest and suggest(first, ["labels"]):
        return f"; did you mean 'labels.{rest}'?"
    if name.lower() in ("true", "false"):
        return f"; write {name.lower()}"
    text_or_label = (
        "" if rest else f"; a text stands in quotes ('{name}'), a label after its first name (labels.{name})"
    )
    if name.lower() in VISIBLE:
        return f"; did you mean '{name.lower()}'?"
    return suggest(name, [*VISIBLE, "labels"]) or f"{text_or_label}; facts are {', '.join(VISIBLE)}, labels.NAME"


def _remedy(types: str) -> str:
    if {"double", "int"} <= set(types.split(", ")):
        counts = "prompt_length, text_length, attempt and tokens"
        return f"{counts} go with whole numbers (1); all other numbers need a point: write 1.0"
    if types in ("bool, int", "bool, string", "int, bool", "string, bool"):
        return (
            "a comparison, `certified` and `last_tier` are true or false by themselves: write last_tier or !last_tier, "
            "and whole comparisons beside && and ||: tier == 'a' || tier == 'b'"
        )
    if types.startswith("bool, "):
        return "write each comparison by itself: 0.1 < uncertainty && uncertainty < 0.2"
    if "string" in types.split(", ") and {"double", "int"} & set(types.split(", ")):
        return "compare like with like: a number stands without quotes (0.2), text with them ('text')"
    return "compare like with like: numbers with numbers, text with 'text' in quotes"


def language_problems(text: str, condition: Node) -> list[Problem]:
    """Find what a condition uses of CEL that isn't in the policy language."""
    found = []
    if (comment := without_strings(text).find("//")) >= 0:
        found.append(("a comment hides all that follows on its line; write it above the rule, after a `#`", comment))
    for what, node in _objections(condition, frozenset()):
        # CEL points at the parenthesis of a call.
        start = text.rfind(node.text, 0, node.offset) if _is_function(node) else node.offset
        found.append((what, max(start, 0)))
    found += [(slip.what, slip.start) for slip in hyphenated_names(text)]
    return [_placed(text, what, offset) for what, offset in found]


def _objections(node: Node, variables: frozenset[str]) -> Iterator[tuple[str, Node]]:
    """What there is against a part of a condition; `variables` are those of the macros around."""
    if node.kind is Kind.MACRO:
        if node.parts[1].kind is Kind.LIST:
            yield f"`map` and `filter` aren't part of the policy language; ask with {_listed(MACROS)}", node
            return
        yield from _objections_to_macro(node, variables)
        variables = variables | {node.text}
    elif node.kind is Kind.MAPPING and node.text:
        yield f"`{node.text}` isn't part of the policy language; facts are numbers, text, and true or false", node
    elif _is_function(node) and node.text not in FUNCTIONS:
        hint = suggest(node.text, list(FUNCTIONS)) or f"; it has {', '.join(FUNCTIONS)}"
        yield f"`{node.text}` isn't part of the policy language{hint}", node
    elif (label := read_label(node)) is not None and not label.isidentifier():
        meant = re.sub(r"\W", "_", label)
        hint = f"; did you mean labels.{meant}?" if meant.isidentifier() else ""
        yield f"no request has a label {shorten(label)}: its name has letters, digits and _ only{hint}", node
    elif node.type == "null":
        yield "no fact and no label is ever null; ask has(labels.NAME) whether a label is there", node
    elif node.text == "_+_" and variables and not _NUMBERS.issuperset(node.overloads):
        yield f"inside {_listed(MACROS)} only facts and numbers are added; ask with ==, &&, contains", node
    for part in node.parts:
        yield from _objections(part, variables)


def _objections_to_macro(node: Node, variables: frozenset[str]) -> Iterator[tuple[str, Node]]:
    if variables:
        yield f"one of {_listed(MACROS)} can't stand inside another; write its items out, or split the rule", node
    if node.text in _FIRST_NAMES:
        yield f"{node.text!r} is a fact, and can't be a name for the items of a list too; choose another", node


def _is_function(node: Node) -> bool:
    return node.kind is Kind.CALL and node.text[0].isalpha()


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(f'`{name}`' for name in names[:-1])} or `{names[-1]}`"
