"""Policy keys beside the rules, facts of a guarantee, due times and samples."""

import hashlib
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from ilis_guard.config.review import LONGEST
from ilis_guard.errors import PolicyError
from ilis_guard.policy import Audit, Budget, Facts, Guarantee, Policy
from ilis_guard.policy.facts import AUDIT_SALT, VISIBLE, fact_values, is_sampled
from ilis_guard.policy.schema import LONGEST_DUE, seconds
from ilis_guard.types import Action, Obstacle

RULES = "rules:\n  - {id: sure, when: uncertainty < 0.5, do: answer}\n  - {id: last, do: abstain}\n"
SURE = Facts(uncertainty=0.1, typicality=0.5, threshold=0.2)
SAMPLING_KEYS = [f"{number:032x}" for number in range(1_000)]


def policy(keys: str = "", rules: str = RULES) -> Policy:
    return Policy.parse(f"version: 1\nname: p\n{keys}\n{rules}")


def test_a_plain_policy_enforces_promises_nothing_and_limits_nothing() -> None:
    plain = policy()
    assert (plain.mode, plain.guarantee, plain.budget, plain.audit) == ("enforce", None, None, None)


def test_every_key_beside_the_rules_is_read() -> None:
    full = policy(
        "mode: shadow\nguarantee: {max_error: 0.05, confidence: 0.9}\n"
        "budget: {max_seconds: 10, max_attempts: 2, max_cost: 0.02}\naudit: {fraction: 0.02, queue: audits}\n"
    )
    assert full.mode == "shadow"
    assert full.guarantee == Guarantee(max_error=0.05, confidence=0.9)
    assert full.budget == Budget(max_seconds=10.0, max_attempts=2, max_cost=0.02)
    assert full.audit == Audit(fraction=0.02, queue="audits")
    assert full.queues == {"audits"}


@pytest.mark.parametrize(
    "kind",
    [{"max_error": 0.05}, {"min_coverage": 1.0}, {"max_reviews_per_hour": 20.0, "requests_per_hour": 400.0}],
)
def test_a_guarantee_is_of_one_kind_at_95_percent_by_default(kind: dict[str, Any]) -> None:
    text = ", ".join(f"{key}: {value}" for key, value in kind.items())
    assert policy(f"guarantee: {{{text}}}").guarantee == Guarantee(**kind, confidence=0.95)


# What today's files are called in decisions, tickets and logs, and so must be called in every release.
@pytest.mark.parametrize(
    ("text", "fingerprint"),
    [
        (
            "version: 1\nname: p\nrules:\n  - {id: a, when: uncertainty < 0.2, do: answer}\n"
            "  - {id: b, stage: prompt, when: tokens < 3, do: escalate, to: q, say: S}\n",
            "6597836547485949",
        ),
        ("version: 1\nname: p\nrules:\n  - {id: a, do: abstain}\n", "d3b9491c985f58c9"),
    ],
)
def test_later_keys_leave_the_fingerprints_of_older_files(text: str, fingerprint: str) -> None:
    assert Policy.parse(text).fingerprint == fingerprint


@pytest.mark.parametrize(
    "keys",
    ["mode: shadow", "budget: {max_attempts: 2}", "audit: {fraction: 0.1, queue: a}", "guarantee: {max_error: 0.1}"],
)
def test_every_key_counts_for_the_fingerprint(keys: str) -> None:
    assert policy(keys).fingerprint != policy().fingerprint


@pytest.mark.parametrize(
    ("facts", "certified"),
    [
        (SURE, True),
        (replace(SURE, uncertainty=0.2), True),
        (replace(SURE, uncertainty=math.nextafter(0.2, 1.0)), False),
        (replace(SURE, threshold=None), False),
        (replace(SURE, threshold=math.nan), False),
        (replace(SURE, uncertainty=None), False),
        (replace(SURE, uncertainty=math.nan), False),
        (replace(SURE, uncertainty=-0.1), False),
        (replace(SURE, error="time-out"), False),
    ],
)
def test_certified_is_a_score_without_an_error_up_to_a_known_threshold(facts: Facts, certified: bool) -> None:
    assert facts.certified is certified
    assert fact_values(facts)["certified"] is certified


def test_conditions_see_every_fact_that_has_a_name_and_none_that_has_not() -> None:
    assert fact_values(SURE).keys() == {*VISIBLE, "labels"}
    assert "sampling_key" not in VISIBLE


FULL = replace(SURE, cost=0.5, prompt_length=12, text_length=7, finish_reason="length", sampling_key="secret")


@pytest.mark.parametrize(
    "condition",
    [
        "certified && threshold == 0.2",
        "cost == 0.5",
        "prompt_length == 12 && text_length == 7",
        "finish_reason == 'length' && finish_reason != ''",
        "uncertainty * 2.0 <= threshold",
    ],
)
def test_conditions_see_the_facts_of_this_language(condition: str) -> None:
    rules = f'rules:\n  - {{id: r, when: "{condition}", do: escalate}}\n'
    assert policy("guarantee: {max_error: 0.1}", rules).evaluate(FULL).rule == "r"


def test_a_missing_threshold_makes_comparisons_false() -> None:
    rules = "rules:\n  - {id: over, when: uncertainty > threshold, do: escalate}\n"
    ruling = policy("guarantee: {max_error: 0.1}", rules).evaluate(replace(SURE, threshold=None))
    assert ruling.rule is None
    assert ruling.outcomes[0].parts[0].facts == {"uncertainty": 0.1, "threshold": None}


@pytest.mark.parametrize("threshold", [None, 0.05])
def test_a_policy_answers_nothing_beyond_its_guarantee(threshold: float | None) -> None:
    promising = policy("guarantee: {max_error: 0.1}")
    assert promising.evaluate(SURE).rule == "sure"
    ruling = promising.evaluate(replace(SURE, threshold=threshold))
    assert (ruling.action, ruling.rule) == (Action.ABSTAIN, "last")
    assert ruling.outcomes[0].obstacle == Obstacle(kind="not_certified", threshold=threshold)
    assert policy().evaluate(replace(SURE, threshold=threshold)).rule == "sure"


@pytest.mark.parametrize(
    ("due", "after"), [("90s", 90.0), ("15m", 900.0), ("4h", 14_400.0), ("2d", 172_800.0), ("1.5h", 5_400.0)]
)
def test_a_due_time_is_a_number_and_a_unit(due: str, after: float) -> None:
    rules = f"rules:\n  - {{id: r, do: escalate, due: {due}}}\n"
    assert policy(rules=rules).evaluate(SURE).due == after


def test_without_a_due_time_the_queue_has_its_own() -> None:
    assert policy(rules="rules:\n  - {id: r, do: escalate}\n").evaluate(SURE).due is None
    assert policy().evaluate(SURE).due is None


def test_a_due_time_is_at_most_that_of_the_review_queue() -> None:
    assert LONGEST_DUE == LONGEST == seconds("36525d")
    assert math.isnan(seconds("4 h"))


def test_the_sample_is_the_documented_hash_and_stays_so() -> None:
    hashed = hashlib.sha256(b"4:ruleabc").digest()
    number = (int.from_bytes(hashed[:8]) >> 11) / 2**53
    assert number == 0.08989314256251524
    assert is_sampled("abc", "rule", math.nextafter(number, 1.0))
    assert not is_sampled("abc", "rule", number)


@given(sampling_key=st.text(st.characters()), salt=st.text(st.characters()))
def test_every_key_is_in_the_sample_of_all_and_none_in_that_of_nothing(sampling_key: str, salt: str) -> None:
    assert is_sampled(sampling_key, salt, 1.0)
    assert not is_sampled(sampling_key, salt, 0.0)


def test_samples_are_uniform_and_independent_by_salt() -> None:
    one, two = ({key for key in SAMPLING_KEYS if is_sampled(key, salt, 0.5)} for salt in ("one", "two"))
    for salt in ("one", "two"):
        below = [sum(is_sampled(key, salt, tenth / 10) for key in SAMPLING_KEYS) for tenth in range(11)]
        tenths = [high - low for low, high in itertools.pairwise(below)]
        assert all(60 <= count <= 140 for count in tenths)  # 100 expected, give or take four standard deviations
    assert 195 <= len(one & two) <= 305  # 250 expected


def sampled(share: float) -> Policy:
    return policy(rules=f"rules:\n  - {{id: part, sample: {share}, do: escalate}}\n  - {{id: rest, do: abstain}}\n")


def sample_of(sampling: Policy, facts: Facts = SURE) -> set[str]:
    return {key for key in SAMPLING_KEYS if sampling.evaluate(replace(facts, sampling_key=key)).rule == "part"}


def test_a_sampled_rule_holds_for_its_share_of_requests_only() -> None:
    tenth, half = sample_of(sampled(0.1), Facts()), sample_of(sampled(0.5), Facts())
    assert tenth == {key for key in SAMPLING_KEYS if is_sampled(key, "part", 0.1)}
    assert half == {key for key in SAMPLING_KEYS if is_sampled(key, "part", 0.5)}
    assert tenth < half
    assert sample_of(sampled(0.1), replace(SURE, attempt=2)) == tenth
    assert sample_of(sampled(1)) == set(SAMPLING_KEYS)


def test_a_request_outside_the_sample_passes_the_rule_over() -> None:
    key = next(key for key in SAMPLING_KEYS if not is_sampled(key, "part", 0.1))
    outcome = sampled(0.1).evaluate(Facts(sampling_key=key)).outcomes[0]
    assert (outcome.rule, outcome.outcome, outcome.sample) == ("part", "not_sampled", 0.1)


def test_a_failed_rule_blocks_only_the_requests_in_its_sample() -> None:
    rules = (
        "rules:\n  - {id: part, sample: 0.5, when: labels.topic == 'legal', do: escalate}\n"
        "  - {id: sure, when: uncertainty < 0.5, do: answer}\n"
    )
    failing = policy(rules=rules)
    answered = {key for key in SAMPLING_KEYS if failing.evaluate(replace(SURE, sampling_key=key)).rule == "sure"}
    assert answered == {key for key in SAMPLING_KEYS if not is_sampled(key, "part", 0.5)}


def test_audits_are_a_share_of_requests_independent_of_samples() -> None:
    audited = policy("audit: {fraction: 0.25, queue: a}")
    picked = {key for key in SAMPLING_KEYS if audited.audits(key)}
    assert picked == {key for key in SAMPLING_KEYS if is_sampled(key, AUDIT_SALT, 0.25)}
    assert not any(policy().audits(key) for key in SAMPLING_KEYS[:10])
    assert 80 <= len(picked & sample_of(sampled(0.5))) <= 170  # 125 expected


WRONG_KEYS: list[tuple[str, str, str]] = [
    ("mode: shadows", "3:7", "mode: should be 'enforce' or 'shadow'"),
    ("mod: shadow", "3:1", "unknown key 'mod'; did you mean 'mode'?"),
    ("guarantee: {}", "3:12", "must be of one kind"),
    ("guarantee: {max_error: 0.1, min_coverage: 0.8}", "3:12", "must be of one kind"),
    ("guarantee: {confidence: 0.9}", "3:12", "must be of one kind"),
    ("guarantee: {max_reviews_per_hour: 20}", "3:12", "`requests_per_hour` (the traffic) need one another"),
    ("guarantee: {max_error: 0.1, requests_per_hour: 20}", "3:12", "need one another"),
    ("guarantee: {max_eror: 0.1}", "3:13", "guarantee: unknown key 'max_eror'; did you mean 'max_error'?"),
    ("guarantee: {max_error: 1}", "3:24", "guarantee.max_error: "),
    ("guarantee: {max_error: 5%}", "3:24", "guarantee.max_error: must be a share, from 0 to 1: write 0.05 for 5 %"),
    ("guarantee: {max_error: 0}", "3:24", "guarantee.max_error: "),
    ("guarantee: {max_error: '0.1'}", "3:24", "guarantee.max_error: "),
    (
        "guarantee: {max_error: 0.1, confidence: 95}",
        "3:41",
        "guarantee.confidence: must be a share, from 0 to 1: write 0.05 for 5 %, got 95",
    ),
    ("budget: {}", "3:9", "budget: must limit something"),
    ("budget: {max_attempts: 1.5}", "3:24", "budget.max_attempts: "),
    ("budget: {max_attempts: 0}", "3:24", "budget.max_attempts: "),
    ("budget: {max_second: 3}", "3:10", "unknown key 'max_second'; did you mean 'max_seconds'?"),
    ("budget: {max_cost: -1}", "3:20", "budget.max_cost: "),
    ("audit: {fraction: 0.1}", "3:8", "audit: the key 'queue' is missing"),
    ("audit: {fraction: 2, queue: a}", "3:19", "audit.fraction: "),
    ("audit: {fraction: 0, queue: a}", "3:19", "audit.fraction: "),
    ("audit: {frction: 0.1, queue: a}", "3:9", "unknown key 'frction'; did you mean 'fraction'?"),
]


@pytest.mark.parametrize(("keys", "place", "words"), WRONG_KEYS)
def test_a_wrong_key_beside_the_rules_is_named_with_its_place(keys: str, place: str, words: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy(keys)
    assert any(line.startswith(f"<string>:{place}: ") and words in line for line in str(caught.value).splitlines())


WRONG_RULES: list[tuple[str, str, str]] = [
    ("do: escalate, due: 4", "4", "rules[0].due: must be a number and its unit, s, m, h or d, without a space: 90s,"),
    ("do: escalate, due: 4 h", "4 h", "rules[0].due: must be a number and its unit"),
    ("do: escalate, due: 4w", "4w", "rules[0].due: must be a number and its unit"),
    ("do: escalate, due: 0s", "0s", "must be longer than nothing and at most a century"),
    ("do: escalate, due: 36526d", "36526d", "must be longer than nothing and at most a century"),
    ("do: escalate, due:", "due", "has no value; leave it out for the queue's own time"),
    ("do: abstain, due: 4h", "4h", "`due` is not allowed with `do: abstain`: only a ticket can be overdue"),
    ("do: retry, due: 4h", "4h", "`due` is not allowed with `do: retry`"),
    ("do: abstain, sample: 0", "0", "rules[0].sample: "),
    ("do: abstain, sample: 1.1", "1.1", "rules[0].sample: must be a share, from 0 to 1: write 0.05 for 5 %, got 1.1"),
    ("do: abstain, sample:", "sample", "has no value; leave it out for all requests"),
    ("do: abstain, when: certified", "certified", "`certified` needs a guarantee, and the policy gives none; add"),
    ("do: abstain, when: threshold < 0.1", "threshold", "`threshold` needs a guarantee"),
    ("do: abstain, when: certifed", "certifed", "unknown name 'certifed'; did you mean 'certified'?"),
    ("do: abstain, when: text_lenght < 3", "text", "did you mean 'text_length'?"),
    ("do: abstain, when: text_length < 3.0", "< 3", "write 1.0"),
    ("stage: prompt, do: abstain, when: text_length < 3", "text", "`text_length` isn't known at stage `prompt`"),
    ("stage: prompt, do: abstain, when: finish_reason != ''", "fin", "`finish_reason` isn't known at stage"),
    ("do: abstain, when: finish_reason == 'cut'", "== 'cut'", "can never act"),
]


@pytest.mark.parametrize(("rule", "at", "words"), WRONG_RULES)
def test_a_wrong_rule_is_refused_with_its_place(rule: str, at: str, words: str) -> None:
    line = f"  - {{id: abc, {rule} }}"
    with pytest.raises(PolicyError) as caught:
        policy("mode: enforce", f"rules:\n{line}\n")
    place = f"<string>:5:{line.index(at) + 1}: "
    assert [told for told in str(caught.value).splitlines() if told.startswith(place) and words in told], caught.value


@pytest.mark.parametrize("name", ["certified", "threshold < 0.1"])
def test_facts_of_a_guarantee_are_unknown_at_the_prompt(name: str) -> None:
    with pytest.raises(PolicyError, match="isn't known at stage `prompt`"):
        policy("guarantee: {max_error: 0.1}", f"rules:\n  - {{id: r, stage: prompt, when: {name}, do: abstain}}\n")
