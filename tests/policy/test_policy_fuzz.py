"""Hostile files and facts: a policy loads or is refused with its place, and evaluates to exactly one action.

A run takes the same examples each time. ``make fuzz`` looks for new ones, many more, for some minutes;
``make fuzz FUZZ=100000`` for hours.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import example, given, strategies as st

from ilis_guard.config.guard_yaml import read_config
from ilis_guard.config.strict_yaml import MAX_BYTES, MAX_PROBLEMS
from ilis_guard.errors import ConfigError, PolicyError
from ilis_guard.policy import Facts, Policy
from ilis_guard.policy.conditions import MAX_LENGTH, Condition, ConditionBatch, Conditions, Situation
from ilis_guard.policy.diagnostics import ConditionError
from ilis_guard.policy.parts import Part
from ilis_guard.types import STAGES, Action
from ilis_guard.types.requests import label_problem
from tests.explained import blocked, why
from tests.policy.strategies import (
    CONDITIONS,
    FACTS,
    NEAR_KEYS,
    NEAR_POLICIES,
    NEAR_VALUES,
    SHIPPED,
    TOKENS,
    is_condition,
    mutants,
    policies,
)

GUARD = """\
version: 1
policy: default
tiers:
  - {name: small, model: packaged:smollm2-135m-instruct, precision: nf4, bundle: bundles/small, max_new_tokens: 32}
  - name: remote
    remote: {chat_model: "package.module:Class", arguments: {temperature: 0.5, nothing: null}}
review:
  storage: sqlite:///tickets.db
  queues:
    - {name: legal, priority: 3, due: 3600, overdue: default, lease: 60}
  endpoints:
    - {name: chat, url: "https://chat.example.org/hook", secret: "${SECRET}", queues: [legal]}
  page:
    url: https://review.example.org
    reviewers: [{name: Ada, token: "${TOKEN}"}]
"""


# --- files -----------------------------------------------------------------------------------------------------------


def read_or_refused(text: str | bytes) -> Policy | None:
    """A policy, or None where it was refused as it should be; read from a file where the text is bytes."""
    try:
        if isinstance(text, str):
            return Policy.parse(text, path="p.yaml")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "p.yaml"
            path.write_bytes(text)
            return Policy.load(path)
    except PolicyError as error:
        refused_well(str(error))
        return None


def refused_well(message: str) -> None:
    lines = message.split("\n")
    assert len(lines) <= MAX_PROBLEMS + 1
    if re.fullmatch(r"and [0-9]+ more problems like these", lines[-1]):
        lines.pop()
    for line in lines:
        assert re.match(r"(?:/.*/)?[pg]\.yaml:[1-9][0-9]*:[1-9][0-9]*: .", line), line
        assert len(line) < 3_000
        assert line.isprintable() or not line.isascii()


@given(mutants(SHIPPED))
def test_mutants_of_policies_are_read_or_refused_at_a_place(text: str) -> None:
    read_or_refused(text)


@given(
    st.one_of(mutants(SHIPPED).map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=60)),
    st.data(),
)
@example(b"\xff\xfev\x00", None)
@example(b"version: 1\nname: \xc3\x28\n", None)
@example(b"#" * (MAX_BYTES + 1), None)
def test_bytes_are_read_or_refused_with_their_place(raw: bytes, data: st.DataObject | None) -> None:
    if data is not None and raw:
        at = data.draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + bytes([data.draw(st.integers(0, 255))]) + raw[at + 1 :]
    read_or_refused(raw)


@given(NEAR_POLICIES)
def test_near_policies_are_read_or_refused_at_a_place(text: str) -> None:
    read_or_refused(text)


@given(mutants(SHIPPED), st.sampled_from(["\r\n", "\r"]))
def test_line_ends_change_neither_meaning_nor_places(text: str, end: str) -> None:
    text = text.replace("\r", "\n")

    def outcome(written: str) -> str:
        try:
            return Policy.parse(written, path="p.yaml").fingerprint
        except PolicyError as error:
            return str(error)

    assert outcome(text.replace("\n", end)) == outcome(text)
    assert outcome("\ufeff" + text) == outcome(text) or text.startswith("\ufeff")


@given(st.one_of(mutants({"g": GUARD}), st.dictionaries(NEAR_KEYS, NEAR_VALUES).map(json.dumps)))
def test_mutants_of_a_guard_yaml_are_read_or_refused_at_a_place(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            read_config(path)
        except ConfigError as error:
            refused_well(str(error))


# --- conditions ------------------------------------------------------------------------------------------------------


@given(st.one_of(CONDITIONS, st.lists(st.one_of(st.sampled_from(TOKENS), CONDITIONS), max_size=4).map(" ".join)))
@example("uncertainty < 0.2 \\ud800")
def test_a_text_is_a_condition_or_refused_at_a_place(text: str) -> None:
    try:
        Condition.of(text)
    except ConditionError as error:
        lines = text.split("\n")
        for problem in error.problems:
            assert 1 <= problem.line <= len(lines)
            assert 0 <= problem.offset <= len(lines[problem.line - 1]) or len(text) > MAX_LENGTH


@given(st.lists(CONDITIONS.filter(is_condition), min_size=1, max_size=5), FACTS)
def test_conditions_say_the_same_alone_and_together(texts: list[str], facts: Facts) -> None:
    each = [Condition.of(text) for text in texts]
    alone = [condition.check(Situation(facts)) for condition in each]
    assert [*Conditions(each).check(Situation(facts))] == alone
    assert all(outcome is True or outcome is False or (isinstance(outcome, str) and outcome) for outcome in alone)


@given(CONDITIONS.filter(is_condition), FACTS)
@example("last_tier ? typicality < 0.05 : false", Facts(last_tier=False))
@example("!(typicality < 0.05 && !(uncertainty > typicality))", Facts(uncertainty=0.1))
def test_a_condition_that_might_hold_is_never_called_impossible(text: str, facts: Facts) -> None:
    for condition in (Condition.of(text), Condition.of(f"!({text})")):
        situation = Situation(facts)
        (possible,) = ConditionBatch([Part.of(condition).may_be(True)]).evaluate(situation.activation) or [True]
        assert possible or not condition.might_hold(situation)


# --- decisions -------------------------------------------------------------------------------------------------------

SURE: dict[str, Any] = {"uncertainty": 0.1, "typicality": 0.5, "threshold": 0.2}


@given(policies(), st.lists(FACTS, min_size=1, max_size=5))
def test_any_policy_gives_any_facts_exactly_one_action(text: str, many: list[Facts]) -> None:
    policy = read_or_refused(text)
    if policy is None:
        return
    for facts in [*many, Facts(**SURE), Facts(**SURE, error="x"), Facts()]:
        decided_well(policy, facts)
        stopped_well(policy, facts)


@given(policies(), st.lists(FACTS, min_size=1, max_size=5), st.floats(0, 1))
def test_the_batch_of_undetermined_rules_changes_no_ruling(text: str, many: list[Facts], uncertainty: float) -> None:
    policy, slow = read_or_refused(text), read_or_refused(text)
    if policy is None or slow is None:
        return
    for stage in STAGES:
        slow._engine._undetermined[stage] = ConditionBatch(["true"] * len(slow._engine.at(stage)))
    for facts in [*many, Facts(uncertainty=uncertainty), Facts(uncertainty=uncertainty, last_tier=False)]:
        assert policy.evaluate(facts) == slow.evaluate(facts)
        assert policy.evaluate_prompt(facts) == slow.evaluate_prompt(facts)


def decided_well(policy: Policy, facts: Facts) -> None:
    ruling = policy.evaluate(facts)
    assert repr(ruling) == repr(policy.evaluate(facts))
    assert isinstance(ruling.action, Action)
    rule = {rule.id: rule for rule in policy.rules}.get(ruling.rule or "")
    if rule is None:
        assert (ruling.action, ruling.rule, ruling.to, ruling.say, ruling.due) == (Action.ABSTAIN, None, None, "", None)
        assert why(ruling)[-1] == "no rule held: abstained"
    else:
        assert (ruling.action, ruling.say, rule.stage) == (rule.do, rule.say or "", "answer")
        assert ruling.due == rule.due_seconds
    if ruling.action is Action.ANSWER:
        assert facts.error == ""
        assert facts.uncertainty is not None
        assert 0.0 <= facts.uncertainty <= 1.0
        assert facts.answer_blocked_by is None
        assert label_problem(facts.labels) == ""
        assert policy.guarantee is None or facts.certified
    if ruling.action is Action.RETRY:
        assert not facts.last_tier
        assert ruling.to is None or ruling.to != facts.tier
    assert isinstance(policy.audits(facts.sampling_key), bool)


def stopped_well(policy: Policy, facts: Facts) -> None:
    said = policy.evaluate_prompt(facts)
    assert repr(said) == repr(policy.evaluate_prompt(facts))
    if said.ruling is not None:
        assert said.ruling.action is not Action.ANSWER
        assert said.ruling.rule in {rule.id for rule in policy.rules if rule.stage == "prompt"}
    if blocked(facts.answer_blocked_by) or label_problem(facts.labels):
        assert blocked(said.answer_blocked_by)
