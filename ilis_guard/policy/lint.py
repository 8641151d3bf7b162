"""Notices: what a policy may do, alone or with a guard.yaml, that nobody may mean. It can be loaded all the same."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from ilis_guard.config.guard_yaml import GuardConfig
from ilis_guard.config.review import EXPIRE
from ilis_guard.config.strict_yaml import Document, Keys, suggest
from ilis_guard.policy.conditions import Situation
from ilis_guard.policy.engine import DEFAULT_QUEUE, BoundRule, Engine
from ilis_guard.policy.facts import VISIBLE, Facts, fact_values
from ilis_guard.policy.reachability import ClassMatches, ReachabilityAnalysis
from ilis_guard.policy.schema import PolicyFile
from ilis_guard.policy.slips import odd_bounds, turned_round
from ilis_guard.policy.syntax import compared_facts, literals, tested_labels
from ilis_guard.types import Action, Statistics

_OF_THE_SCORE: Final = ("uncertainty", "typicality", "rank", "threshold", "certified")
_PLACEHOLDER: Final = re.compile(r"\$\{\w+\}")
_ANY_TIER: Final = " "
"""No tier has this name, see schema.Name."""

_WORST: Final = Facts(
    uncertainty=1.0,
    typicality=0.0,
    rank=1.0,
    tier=_ANY_TIER,
    tokens=100,
    seconds=1.0,
    prompt_length=100,
    text_length=400,
    finish_reason="stop",
    statistics=Statistics(logprob_sum=-1000.0, logprob_mean=-10.0, entropy_mean=10.0, margin_min=0.0),
)
"""An everyday answer that is as uncertain as can be."""
_UNKNOWN_AT_THE_BEST: Final = frozenset({*VISIBLE, "labels"} - {"uncertainty", "typicality", "last_tier"})
_HALF: Final = 0.5
_BARELY_SURE: Final = math.nextafter(1.0, 0.0)
_SAMPLING_KEYS: Final = tuple(map(str, range(20)))
"""Enough of them that few samples hold all."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a policy's author should know."""

    level: Literal["warning", "note"]
    """A note tells of what is surely meant, and mustn't be forgotten."""
    place: str
    """``file:line:column``."""
    what: str
    """What is found, and what to do."""


def notices(file: PolicyFile, engine: Engine, document: Document) -> tuple[Notice, ...]:
    """Notices on a policy by itself, whatever guard it is for."""
    analysis = ReachabilityAnalysis(engine.rules)
    return (
        *_shadow(file, document),
        *_cold_start(file, document),
        *_never_answers(file, document),
        *_odd_bounds(engine.rules, document),
        *_odd_guarantee(file, document),
        *(
            tuple(_answers_whatever_the_score(file, analysis, document))
            or tuple(_turned_round(engine.rules, document))
            or tuple(_keeps_the_best(engine.rules, document))
            or _answers_at_the_worst(file, engine, document)
        ),
        *(tuple(_uncertified(file, analysis, document)) or _without_catch_all(analysis, document)),
        *_never_asks_calibrated(file, engine.rules, document),
        *_retries_without_attempts(file, document),
        *_untested_labels(engine.rules, document),
        *_placeholders(file, document),
    )


def _shadow(file: PolicyFile, document: Document) -> Iterator[Notice]:
    if file.mode == "shadow":
        what = (
            "SHADOW MODE: this policy gates nothing. What it says is recorded, and callers get what they'd get without "
            "it. To let it decide, take `mode` out"
        )
        yield Notice("note", document.place(("mode",)), what)


def _cold_start(file: PolicyFile, document: Document) -> Iterator[Notice]:
    if file.cold_start is not None and file.mode == "enforce":
        what = (
            "COLD START: until the answers of a tier without a bundle can be ranked, this policy gives them UNGUARDED, "
            f"except for a share of {file.cold_start.enforced:g}. To answer nothing until then, take `cold_start` out"
        )
        yield Notice("note", document.key_place(("cold_start",)), what)


def _never_answers(file: PolicyFile, document: Document) -> Iterator[Notice]:
    # A file with an answer rule that can't be reached isn't loaded.
    if all(rule.do is not Action.ANSWER for rule in file.rules):
        what = "this policy never answers: no rule says `do: answer`; add one, unless that is meant"
        yield Notice("warning", document.key_place(("rules",)), what)


def _odd_bounds(rules: Sequence[BoundRule], document: Document) -> Iterator[Notice]:
    for index, bound in enumerate(rules):
        for what, offset in odd_bounds(bound.condition.tree):
            place = document.place_in_text(("rules", index, "when"), offset)
            yield Notice("warning", place, f"rule '{bound.rule.id}': {what}")


def _odd_guarantee(file: PolicyFile, document: Document) -> Iterator[Notice]:
    """Shares that were likely meant the other way round."""
    if file.guarantee is None:
        return
    max_error, confidence = file.guarantee.max_error, file.guarantee.confidence
    odd = {"max_error": max_error} if max_error is not None and max_error > _HALF else {}
    odd |= {"confidence": confidence} if confidence < _HALF else {}
    for name, value in odd.items():
        what = f"`{name}: {value:g}` promises next to nothing; did you mean {1 - value:.4g}?"
        yield Notice("warning", document.place(("guarantee", name)), what)


def _turned_round(rules: Sequence[BoundRule], document: Document) -> Iterator[Notice]:
    """Answer rules that may hold where an answer is as uncertain as can be, and never where it is sure."""
    for index, bound in enumerate(rules):
        if bound.rule.do is not Action.ANSWER:
            continue
        for name, good, bad in (("uncertainty", 0.0, 1.0), ("rank", 0.0, 1.0), ("typicality", 1.0, 0.0)):
            if _may_hold(bound, name, bad) and not _may_hold(bound, name, good):
                meant = turned_round(bound.condition.tree) or "turn its comparison round"
                what = f"may answer where the {name} is {bad}, and never where it is {good}: {meant}"
                yield Notice("warning", document.place(("rules", index, "when")), f"rule '{bound.rule.id}': {what}")
                break


def _keeps_the_best(rules: Sequence[BoundRule], document: Document) -> Iterator[Notice]:
    """The first rule that surely acts where an answer is as sure and as typical as can be, before one that answers."""
    best = Situation(Facts(uncertainty=0.0, typicality=1.0, last_tier=False), unknown=_UNKNOWN_AT_THE_BEST)
    worst = Situation(Facts(uncertainty=1.0, typicality=0.0, last_tier=False), unknown=_UNKNOWN_AT_THE_BEST)
    by_stage = sorted(enumerate(rules), key=lambda each: each[1].rule.stage != "prompt")
    for place, (index, bound) in enumerate(by_stage):
        if bound.rule.do is Action.ANSWER:
            if bound.condition.might_hold(best):
                return
            continue
        is_sure = bound.rule.sample is None and bound.condition.known_value(best) is True
        answers_after = any(later.rule.do is Action.ANSWER for _, later in by_stage[place + 1 :])
        if is_sure and answers_after and not bound.condition.might_hold(worst):
            meant = turned_round(bound.condition.tree, answers=False) or "turn its comparison round"
            what = (
                f"rule '{bound.rule.id}': keeps back what is surest and most typical (uncertainty 0.0, typicality "
                f"1.0), and lets what is least so through: {meant}"
            )
            yield Notice("warning", document.place(("rules", index, "when")), what)
            return


def _may_hold(bound: BoundRule, name: str, value: float) -> bool:
    """Whether a condition may be true where a number of the score has this value, whatever all other facts are."""
    score: dict[str, Any] = {"uncertainty": 0.5, "typicality": 0.5, "rank": 0.5, name: value}
    facts = Facts(**score)
    unknown = frozenset({*VISIBLE, "labels"} - {name})
    return bound.condition.might_hold(Situation(facts, unknown=unknown))


def _answers_whatever_the_score(
    file: PolicyFile, analysis: ReachabilityAnalysis, document: Document
) -> Iterator[Notice]:
    """A condition may name the score, and let every score pass."""
    names = [name for name in analysis.distinguishing_facts("answer") if name not in (*_OF_THE_SCORE, "error")]
    answering: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for one in analysis.classes("answer", {"error": ""}):
        values = fact_values(one.facts)
        if all(values[name] == values[name] for name in analysis.distinguishing_facts("answer")):  # no NaN
            answering[tuple(values[name] for name in names)].add(_certain_answer(one))
    ungated = {rest: rules for rest, rules in answering.items() if "" not in rules}
    if not ungated:
        return
    where = _in_words(names, list(answering), list(ungated))
    # The last one takes all that the others leave.
    by = max(index for index, rule in enumerate(file.rules) if rule.id in next(iter(ungated.values())))
    what = f"wherever there is a score{where}, the answer is given, whatever the score says: compare `uncertainty`"
    yield Notice("warning", document.place(("rules", by, "when")), f"rule '{file.rules[by].id}': {what}")


def _answers_at_the_worst(file: PolicyFile, engine: Engine, document: Document) -> Iterator[Notice]:
    """Rules that aren't plain can't be analysed for all scores: they are evaluated on the worst one."""
    # What a guarantee doesn't cover is no answer, whatever the rules say.
    if file.guarantee is not None:
        return
    probes = itertools.product((1.0, _BARELY_SURE), (0.0, 1.0), _SAMPLING_KEYS, (True, False))
    for uncertainty, typicality, sampling_key, last_tier in probes:
        early = engine.evaluate_prompt(
            replace(_WORST, uncertainty=0.0, typicality=1.0, sampling_key=sampling_key, last_tier=last_tier)
        )
        facts = replace(
            _WORST,
            uncertainty=uncertainty,
            typicality=typicality,
            sampling_key=sampling_key,
            last_tier=last_tier,
            answer_blocked_by=early.answer_blocked_by,
        )
        ruling = engine.evaluate(facts)
        if early.ruling is None and ruling.action is Action.ANSWER:
            by = next(index for index, rule in enumerate(file.rules) if rule.id == ruling.rule)
            what = (
                f"answers even where the uncertainty is {uncertainty:.1f}, the typicality is {typicality} and there "
                "are no labels: compare the uncertainty, as in `uncertainty < 0.2`"
            )
            yield Notice("warning", document.place(("rules", by, "when")), f"rule '{ruling.rule}': {what}")
            return


def _certain_answer(one: ClassMatches) -> str:
    """The rule that answers on a class's facts; empty where another action is possible."""
    for match in one.matches:
        if match.preempted_by or match.bound.rule.do is not Action.ANSWER:
            return ""
        if match.is_certain:
            return match.bound.rule.id
    return ""


def _in_words(names: Sequence[str], everywhere: Sequence[tuple[Any, ...]], found: Sequence[tuple[Any, ...]]) -> str:
    """`` and last_tier true``: the first of the facts that were found, without those that make no difference."""
    words = []
    for index, name in enumerate(names):
        without = {(*rest[:index], *rest[index + 1 :]) for rest in found}
        if len(without) * len({rest[index] for rest in everywhere}) > len(found):
            words.append(f" and {name} is {_named(found[0][index])}")
    return "".join(words)


def _named(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # What stands for all texts that no condition names is made of spaces.
    return "any other" if isinstance(value, str) and value.isspace() else repr(value)


def _uncertified(file: PolicyFile, analysis: ReachabilityAnalysis, document: Document) -> Iterator[Notice]:
    if file.guarantee is not None and (where := analysis.undecided_where_uncertified(_ANY_TIER)):
        what = (
            f"no rule surely decides where nothing is certified and, for instance, {where}: a guard with a tier that "
            "can't be certified won't start. End with a rule that always holds, `do: abstain` say"
        )
        yield Notice("warning", document.place(("guarantee",)), what)


def _without_catch_all(analysis: ReachabilityAnalysis, document: Document) -> Iterator[Notice]:
    """No answer is given there: that fails closed, and callers may wonder."""
    where = analysis.undecided({"error": ""}) or (analysis.undecided({}) and "the model failed")
    if where:
        what = (
            f"no rule surely decides where, for instance, {where}: there the guard abstains, and says nothing. End "
            "with a rule without `when`: `do: abstain` with a `say`, or `do: escalate`"
        )
        yield Notice("note", document.key_place(("rules",)), what)


def _never_asks_calibrated(file: PolicyFile, rules: Sequence[BoundRule], document: Document) -> Iterator[Notice]:
    """Rules that read every uncertainty as a probability; where it isn't one, it only ranks."""
    if any("calibrated" in bound.condition.names for bound in rules):
        return
    for index, bound in enumerate(rules):
        compared = next((one for one in compared_facts(bound.condition.tree) if one.fact == "uncertainty"), None)
        if compared is None:
            continue
        effect = (
            "this rule decides by it all the same, though it only ranks there: ask `calibrated && ...`, and say in a "
            "rule of its own what is done without"
            if file.guarantee is None
            else "this rule decides by it all the same; the guarantee lets no such answer through"
        )
        what = (
            f"rule '{bound.rule.id}': the uncertainty is a probability only where it is calibrated, not after a system "
            f"message, an earlier turn or a wording that its bundle hasn't seen; {effect}"
        )
        yield Notice("note", document.place_in_text(("rules", index, "when"), compared.offset), what)
        return


def _retries_without_attempts(file: PolicyFile, document: Document) -> Iterator[Notice]:
    if file.budget is None or file.budget.max_attempts != 1:
        return
    for index, rule in enumerate(file.rules):
        if rule.do is Action.RETRY:
            what = f"rule '{rule.id}': never retries, because the budget allows one attempt; take one of them out"
            yield Notice("warning", document.place(("rules", index, "do")), what)


def _untested_labels(rules: Sequence[BoundRule], document: Document) -> Iterator[Notice]:
    """Labels are the caller's, who may leave them out: a condition on one that isn't there fails."""
    tested: frozenset[str] = frozenset()
    for index, bound in enumerate(rules):
        tested |= tested_labels(bound.condition.tree)
        for name in bound.condition.names:
            if not name.startswith("labels.") or name in tested or bound.rule.do is Action.ANSWER:
                continue
            what = (
                f"rule '{bound.rule.id}': where a request has no {name}, the condition fails, and nothing is answered "
                f"after it. Write `has({name}) && ...`, or say in a rule above what is done without it"
            )
            yield Notice("warning", document.place(("rules", index, "when")), what)


def _placeholders(file: PolicyFile, document: Document) -> Iterator[Notice]:
    for keys, text in _texts(file):
        if match := _PLACEHOLDER.search(text):
            what = (
                f"{match.group()!r} stays as it is: a policy knows no environment, and needs no secrets; write it out"
            )
            yield Notice("warning", document.place(keys), what)


def _texts(file: PolicyFile) -> Iterator[tuple[Keys, str]]:
    yield ("name",), file.name
    yield ("description",), file.description or ""
    yield ("audit", "queue"), "" if file.audit is None else file.audit.queue
    for index, rule in enumerate(file.rules):
        for key in ("when", "to", "say"):
            yield ("rules", index, key), getattr(rule, key) or ""


def config_notices(
    file: PolicyFile, rules: Sequence[BoundRule], document: Document, config: GuardConfig
) -> tuple[Notice, ...]:
    """Notices on a policy and a guard.yaml that go with one another; see `binding.check_config`."""
    return (
        *_tiers(file, rules, document, [tier.name for tier in config.tiers]),
        *_passed_on(file, document, config),
        *_unknown_queues(file, document, config),
        *_silent_queues(file, document, config),
    )


def _tiers(file: PolicyFile, rules: Sequence[BoundRule], document: Document, tiers: Sequence[str]) -> Iterator[Notice]:
    named = {bound.rule.id: literals(bound.condition.tree).get("tier") or () for bound in rules}
    for index, rule in enumerate(file.rules):
        if rule.do is Action.RETRY and len(tiers) == 1:
            what = f"never retries: this guard has one tier, {tiers[0]!r}, so the rule is always passed over"
            yield Notice("warning", document.place(("rules", index, "do")), f"rule '{rule.id}': {what}")
        elif rule.do is Action.RETRY and rule.to == tiers[0]:
            what = f"never retries: {rule.to!r} is the smallest tier, and a retry goes to a larger one"
            yield Notice("warning", document.place(("rules", index, "to")), f"rule '{rule.id}': {what}")
        for name in sorted(map(str, named[rule.id])):
            if name not in tiers:
                what = f"there is no tier {name!r}{suggest(name, list(tiers)) or f'; there are {list(tiers)!r}'}"
                yield Notice("warning", document.place(("rules", index, "when")), f"rule '{rule.id}': {what}")


def _passed_on(file: PolicyFile, document: Document, config: GuardConfig) -> Iterator[Notice]:
    """Tiers whose guarantee rests on rows of all requests, where they see only what smaller ones didn't answer."""
    targets = [rule.to for rule in file.rules if rule.do is Action.RETRY]
    later = [
        tier.name
        for tier in config.tiers[1:]
        if tier.bundle is not None and any(to is None or to == tier.name for to in targets)
    ]
    if file.guarantee is not None and later:
        what = (
            f"the tiers {later!r} see only what rules pass on to them, mostly harder requests, and are certified on "
            "their bundles' calibration rows: there the guarantee holds only if these rows are such requests too, not "
            "all (docs/risk-control.md)"
        )
        yield Notice("note", document.place(("guarantee",)), what)


def _unknown_queues(file: PolicyFile, document: Document, config: GuardConfig) -> Iterator[Notice]:
    """Queues that guard.yaml doesn't know, where it knows others: a misspelt one waits where nobody looks.

    The default queue is always there: nobody has to write it down.
    """
    review = config.review
    if review is None:
        return
    known = {queue.name for queue in review.queues} | {queue.overdue for queue in review.queues if queue.due}
    known |= {queue for endpoint in review.endpoints for queue in endpoint.queues or ()}
    known -= {EXPIRE}
    for queue, place in _queue_places(file, document).items():
        if known and queue not in {*known, DEFAULT_QUEUE}:
            hint = suggest(queue, sorted(known)) or f"; it has {sorted(known)!r}. Add it, or take one of these"
            what = f"guard.yaml has no queue {queue!r}{hint}"
            yield Notice("warning", place, what)


def _queue_places(file: PolicyFile, document: Document) -> dict[str, str]:
    """By queue that a policy sends tickets to: where it says so first."""
    places = {} if file.audit is None else {file.audit.queue: document.place(("audit", "queue"))}
    for index, rule in enumerate(file.rules):
        if rule.do is Action.ESCALATE:
            key = "do" if rule.to is None else "to"
            places.setdefault(rule.to or DEFAULT_QUEUE, document.place(("rules", index, key)))
    return places


def _silent_queues(file: PolicyFile, document: Document, config: GuardConfig) -> Iterator[Notice]:
    """Queues whose tickets no endpoint receives."""
    review = config.review
    if review is None or review.page is not None:
        return
    for queue, place in _queue_places(file, document).items():
        if not any(endpoint.receives("ticket.created", [queue]) for endpoint in review.endpoints):
            what = (
                f"nobody is told of tickets in the queue {queue!r}: guard.yaml has no endpoint that hears of them, and "
                "no page where people look; add one, or look with `ilis-guard queue list`"
            )
            yield Notice("warning", place, what)
