"""Explanations state the ruling of the engine on every rule."""

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from ilis_guard.policy import Explanation, Facts, Policy
from ilis_guard.policy.conditions import Condition
from ilis_guard.policy.engine import ALWAYS, BoundRule, Engine
from ilis_guard.policy.explain import attempt_text, outcome_text
from ilis_guard.policy.explanation import ExplainedRule, explain
from ilis_guard.policy.schema import Rule
from ilis_guard.types import STAGES, Action, Attempt, Obstacle, Stage, Statistics

LEGAL = Facts(uncertainty=0.43, typicality=0.5, tier="small", labels={"topic": "legal"})


def policy(*rules: str) -> Policy:
    return Policy.parse("version: 1\nname: p\nrules:\n" + "".join(f"  - {{{rule}}}\n" for rule in rules))


def outcomes(explained: Explanation) -> list[tuple[str, str, str]]:
    return [(one.rule.id, result(one), reason(one)) for one in explained.rules]


def result(one: ExplainedRule) -> str:
    if one.outcome is None:
        return "not reached"
    return "decided" if one.outcome.outcome == "decided" else "passed over"


def reason(one: ExplainedRule) -> str:
    return "" if one.outcome is None else outcome_text(one.outcome)


def test_every_rule_of_the_stage_has_its_outcome() -> None:
    explained = policy(
        "id: early, stage: prompt, when: tokens > 3, do: abstain",
        "id: sure, when: uncertainty < 0.25 && typicality > 0.1, do: answer",
        "id: again, do: retry",
        "id: legal, when: \"has(labels.topic) && labels.topic in ['legal', 'tax']\", do: escalate, to: lawyers",
        "id: decline, do: abstain",
    ).explain(LEGAL)
    assert outcomes(explained) == [
        ("sure", "passed over", "`uncertainty < 0.25` is false (uncertainty is 0.43)"),
        ("again", "passed over", "it would retry, but there is no larger tier"),
        (
            "legal",
            "decided",
            "`has(labels.topic)` is true (labels.topic is 'legal') and `labels.topic in ['legal', 'tax']` is true "
            "(labels.topic is 'legal')",
        ),
        ("decline", "not reached", ""),
    ]
    assert explained.decisive is not None
    assert [part.text for part in explained.decisive.parts] == ["has(labels.topic)", "labels.topic in ['legal', 'tax']"]
    assert explained.paragraph == (
        "The tier 'small' answered with an uncertainty of 0.43. By rule 'legal' a person decides (escalate), because "
        "`has(labels.topic)` is true (labels.topic is 'legal') and `labels.topic in ['legal', 'tax']` is true "
        "(labels.topic is 'legal'). Passed over before it: rule 'sure', as `uncertainty < 0.25` is false (uncertainty "
        "is 0.43); rule 'again', as it would retry, but there is no larger tier."
    )


def test_where_no_rule_holds_that_is_the_explanation() -> None:
    explained = policy("id: sure, when: uncertainty < 0.25, do: answer").explain(LEGAL)
    assert outcomes(explained) == [("sure", "passed over", "`uncertainty < 0.25` is false (uncertainty is 0.43)")]
    assert (explained.decisive, explained.to_dict()["rule"], explained.to_dict()["action"]) == (None, None, "abstain")
    assert "No rule held, so nothing is answered (abstain)." in explained.paragraph


def test_at_the_prompt_a_rule_decides_or_the_model_goes_on() -> None:
    early = policy(
        "id: hard, stage: prompt, when: uncertainty > 0.9, do: retry", "id: sure, when: typicality > 0.1, do: answer"
    )
    explained = early.explain(Facts(uncertainty=0.95, tier="small", last_tier=False), "prompt")
    assert outcomes(explained) == [("hard", "decided", "`uncertainty > 0.9` is true (uncertainty is 0.95)")]
    assert explained.paragraph == (
        "The tier 'small' hadn't answered yet; the prompt has an uncertainty of 0.95. By rule 'hard' a larger tier is "
        "tried (retry), before a token is generated, because `uncertainty > 0.9` is true (uncertainty is 0.95)."
    )
    goes_on = early.explain(Facts(uncertainty=0.5), "prompt")
    assert goes_on.ruling is None
    assert goes_on.paragraph == (
        "The model hadn't answered yet; the prompt has an uncertainty of 0.5. No rule held, so the model goes on to "
        "answer. Passed over before it: rule 'hard', as `uncertainty > 0.9` is false (uncertainty is 0.5)."
    )


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (Facts(tier="small", error="ModelError"), "The tier 'small' failed (ModelError). "),
        (Facts(tier="small"), "The tier 'small' answered; its answer has no uncertainty. "),
        (Facts(uncertainty=float("nan")), "The model answered; its answer has no uncertainty. "),
    ],
)
def test_a_paragraph_begins_with_the_attempt(facts: Facts, told: str) -> None:
    paragraph = policy("id: failed, when: \"error != ''\", do: abstain").explain(facts).paragraph
    assert paragraph.startswith(told)


def test_a_part_that_cannot_be_evaluated_says_why() -> None:
    explained = policy("id: vip, when: labels.vip == true && tokens < 5, do: escalate").explain(LEGAL)
    ((_, outcome, why),) = outcomes(explained)
    assert outcome == "passed over"
    assert why.endswith("failed: the label 'vip' is absent; ask has(labels.vip) first")
    condition = explained.rules[0].condition
    assert condition is not None
    assert [part.value for part in condition.parts] == [
        "the label 'vip' is absent; ask has(labels.vip) first",
        True,
    ]


def test_a_sampled_rule_says_whether_the_request_is_sampled() -> None:
    sampled = policy("id: look, sample: 0.5, do: escalate")
    told = {outcomes(sampled.explain(Facts(sampling_key=str(sampling_key))))[0][1:] for sampling_key in range(20)}
    assert told == {
        ("decided", "it has no condition, and this request is in its sample (0.5)"),
        ("passed over", "it holds for a sample of 0.5, and this request isn't in it"),
    }


def test_an_explanation_is_json_with_missing_numbers_as_null() -> None:
    explained = policy("id: a, when: typicality > 0.5 && tokens > 3, do: escalate, to: q, say: Wait.")
    told: dict[str, Any] = json.loads(json.dumps(explained.explain(Facts(tokens=7)).to_dict(), allow_nan=False))
    assert (told["facts"]["typicality"], told["facts"]["tokens"], told["stage"]) == (None, 7, "answer")
    assert told["rules"][0]["condition"]["parts"][1] == {
        "text": "tokens > 3",
        "value": True,
        "failed": None,
        "facts": {"tokens": 7},
        "operator": None,
        "parts": [],
    }
    decided = explained.explain(Facts(tokens=7, typicality=0.9)).to_dict()
    assert (decided["action"], decided["rule"], decided["to"], decided["say"]) == ("escalate", "a", "q", "Wait.")


CONDITIONS = st.recursive(
    st.sampled_from(
        [
            "uncertainty < 0.5",
            "typicality >= 0.5",
            "last_tier",
            "labels.vip == true",
            "has(labels.vip)",
            "error == ''",
            "statistics.margin_min > 0.1",
            "tokens / 0 == 1",
        ]
    ),
    lambda inner: st.one_of(
        st.builds("!({})".format, inner),
        st.builds("({}) && {}".format, inner, inner),
        st.builds("{} || {}".format, inner, inner),
        st.builds("({} ? {} : {})".format, inner, inner, inner),
    ),
    max_leaves=6,
)
RULES = st.lists(
    st.tuples(
        st.sampled_from(STAGES),
        st.sampled_from(Action),
        st.one_of(st.none(), CONDITIONS),
        st.sampled_from([None, "large"]),
        st.sampled_from([None, 0.5]),
    ),
    min_size=1,
    max_size=6,
)
FACTS = st.builds(
    Facts,
    uncertainty=st.sampled_from([None, float("nan"), 0.1, 0.5, 0.9, 1.5, float("inf")]),
    typicality=st.sampled_from([None, 0.1, 0.9]),
    tier=st.sampled_from(["", "small", "large"]),
    last_tier=st.booleans(),
    larger_tiers=st.sampled_from([None, (), ("large",)]),
    tokens=st.integers(0, 3),
    labels=st.sampled_from([{}, {"vip": True}, {"vip": "yes"}]),
    error=st.sampled_from(["", "ModelError"]),
    statistics=st.sampled_from(
        [None, Statistics(logprob_sum=-1.0, logprob_mean=-1.0, entropy_mean=0.5, margin_min=0.2)]
    ),
    answer_blocked_by=st.sampled_from([None, Obstacle(kind="rule_failed", rule="p", detail="why")]),
    sampling_key=st.sampled_from(["a", "b", "c"]),
)


def engine_of(rules: list[tuple[Stage, Action, str | None, str | None, float | None]]) -> Engine:
    def bound(
        index: int, stage: Stage, do: Action, when: str | None, to: str | None, sample: float | None
    ) -> BoundRule:
        given: dict[str, Any] = {"id": f"r{index}", "stage": stage, "do": do}
        given |= {} if to is None or do is not Action.RETRY else {"to": to}
        given |= {} if sample is None else {"sample": sample}
        return BoundRule(Rule(**given), ALWAYS if when is None else Condition.of(when))

    return Engine([bound(index, *rule) for index, rule in enumerate(rules) if rule[:2] != ("prompt", Action.ANSWER)])


@given(RULES, FACTS, st.sampled_from(STAGES))
def test_an_explanation_never_contradicts_the_ruling(
    rules: list[tuple[Stage, Action, str | None, str | None, float | None]], facts: Facts, stage: Stage
) -> None:
    engine = engine_of(rules)
    explained = explain(engine, facts, stage)
    ruling = engine.evaluate(facts) if stage == "answer" else engine.evaluate_prompt(facts).ruling
    assert explained.ruling == ruling
    assert [one.rule for one in explained.rules] == [bound.rule for bound in engine.at(stage)]

    decided = None if ruling is None else ruling.rule
    assert [one.rule.id for one in explained.rules if result(one) == "decided"] == (
        [] if decided is None else [decided]
    )
    order = [result(one) for one in explained.rules]
    assert order == sorted(order, key=["passed over", "decided", "not reached"].index)
    for one in explained.rules:
        assert bool(reason(one)) is (result(one) != "not reached")
        if result(one) == "decided":
            assert one.condition is None or one.condition.value is True
        # A rule that is passed over though its condition holds has another reason than its condition.
        elif result(one) == "passed over" and (one.condition is None or one.condition.value is True):
            assert "is false" not in reason(one)

    if ruling is not None and decided is not None:
        assert f"By rule '{decided}' " in explained.paragraph
        assert f"({ruling.action.value})" in explained.paragraph or ruling.action is Action.ANSWER
    json.dumps(explained.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (
            Facts(uncertainty=0.3, threshold=0.2),
            "`certified` is false (uncertainty is 0.3, calibrated is true, threshold is 0.2)",
        ),
        (Facts(uncertainty=0.3), "`certified` is false (uncertainty is 0.3, calibrated is true, threshold is missing)"),
        (
            Facts(uncertainty=0.1, threshold=0.2),
            "`certified` is true (uncertainty is 0.1, calibrated is true, threshold is 0.2)",
        ),
    ],
)
def test_certified_is_explained_by_its_threshold(facts: Facts, why: str) -> None:
    text = "version: 1\nname: p\nguarantee: {max_error: 0.1}\nrules:\n  - {id: a, when: certified, do: answer}\n"
    explained = Policy.parse(text).explain(facts)
    assert reason(explained.rules[0]) == why
    assert why in explained.paragraph


def test_what_is_not_calibrated_is_explained() -> None:
    text = (
        "version: 1\nname: p\nguarantee: {max_error: 0.1}\nrules:\n  - {id: a, when: uncertainty < 0.5, do: answer}\n"
    )
    explained = Policy.parse(text).explain(Facts(uncertainty=0.1, threshold=0.2, calibrated=False))
    assert explained.ruling is not None
    assert explained.ruling.action is Action.ABSTAIN
    assert reason(explained.rules[0]) == (
        "it would answer, but the uncertainty isn't calibrated for this request, and the policy's guarantee needs that"
    )
    assert "The uncertainty isn't calibrated for this request; it only ranks answers." in explained.paragraph
    attempt = Attempt(tier="small", text="x", uncertainty=0.1, departures=("system", "length"))
    assert attempt_text(attempt) == (
        "The tier 'small' answered with an uncertainty of 0.1. The uncertainty isn't calibrated for this request: a "
        "system message, another limit of the answers' length; it only ranks answers."
    )
