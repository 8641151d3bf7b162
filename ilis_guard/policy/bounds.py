"""What of CEL a condition may use, so that deciding takes bounded time and says what it seems to say.

Of CEL's macros only those that ask (`all`, `exists`, `exists_one`) are in the language, one inside no other: each
alone takes as many steps as its list has items, while five inside one another, or a text that doubles in each of 30
`map`, would run until the memory is full. `matches` isn't, because a pattern of 12 characters can take a fifth of a
second to prepare, each time anew.
"""

import re
from collections.abc import Iterator
from typing import Final

from ilis_guard.config.strict_yaml import suggest
from ilis_guard.policy.facts import VISIBLE
from ilis_guard.policy.syntax import Kind, Node

FUNCTIONS: Final = ("size", "startsWith", "endsWith", "contains", "int", "double", "string", "type")
"""Those that conditions may call; beside operators, ``has``, and the macros."""
MACROS: Final = ("all", "exists", "exists_one")
_FIRST_NAMES: Final = {name.partition(".")[0] for name in (*VISIBLE, "labels")}
_NUMBERS: Final = frozenset({"add_int64", "add_uint64", "add_double"})
_STRING: Final = re.compile(
    r"""[bB]?[rR][bB]?(?:'''.*?'''|\"\"\".*?\"\"\"|'[^'\n]*'|"[^"\n]*")"""
    r"""|'''(?:[^\\]|\\.)*?'''|\"\"\"(?:[^\\]|\\.)*?\"\"\"|'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""",
    re.DOTALL,
)


def objections(text: str, condition: Node) -> Iterator[tuple[str, int]]:
    """What a condition uses that isn't in the language, with the place as characters before it."""
    if (comment := _without_strings(text).find("//")) >= 0:
        yield "a comment hides all that follows on its line; write it above the rule, after a `#`", comment
    for what, node in _objections(condition, frozenset()):
        # CEL points at the parenthesis of a call.
        start = text.rfind(node.text, 0, node.offset) if _is_function(node) else node.offset
        yield what, max(start, 0)


def _without_strings(text: str) -> str:
    """A condition's text with blanks in place of the strings in it."""
    return _STRING.sub(lambda match: " " * len(match.group()), text)


def _objections(node: Node, variables: frozenset[str]) -> Iterator[tuple[str, Node]]:
    """What there is against a part of a condition; `variables` are those of the macros around."""
    if node.kind is Kind.MACRO:
        if node.parts[1].kind is Kind.LIST:
            yield f"`map` and `filter` aren't part of the policy language; ask with {_listed(MACROS)}", node
            return
        if variables:
            yield f"one of {_listed(MACROS)} can't stand inside another; write its items out, or split the rule", node
        if node.text in _FIRST_NAMES:
            yield f"{node.text!r} is a fact, and can't be a name for the items of a list too; choose another", node
        variables = variables | {node.text}
    elif node.kind is Kind.MAPPING and node.text:
        yield f"`{node.text}` isn't part of the policy language; facts are numbers, text, and true or false", node
    elif _is_function(node) and node.text not in FUNCTIONS:
        hint = suggest(node.text, list(FUNCTIONS)) or f"; it has {', '.join(FUNCTIONS)}"
        yield f"`{node.text}` isn't part of the policy language{hint}", node
    elif node.type == "null":
        yield "no fact and no label is ever null; ask has(labels.NAME) whether a label is there", node
    elif node.text == "_+_" and variables and not _NUMBERS.issuperset(node.overloads):
        yield f"inside {_listed(MACROS)} only facts and numbers are added; ask with ==, &&, contains", node
    for part in node.parts:
        yield from _objections(part, variables)


def _is_function(node: Node) -> bool:
    return node.kind is Kind.CALL and node.text[0].isalpha()


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(f'`{name}`' for name in names[:-1])} or `{names[-1]}`"
