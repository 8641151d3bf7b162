"""A score says whether it is calibrated for the request: real weights, the packaged bundle, every entrance."""

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given, settings, strategies as st
from langchain_core.prompts import ChatPromptTemplate

from ilis_guard import Action, Guard, Message, Policy, Tier, events
from ilis_guard.cascade.loading import load_tier
from ilis_guard.config.tiers import TierConfig
from ilis_guard.errors import BundleMismatchError
from ilis_guard.models.local import LocalModel
from ilis_guard.policy import Facts
from ilis_guard.scoring import LightGBMScorer, read_bundle
from ilis_guard.testing import InMemoryQueue
from ilis_guard.types import DEPARTURES, Departure, Score
from ilis_guard_langchain import GuardRunnable
from ilis_guard_server import create_app
from tests.server.servers import KEY, in_process, settings_with

BUNDLE = "packaged:smollm2-135m-instruct-full"
FITTED: dict[str, Any] = {
    "name": "small",
    "model": "packaged:smollm2-135m-instruct",
    "prompt": "{question} Answer in a few words only.",
    "max_new_tokens": 16,
    "bundle": BUNDLE,
    "prompt_bundle": f"{BUNDLE}-prompt",
}
QUESTION = "What is the capital of France?"
HELPFUL = Message(role="system", content="You are a helpful assistant.")
"""Of labelled rows, as second turns are."""
POLITE = Message(role="system", content="You answer briefly and politely.")
ASKED = Message(role="user", content=QUESTION)
TURNS = (Message(role="user", content="Hello."), Message(role="assistant", content="Hello!"))
POLICY = """
version: 1
name: calibrated-or-a-person
guarantee: {max_error: 0.3}
rules:
  - {id: failed, when: error != "", do: abstain}
  - {id: sure, when: uncertainty < 0.9, do: answer}
  - {id: person, do: escalate}
"""


@pytest.fixture(scope="module")
def tier(smollm2_full: LocalModel) -> Tier:
    """As load_tier builds it, with the session's model."""
    prompt = LightGBMScorer(read_bundle(FITTED["prompt_bundle"]))
    return Tier(name="small", model=smollm2_full, scorer=LightGBMScorer(read_bundle(BUNDLE)), prompt_scorer=prompt)


@pytest.fixture(scope="module")
def guard(tier: Tier) -> Iterator[Guard]:
    with InMemoryQueue() as queue:
        yield Guard(tiers=[tier], policy=Policy.parse(POLICY), review=queue)


CONVERSATIONS: list[tuple[tuple[Message, ...], tuple[Departure, ...]]] = [
    ((ASKED,), ()),
    ((HELPFUL, ASKED), ()),
    ((*TURNS, ASKED), ()),
    ((POLITE, ASKED), ("system",)),
    ((HELPFUL, *TURNS, ASKED), ("system",)),  # each is known, and both together aren't
    ((POLITE, *TURNS, ASKED), ("system",)),
]


@pytest.mark.parametrize(("conversation", "departures"), CONVERSATIONS)
def test_an_answer_is_certified_only_where_it_is_asked_as_the_labelled_rows_were(
    conversation: tuple[Message, ...], departures: tuple[Departure, ...], guard: Guard
) -> None:
    made = guard.decide(conversation)
    (attempt,) = made.attempts
    assert attempt.error is None
    assert attempt.uncertainty is not None
    assert (attempt.departures, attempt.calibrated, made.calibrated) == (departures, not departures, not departures)
    assert (made.action, made.rule) == ((Action.ESCALATE, "person") if departures else (Action.ANSWER, "sure"))
    if departures:
        obstacles = {one.rule: one.obstacle and one.obstacle.kind for one in made.rulings[0].outcomes}
        assert obstacles["sure"] == "not_calibrated"
    told = made.to_dict()
    assert (told["calibrated"], told["attempts"][0]["departures"]) == (not departures, list(departures))


@pytest.mark.parametrize(("conversation", "departures"), CONVERSATIONS)
def test_a_stream_and_a_prompts_score_say_so_too(
    conversation: tuple[Message, ...], departures: tuple[Departure, ...], tier: Tier
) -> None:
    scores = [step.score for step in tier.stream(conversation) if step.score is not None]
    assert len(scores) > 1
    assert {score.departures for score in scores} == {departures}


@pytest.mark.parametrize(("conversation", "departures"), CONVERSATIONS)
def test_callers_of_the_server_see_it(
    conversation: tuple[Message, ...], departures: tuple[Departure, ...], guard: Guard
) -> None:
    messages = [{"role": turn.role, "content": turn.content} for turn in conversation]
    app = create_app(policy=guard.policy, guard=guard, server=settings_with())
    headers = {"authorization": f"Bearer {KEY}"}
    with in_process(app) as connect, connect(headers=headers) as client:
        completion = client.post("/v1/chat/completions", json={"model": "ilis-guard", "messages": messages}).json()
        decision = client.post("/v1/decisions", json={"messages": messages}).json()
        metrics = client.get("/metrics").text
    for body in (completion["ilis_guard"], decision):
        assert (body["calibrated"], body["rank"]) == (not departures, None)
        assert body["attempts"][0]["departures"] == list(departures)
    for name in DEPARTURES:
        counted = f'ilis_guard_departures_total{{departure="{name}",tier="small"}} 2.0' in metrics
        assert counted is (name in departures)


def test_a_langchain_prompt_with_an_unknown_system_message_is_not_calibrated(guard: Guard) -> None:
    plain = ChatPromptTemplate.from_messages([("human", "{question}")]) | GuardRunnable(guard)
    polite = ChatPromptTemplate.from_messages([("system", POLITE.content), ("human", "{question}")])
    assert plain.invoke({"question": QUESTION}).calibrated
    made = (polite | GuardRunnable(guard)).invoke({"question": QUESTION})
    assert (made.calibrated, made.attempts[0].departures, made.action) == (False, ("system",), Action.ESCALATE)


@pytest.mark.parametrize(
    ("changes", "departures"),
    [
        ({"prompt": "{question} Answer in one word."}, ("wording",)),
        ({"decoding": {"repetition_penalty": 1.2}}, ("decoding",)),
        ({"max_new_tokens": 8}, ("length",)),
        ({"prompt": "{question}", "max_new_tokens": 24}, ("wording", "length")),
    ],
)
@pytest.mark.usefixtures("smollm2_full")
def test_a_tier_that_is_configured_otherwise_loads_and_scores_uncalibrated(
    changes: dict[str, Any], departures: tuple[Departure, ...]
) -> None:
    tier = load_tier(TierConfig(**FITTED | changes))
    with structlog.testing.capture_logs() as logs:
        guard = Guard(tiers=[tier], policy=Policy.parse(POLICY), review=InMemoryQueue())
    told = [(log["tier"], log["stage"], log["departures"]) for log in logs if log["event"] == events.TIER_UNCALIBRATED]
    assert told == [("small", "prompt", list(departures)), ("small", "answer", list(departures))]
    made = guard.decide(QUESTION)
    assert made.uncertainty is not None
    assert (made.attempts[0].departures, made.action) == (departures, Action.ESCALATE)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"precision": "nf4"}, "precision"), ({"bundle": "packaged:gemma-3-270m-full", "prompt_bundle": None}, "weights")],
)
@pytest.mark.usefixtures("smollm2_full")
def test_another_precision_or_other_weights_are_refused_as_before(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(BundleMismatchError, match=named):
        load_tier(TierConfig(**FITTED | changes))


def test_an_answer_that_a_stop_sequence_cut_is_not_calibrated(guard: Guard) -> None:
    whole = guard.decide(QUESTION)
    cut = guard.decide(QUESTION, stop=[whole.attempts[0].text[2:4]])
    assert cut.attempts[0].departures == ("decoding",)
    assert guard.decide(QUESTION, stop=["no such text"]).calibrated


@given(
    uncertainty=st.floats(0, 1),
    threshold=st.floats(0, 1),
    departures=st.lists(st.sampled_from(DEPARTURES), min_size=1, unique=True),
    rank=st.one_of(st.none(), st.floats(0, 1)),
)
@settings(max_examples=50)
def test_nothing_that_departs_is_ever_certified(
    uncertainty: float, threshold: float, departures: list[Departure], rank: float | None
) -> None:
    score = Score(uncertainty=uncertainty, typicality=1.0, departures=tuple(departures))
    facts = Facts(uncertainty=uncertainty, threshold=threshold, rank=rank, calibrated=score.calibrated)
    assert not facts.certified
    assert Policy.parse(POLICY).evaluate(facts).action is not Action.ANSWER
