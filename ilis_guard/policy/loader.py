"""Load policies: a text becomes rules with compiled conditions, or one error with every problem and its place."""

from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

from ilis_guard.config.secrets import secrets_in
from ilis_guard.config.strict_yaml import Document, Keys, list_problems, suggest
from ilis_guard.config.validation import validate
from ilis_guard.errors import PolicyError
from ilis_guard.policy.conditions import Condition
from ilis_guard.policy.diagnostics import ConditionError
from ilis_guard.policy.engine import ALWAYS, BoundRule
from ilis_guard.policy.facts import OF_THE_GUARANTEE, UNKNOWN_AT_PROMPT
from ilis_guard.policy.reachability import ReachabilityAnalysis, UnreachableRule
from ilis_guard.policy.schema import VERSION, PolicyFile, Rule
from ilis_guard.policy.slips import odd_bounds
from ilis_guard.types import Action

SCORE: Final = frozenset({"uncertainty", "typicality", "calibrated", "rank", "certified"})
"""The facts that a scorer finds, and what follows from them."""
_GATES: Final = SCORE - {"calibrated"}
"""Those of which an answer rule looks at one: how sure an answer is, `calibrated` doesn't say."""


def locate(path: str | Path) -> Path:
    """The file of a policy: `path` itself, or the shipped policy of that name (no folder, no suffix).

    Raises:
        PolicyError: no policy of this name is shipped.
    """
    name = str(path)
    if Path(name).name != name or Path(name).suffix:
        return Path(path)
    shipped = {file.stem: file for file in _shipped_folder().glob("*.yaml")}
    if name not in shipped:
        hint = suggest(name, list(shipped))
        raise PolicyError(
            f"no policy named {name!r} is shipped{hint}; shipped are {', '.join(sorted(shipped))}; "
            "the path of a file of your own ends with .yaml"
        )
    return shipped[name]


def bind(document: Document) -> tuple[PolicyFile, tuple[BoundRule, ...]]:
    """Check a policy's text completely and compile its conditions.

    Raises:
        PolicyError: with a line per problem, each with its place.
    """
    _check_secrets(document)
    _check_version(document)
    file = validate(document, PolicyFile, error=PolicyError)
    problems = list(_repeated_ids(document, file.rules))
    rules: list[BoundRule] = []
    for index, rule in enumerate(file.rules):
        problems.extend(_misplaced_keys(document, index, rule))
        try:
            condition = ALWAYS if rule.when is None else Condition.of(rule.when)
        except ConditionError as error:
            problems.extend(_condition_problems(document, index, rule, error))
            continue
        problems.extend(_blind_answer(document, index, rule, condition))
        problems.extend(_too_early(document, index, rule, condition))
        if file.guarantee is None:
            problems.extend(_no_guarantee(document, index, rule, condition))
        rules.append(BoundRule(rule, condition, is_guaranteed=file.guarantee is not None))
    problems.extend(_cold_start(document, file, rules))
    if not problems:  # what can be reached is only clear once all rules are
        problems.extend(_unreachable(document, rules, item) for item in ReachabilityAnalysis(rules).unreachable())
    if problems:
        raise PolicyError(list_problems(problems, len(problems)))
    return file, tuple(rules)


def _shipped_folder() -> Path:
    installed = Path(str(resources.files("ilis_guard"))) / "policies"
    # An editable install runs from the checkout, where the folder stands beside the package.
    return installed if installed.is_dir() else installed.parent.parent / "policies"


def _check_secrets(document: Document) -> None:
    """Before all else: other complaints quote what they complain of."""
    remedy = "a policy needs no secrets, and whoever reads it sees them; take it out, and revoke it"
    if lines := [f"{place}: this looks like {kind}: {remedy}" for place, kind in secrets_in(document)]:
        raise PolicyError(list_problems(lines, len(lines)))


def _check_version(document: Document) -> None:
    """Before the shape: all else that would be said of another version's file is noise."""
    version: Any = document.data.get("version", VERSION)
    if version != VERSION or isinstance(version, bool):
        raise PolicyError(
            f"{document.place(('version',))}: this ilis_guard reads version {VERSION} of the policy language, got "
            f"{version!r}; write `version: {VERSION}`, or install the release that reads this file"
        )


def _repeated_ids(document: Document, rules: tuple[Rule, ...]) -> Iterator[str]:
    first: dict[str, int] = {}
    for index, rule in enumerate(rules):
        if rule.id in first:
            there = document.place(("rules", first[rule.id], "id"))
            place = document.place(("rules", index, "id"))
            yield f"{place}: duplicate rule id {rule.id!r}, which already stands at {there}; give each rule its own"
        first.setdefault(rule.id, index)


def _misplaced_keys(document: Document, index: int, rule: Rule) -> Iterator[str]:
    """Keys that mean nothing for the rule's action, and so hint at a misunderstanding."""
    unheard = "the caller gets the answer itself" if rule.do is Action.ANSWER else "the caller hears nothing of a retry"
    for key, allowed, why in (
        ("to", (Action.RETRY, Action.ESCALATE), "only retry (a tier) and escalate (a queue) go somewhere"),
        ("say", (Action.ABSTAIN, Action.ESCALATE), unheard),
        ("due", (Action.ESCALATE,), "only a ticket can be overdue, and only escalate makes one"),
    ):
        if getattr(rule, key) is not None and rule.do not in allowed:
            what = f"`{key}` is not allowed with `do: {rule.do.value}`: {why}; take it out"
            yield _complaint(document, (index, key), rule, what)


def _blind_answer(document: Document, index: int, rule: Rule, condition: Condition) -> Iterator[str]:
    """An answer rule without the score would switch the guard off."""
    if rule.do is Action.ANSWER and rule.stage == "answer" and not _GATES & set(condition.names):
        text = "an answer rule must look at the score; add a condition such as `when: uncertainty < 0.2`"
        yield _complaint(document, (index, "do" if rule.when is None else "when"), rule, text)


def _too_early(document: Document, index: int, rule: Rule, condition: Condition) -> Iterator[str]:
    """Actions and facts that a rule of stage `prompt` can't have: nothing was generated yet."""
    if rule.stage != "prompt":
        return
    if rule.do is Action.ANSWER:
        text = "there is no answer yet at stage `prompt`; leave `stage` out, and the rule is asked once there is one"
        yield _complaint(document, (index, "do"), rule, text)
    for name in sorted(UNKNOWN_AT_PROMPT & set(condition.names)):
        text = f"`{name}` isn't known at stage `prompt`: the model answers, or fails, after it; use it in another rule"
        yield _complaint(document, (index, "when"), rule, text)


def _no_guarantee(document: Document, index: int, rule: Rule, condition: Condition) -> Iterator[str]:
    """Facts of a guarantee in a policy that gives none."""
    for name in sorted(OF_THE_GUARANTEE & set(condition.names)):
        text = f"`{name}` needs a guarantee, and the policy gives none; add one, `guarantee: {{max_error: 0.05}}` say"
        yield _complaint(document, (index, "when"), rule, text)


def _cold_start(document: Document, file: PolicyFile, rules: Sequence[BoundRule]) -> Iterator[str]:
    """Answers that are given before they can be ranked, where no guarantee or rule allows them afterwards."""
    if file.cold_start is None:
        return
    place = document.key_place(("cold_start",))
    if file.guarantee is not None:
        yield f"{place}: `cold_start` gives answers unguarded, which no guarantee can cover: take one of them out"
    if len(rules) == len(file.rules) and not any(
        bound.rule.do is Action.ANSWER and "rank" in bound.condition.names for bound in rules
    ):
        yield (
            f"{place}: `cold_start` lasts until answers have a rank, and no answer rule looks at it; give one the "
            "condition `rank < 0.6` say"
        )


def _condition_problems(document: Document, index: int, rule: Rule, error: ConditionError) -> Iterator[str]:
    keys = ("rules", index, "when")
    for problem in error.problems:
        place = document.place_inside(keys, problem.offset)
        inside = f" (line {problem.line}, column {problem.offset + 1} of the condition)" if place is None else ""
        yield f"{place or document.place(keys)}: rule '{rule.id}': {problem.what}{inside}"


def _unreachable(document: Document, bound: Sequence[BoundRule], item: UnreachableRule) -> str:
    rules = [each.rule for each in bound]
    index = next(index for index, rule in enumerate(rules) if rule.id == item.rule)
    odd = [] if item.shadowed_by else list(odd_bounds(bound[index].condition.tree))
    if odd:
        what, offset = odd[0]
        place = document.place_in_text(("rules", index, "when"), offset)
        return f"{place}: rule '{item.rule}': can never act: {what}"
    if item.shadowed_by:
        names = ", ".join(f"'{name}'" for name in item.shadowed_by)
        before = (
            "decided before" if rules[index].do is not Action.ANSWER else "decided before, or kept it from answering"
        )
        what = f"can never be reached: wherever it holds, {names} {before}; move it up, or change a condition"
    else:
        what = (
            "can never act: no facts make its condition true and its action possible (an answer needs a score and no "
            "error, a retry a larger tier); change the condition, or delete the rule"
        )
    return _complaint(document, (index, "id"), rules[index], what)


def _complaint(document: Document, keys: Keys, rule: Rule, what: str) -> str:
    return f"{document.place(('rules', *keys))}: rule '{rule.id}': {what}"
