"""A guard without a label: answers are ranked in their own traffic, and until that is known, a policy may say more."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import structlog

from ilis_guard import Action, Decision, Guard, Policy, Tier, events
from ilis_guard.cascade.stream import StreamEvent, TextDelta
from ilis_guard.errors import PolicyError
from ilis_guard.policy.explain import explain_decision, reasons
from ilis_guard.policy.records import read_decisions
from ilis_guard.policy.replay import replay
from ilis_guard.scoring.profile import LEAST_ANSWERS
from ilis_guard.scoring.rolling_profile import RollingProfile
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Generation, RemoteFingerprint, Score, Statistics
from tests.explained import problem

OTHER = RemoteFingerprint(chat_model="langchain_openai:ChatOpenAI", model="other", arguments={})


def answer(surprise: float, text: str = "Oslo is it", **changes: object) -> Generation:
    mean = -surprise
    statistics = Statistics(logprob_sum=3 * mean, logprob_mean=mean, entropy_mean=0.2, margin_min=0.5)
    whole = Generation(text=text, tokens=3, prompt_tokens=2, finish_reason="stop", seconds=0.0, statistics=statistics)
    return replace(whole, **changes)  # type: ignore[arg-type]  # as a test says


def chat(surprise: Callable[[str], float] = float) -> FakeModel:
    """A model that is as surprised as the prompt says."""
    return FakeModel(_Script(lambda prompt: answer(surprise(prompt))))


class _Script(dict[str, Generation]):
    def __init__(self, script: Callable[[str], Generation]) -> None:
        super().__init__()
        self._script = script

    def __getitem__(self, key: str) -> Generation:
        return self._script(key)


@pytest.fixture
def profile(tmp_path: Path) -> RollingProfile:
    return RollingProfile(tmp_path / "chat.db", answers=100)


@pytest.fixture
def build(profile: RollingProfile) -> Iterator[Callable[..., Guard]]:
    guards = []

    def one(policy: str | Policy = "cold-start", *, model: FakeModel | None = None, **changes: object) -> Guard:
        tier = Tier(name="chat", model=model or chat(), profile=profile, **changes)  # type: ignore[arg-type]
        loaded = policy if isinstance(policy, Policy) else Policy.load(policy)
        guards.append(Guard(tiers=[tier], policy=loaded, review=InMemoryQueue()))
        return guards[-1]

    yield one
    for guard in guards:
        guard.close()


def warm(guard: Guard, requests: int = 40) -> list[Decision]:
    """So many requests, as sure and as unsure as they come."""
    random = np.random.default_rng(0)
    return [guard.decide(f"{random.gamma(2, 0.3):.6f}", id=f"warm-{number}") for number in range(requests)]


def test_until_ranks_are_known_a_sample_goes_to_a_person_and_the_rest_is_shadowed(build: Callable[..., Guard]) -> None:
    made = warm(build())[:LEAST_ANSWERS]
    assert {one.rank for one in made} == {None}
    shadowed = [one for one in made if one.mode == "shadow"]
    escalated = [one for one in made if one.mode == "enforce"]
    assert len(shadowed) + len(escalated) == LEAST_ANSWERS
    assert 1 <= len(escalated) <= 10, "one in five"
    for one in shadowed:
        assert (one.action, one.text, one.rulings, one.ticket) == (Action.ANSWER, "Oslo is it", (), None)
        assert one.shadow is not None
        assert (one.shadow.action, one.shadow.rule) == (Action.ESCALATE, "ask-a-person")
    for one in escalated:
        assert (one.action, one.rule, one.shadow) == (Action.ESCALATE, "ask-a-person", None)
        assert one.ticket is not None
    assert {(one.uncertainty, one.calibrated, one.attempts[0].departures) for one in made} == {
        (None, False, ("labels",))
    }


def test_once_ranks_are_known_the_surest_are_answered_and_the_rest_goes_to_a_person(
    build: Callable[..., Guard],
) -> None:
    guard = build()
    later = warm(guard, 60)[LEAST_ANSWERS:]
    assert {one.mode for one in later} == {"enforce"}
    assert {(one.action, one.rule) for one in later} == {
        (Action.ANSWER, "among-the-surest"),
        (Action.ESCALATE, "ask-a-person"),
    }
    assert 0.4 < np.mean([one.action is Action.ANSWER for one in later]) < 0.8
    for one in later:
        assert one.rank is not None
        assert (one.action is Action.ANSWER) is (one.rank < 0.6)
        assert one.uncertainty is None
    sure, unsure = guard.decide("0.0"), guard.decide("9.0")
    assert (sure.rank, sure.action, unsure.rank, unsure.action) == (0, Action.ANSWER, 1, Action.ESCALATE)


def test_the_same_request_is_sampled_in_every_guard(build: Callable[..., Guard], tmp_path: Path) -> None:
    first = [one.mode for one in warm(build(), LEAST_ANSWERS)]
    tier = Tier(name="other", model=chat(), profile=RollingProfile(tmp_path / "other.db"))
    with Guard(tiers=[tier], policy=Policy.load("cold-start"), review=InMemoryQueue()) as guard:
        assert [one.mode for one in warm(guard, LEAST_ANSWERS)] == first


@pytest.mark.parametrize("name", ["default", "clinical", "code-assistant", "customer-support"])
def test_every_other_policy_answers_nothing_until_then(name: str, build: Callable[..., Guard]) -> None:
    guard = build(name)
    assert {one.action for one in warm(guard, LEAST_ANSWERS)} <= {Action.ESCALATE, Action.ABSTAIN}
    sure = guard.decide("0.0")
    assert sure.rank == 0
    by_rank = Policy.load(name).guarantee is None
    assert (sure.action is Action.ANSWER) is by_rank


@pytest.mark.parametrize(
    "condition",
    [
        "uncertainty < 0.99",
        "uncertainty < 0.99 || rank < 0.99",
        "!(uncertainty > 0.5) && rank < 0.99",
        "rank < 0.99 && (uncertainty < 0.9 || !calibrated)",
    ],
)
def test_no_rule_that_asks_for_the_uncertainty_answers_by_a_rank(condition: str, build: Callable[..., Guard]) -> None:
    rules = f"rules: [{{id: sure, when: '{condition}', do: answer}}, {{id: no, do: abstain}}]"
    guard = build(Policy.parse(f"version: 1\nname: p\n{rules}\n"))
    made = [*warm(guard), guard.decide("0.0")]
    assert {one.action for one in made} == {Action.ABSTAIN}


def test_a_rule_that_answers_where_there_is_no_uncertainty_isnt_loaded() -> None:
    rule = "{id: unknown, when: '!(uncertainty >= 0.0) && rank < 0.99', do: answer}"
    with pytest.raises(PolicyError, match="rule 'unknown': can never act"):
        Policy.parse(f"version: 1\nname: p\nrules: [{rule}]\n")


def test_a_rule_on_a_fact_that_isnt_known_keeps_answers_back(build: Callable[..., Guard]) -> None:
    rules = (
        "rules: [{id: odd, when: 'typicality < 0.05', do: abstain}, {id: sure, when: 'rank < 0.6', do: answer}]\n"
        "cold_start: {enforced: 0.2}"
    )
    guard = build(Policy.parse(f"version: 1\nname: p\n{rules}\n"))
    made = [*warm(guard), guard.decide("0.0")]
    assert {(one.action, one.mode) for one in made} == {(Action.ABSTAIN, "enforce")}


LEGAL = """
version: 1
name: legal
cold_start: {enforced: 0.0001}
rules:
  - {id: private, stage: prompt, when: has(labels.private), do: abstain}
  - {id: legal, when: has(labels.legal), do: escalate}
  - {id: cut, when: finish_reason == "length", do: abstain}
  - {id: sure, when: rank < 0.6, do: answer}
  - {id: rest, do: escalate}
"""


def test_only_the_missing_rank_is_shadowed_and_every_other_rule_holds(build: Callable[..., Guard]) -> None:
    guard = build(Policy.parse(LEGAL))
    assert guard.decide("0.1").mode == "shadow"
    for labels, rule in (({"legal": True}, "legal"), ({"private": True}, "private")):
        made = guard.decide("0.1", labels=labels)
        assert (made.mode, made.rule, made.text) == ("enforce", rule, "")
    cut = FakeModel(answer(0.1, finish_reason="length"))
    assert build(Policy.parse(LEGAL), model=cut).decide("?").rule == "cut"


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        (answer(0.1, text=" "), "ScoringError"),
        (answer(0.1, statistics=None), "ScoringError"),
        (answer(math.nan), "ScoringError"),
        (answer(-math.inf), "ScoringError"),
        (answer(0.1, finish_reason=None), "UnfinishedAnswerError"),
        (answer(0.1, text="", thinking_problem="unfinished"), "ThinkingError"),
        (RuntimeError("boom"), "UnexpectedError"),
    ],
    ids=str,
)
def test_what_cant_be_scored_is_never_given_and_no_answer_of_the_traffic(
    broken: Generation | Exception, kind: str, build: Callable[..., Guard], profile: RollingProfile
) -> None:
    guard = build(model=FakeModel(broken))
    made = [guard.decide("?", id=f"{number}") for number in range(30)]
    assert {(one.action, one.rule, one.mode) for one in made} == {
        (Action.ESCALATE, "failed-so-ask-a-person", "enforce")
    }
    assert problem(made[0].attempts[0]).startswith(kind)
    assert profile.answers == 0


def test_a_model_that_finds_everything_equally_probable_is_answered_nothing(build: Callable[..., Guard]) -> None:
    guard = build(model=chat(lambda _: 0.0))
    made = warm(guard, 40)[LEAST_ANSWERS:]
    assert {(one.rank, one.action) for one in made} == {(1.0, Action.ESCALATE)}


def test_a_profile_of_another_model_answers_nothing(build: Callable[..., Guard], profile: RollingProfile) -> None:
    warm(build())
    known = profile.answers
    guard = build()
    with structlog.testing.capture_logs() as logs:
        other = guard.with_model("chat", FakeModel(answer(0.0), fingerprint=OTHER))
        made = other.decide("?")
    assert (made.action, made.rule) == (Action.ESCALATE, "failed-so-ask-a-person")
    assert "no bundle" in problem(made.attempts[0])
    (told,) = (log for log in logs if log["event"] == events.PROFILE_MISMATCHED)
    assert told["tier"] == "chat"
    assert profile.answers == known


def test_a_scorer_with_labels_and_a_profile_has_an_uncertainty_and_a_rank(
    build: Callable[..., Guard], profile: RollingProfile
) -> None:
    scores = {f"{number}": number / 100 for number in range(100)}
    guard = build(
        "default",
        model=FakeModel(_Script(lambda prompt: answer(0.1, text=prompt))),
        scorer=FixedScorer(
            {name: Score(uncertainty=of, typicality=1.0, departures=("system",)) for name, of in scores.items()}
        ),
    )
    made = [guard.decide(f"{number}") for number in (*range(0, 100, 4), 0, 98)]
    assert [one.rank for one in made[-2:]] == [1 / 25, 1]
    assert [one.uncertainty for one in made[-2:]] == [0.0, 0.98]
    assert [one.rule for one in made[-2:]] == ["among-the-surest", "unsure-so-ask-a-person"]
    assert profile.answers == 27


def test_a_scorers_own_nan_is_still_a_failure(build: Callable[..., Guard]) -> None:
    made = build(scorer=FixedScorer(Score(uncertainty=math.nan, typicality=1.0))).decide("0.1")
    assert made.action is Action.ESCALATE
    assert problem(made.attempts[0]) == "ScoringError: the uncertainty must lie between 0 and 1, got nan"


def test_decisions_survive_json_and_are_explained(build: Callable[..., Guard], tmp_path: Path) -> None:
    guard = build(Policy.parse(LEGAL))
    made = [*warm(guard, 25), guard.decide("0.0"), guard.decide("9.0")]
    file = tmp_path / "decisions.jsonl"
    file.write_text("".join(json.dumps(one.to_dict(), allow_nan=False) + "\n" for one in made))
    shadowed, sure, unsure = made[0], made[-2], made[-1]
    assert "its answer can't be ranked yet. No labelled row says how probable" in explain_decision(shadowed)
    assert "The answer is given, as it would be without a policy." in explain_decision(shadowed)
    assert "by rule 'rest' it would have escalated" in explain_decision(shadowed)
    assert any("in shadow mode: the answer was given" in reason for reason in reasons(shadowed))
    assert "of its traffic's answers, a share of 0 is surer" in explain_decision(sure)
    assert "a share of 1 is surer" in explain_decision(unsure)
    records = [line.record for line in read_decisions(file)]
    assert [record.paragraph for record in records] == [explain_decision(one) for one in made]
    for record in (records[0], records[-2], records[-1]):
        again = replay(guard.policy, record, larger_tiers=(), given={})
        assert [step.agrees for step in again.steps] == [True, True], "at the prompt, and on the answer"


@pytest.mark.parametrize("mode", ["hold", "optimistic", "early_stop"])
def test_streams_give_what_decide_gives(mode: str, build: Callable[..., Guard]) -> None:
    guard = build(Policy.parse(LEGAL))

    def streamed(prompt: str) -> tuple[str, Decision]:
        found: list[StreamEvent] = list(guard.stream(prompt, mode=mode))  # type: ignore[arg-type]
        text = "".join(one.text for one in found if isinstance(one, TextDelta))
        assert isinstance(found[-1], Decision)
        return text, found[-1]

    text, made = streamed("0.1")
    assert (text, made.mode, made.action) == ("Oslo is it", "shadow", Action.ANSWER)
    warm(guard)
    text, made = streamed("0.0")
    assert (text, made.mode, made.action) == ("Oslo is it", "enforce", Action.ANSWER)
    _, made = streamed("9.0")
    assert (made.action, made.text) == (Action.ESCALATE, "")


def test_a_drift_of_the_traffic_is_told_as_an_event(build: Callable[..., Guard]) -> None:
    guard = build()
    with structlog.testing.capture_logs() as logs:
        warm(guard, 100)
        random = np.random.default_rng(1)
        for _ in range(50):
            guard.decide(f"{1 + random.gamma(2, 0.3):.6f}")
    (told,) = (log for log in logs if log["event"] == events.PROFILE_DRIFTED)
    assert (told["tier"], told["answers"], told["log_level"]) == ("chat", 25, "warning")
    assert told["median"] > told["earlier_median"] + 0.5
    assert told["p_value"] < 0.001


def test_a_guard_without_models_neither_ranks_nor_fails(build: Callable[..., Guard]) -> None:
    guard = build()
    warm(guard)
    made = guard.without_models("it stops").decide("0.0")
    assert (made.action, made.rule) == (Action.ESCALATE, "failed-so-ask-a-person")


def test_a_larger_tier_has_a_cold_start_of_its_own(tmp_path: Path) -> None:
    small, large = RollingProfile(tmp_path / "small.db"), RollingProfile(tmp_path / "large.db")
    tiers = [
        Tier(name="small", model=chat(), profile=small),
        Tier(name="large", model=chat(lambda _: 0.7), profile=large),
    ]
    with Guard(tiers=tiers, policy=Policy.load("cold-start"), review=InMemoryQueue()) as guard:
        made = warm(guard, 60)
        assert {len(one.attempts) for one in made[:LEAST_ANSWERS]} == {1}
        retried = [one for one in made[LEAST_ANSWERS:] if len(one.attempts) == 2]
        cold, ranked = retried[: LEAST_ANSWERS - 3], retried[LEAST_ANSWERS:]
        assert {one.mode for one in cold} == {"shadow", "enforce"}
        shadowed = next(one for one in cold if one.mode == "shadow")
        assert shadowed.shadow is not None
        assert [ruling.rule for ruling in shadowed.shadow.rulings] == ["try-larger", "ask-a-person"]
        assert (shadowed.action, shadowed.attempts[-1].tier) == (Action.ANSWER, "large")
        # Of equal answers none is sure: they go to a person.
        assert {(one.mode, one.action) for one in ranked} <= {("enforce", Action.ESCALATE)}
    assert (small.answers, large.answers) == (60, len(retried))
