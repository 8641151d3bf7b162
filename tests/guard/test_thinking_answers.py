"""Thinking on its way through the guard: it is never the answer, and never shown."""

from collections.abc import AsyncIterator, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ilis_guard import Action, Decision, Guard, Policy, Tier
from ilis_guard.cascade.stream import Retraction, TextDelta
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Generation, Message, Score, Step, StreamMode

if TYPE_CHECKING:  # importing it imports torch, which most of these tests do without
    from ilis_guard.models.local import LocalModel

POLICY = """
version: 1
name: thinkers
rules:
  - {id: thoughtful, when: error == "ThinkingError" && last_tier, do: escalate, to: people}
  - {id: failed, when: error != "" && !last_tier, do: retry}
  - {id: sure, when: uncertainty < 0.5, do: answer}
  - {id: person, do: escalate, to: people}
"""
MODES: tuple[StreamMode, ...] = ("hold", "optimistic", "early_stop")
QUESTION = "Capital of Norway?"
THOUGHT = "Is it Bergen? No, it's Oslo: 奥斯陆."
ANSWER = "The capital is Oslo."
THINKING = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
UNFINISHED = f"<think>\n{THOUGHT}"


def guard(*models: Any, policy: str = POLICY, review: InMemoryQueue | None = None) -> Guard:
    # Whatever isn't the answer alone has no score.
    scorer = {ANSWER[:end]: 0.1 for end in range(1, len(ANSWER) + 1)} | {"Sweden?": 0.1}
    tiers = [Tier(name=f"t{at}", model=model, scorer=FixedScorer(scorer)) for at, model in enumerate(models)]
    return Guard(tiers=tiers, policy=Policy.parse(policy), review=review or InMemoryQueue())


def shown(events: list[Any]) -> str:
    assert not any(isinstance(event, Retraction) for event in events)
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def all_of(events: AsyncIterator[Any]) -> list[Any]:
    return [event async for event in events]


async def test_the_answer_alone_is_scored_and_given() -> None:
    guarded = guard(FakeModel(THINKING))
    for made in (guarded.decide("q"), await guarded.adecide("q")):
        assert (made.action, made.text, made.attempts[0].text, made.uncertainty) == (Action.ANSWER, ANSWER, ANSWER, 0.1)
        assert THOUGHT not in str(made.to_dict())


@pytest.mark.parametrize("mode", MODES)
async def test_a_stream_shows_the_answer_alone(mode: StreamMode) -> None:
    guarded = guard(FakeModel(THINKING))
    *events, made = guarded.stream("q", mode=mode)
    assert isinstance(made, Decision)
    assert (shown(events), made.text) == (ANSWER, ANSWER)
    *events, made = await all_of(guarded.astream("q", mode=mode))
    assert (shown(events), made.text) == (ANSWER, ANSWER)


def test_a_tier_streams_the_answer_of_a_users_own_model_alone() -> None:
    class Thinker(FakeModel):
        """It streams all that it writes, thinking too."""

        def stream(self, messages: Sequence[Message], *, stop: Sequence[str] = ()) -> Generator[Step, None, None]:
            whole = self.generate(messages, stop=stop)
            for end in range(0, len(THINKING), 7):
                yield Step(token="raw", generation=replace(whole, text=THINKING[:end], finish_reason=None))
            yield Step(token="raw", generation=replace(whole, text=THINKING))

    scorer = FixedScorer({ANSWER[:end]: 0.1 for end in range(1, len(ANSWER) + 1)})
    steps = list(Tier(name="t", model=Thinker(THINKING), scorer=scorer).stream([Message(role="user", content="q")]))
    assert "".join(step.token for step in steps) == steps[-1].generation.text == ANSWER
    assert all(ANSWER.startswith(step.generation.text.rstrip()) for step in steps)
    assert steps[-1].score == Score(uncertainty=0.1, typicality=1.0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("text", [UNFINISHED, "Sure!\n<think>\nhm\n</think>\n", "<think></think>"])
def test_thinking_without_an_answer_is_escalated_and_nothing_of_it_proposed(text: str, mode: StreamMode) -> None:
    with InMemoryQueue() as queue:
        guarded = guard(FakeModel(text), review=queue)
        *events, made = guarded.stream("q", mode=mode)
        assert isinstance(made, Decision)
        assert (made.action, made.text, made.uncertainty) == (Action.ESCALATE, "", None)
        assert THOUGHT not in shown([event for event in events if not isinstance(event, Retraction)])
        assert made.ticket is not None
        record = queue.get(made.ticket.id)
        assert not record.proposed
        assert THOUGHT not in str(record.attempts)


def test_what_was_wrong_is_said_to_operators_and_to_policies() -> None:
    made = guard(FakeModel(UNFINISHED)).decide("q")
    assert made.rules == ("thoughtful",)
    error = made.attempts[0].error
    assert error is not None
    assert error.kind == "ThinkingError"
    assert "never left its thinking" in error.detail
    assert THOUGHT not in error.detail
    assert error.for_callers() == {"kind": "ThinkingError", "message": "The model gave no answer."}


def test_a_larger_tier_answers_what_a_smaller_one_only_thought_about() -> None:
    made = guard(FakeModel(UNFINISHED), FakeModel(THINKING)).decide("q")
    assert (made.action, made.text, [attempt.text for attempt in made.attempts]) == (
        Action.ANSWER,
        ANSWER,
        ["", ANSWER],
    )


def test_an_unfinished_answer_is_not_given_in_shadow_either() -> None:
    made = guard(FakeModel(UNFINISHED), policy=POLICY.replace("version: 1", "version: 1\nmode: shadow")).decide("q")
    assert (made.action, made.text) == (Action.ABSTAIN, "")


def test_a_stop_sequence_in_the_thinking_ends_nothing() -> None:
    made = guard(FakeModel(THINKING)).decide("q", stop=["No,", "."])
    assert made.attempts[0].text == ANSWER.removesuffix(".")


def test_what_a_users_own_model_measured_over_its_thinking_is_not_used() -> None:
    class Own:
        fingerprint = None

        def generate(self, messages: Any) -> Generation:
            return FakeModel(THINKING).generate(messages)

    attempt = guard(Own()).decide("q").attempts[0]
    assert (attempt.text, attempt.statistics, set(attempt.signatures)) == (ANSWER, None, {"prompt"})


def test_earlier_answers_reach_models_and_reviewers_without_thinking() -> None:
    model = FakeModel(UNFINISHED)
    turns = [
        Message(role="user", content="Norway?"),
        Message(role="assistant", content=THINKING),
        Message(role="user", content="Sweden?"),
    ]
    with InMemoryQueue() as queue:
        made = guard(model, review=queue).decide(turns)
        assert [turn.content for turn in model.calls[0]] == ["Norway?", ANSWER, "Sweden?"]
        assert made.ticket is not None
        assert [turn["content"] for turn in queue.get(made.ticket.id).request["messages"]] == [
            "Norway?",
            ANSWER,
            "Sweden?",
        ]


@pytest.fixture(scope="module", params=["qwen", "deepseek", "harmony"])
def thinker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "LocalModel":
    from tests.models.thinkers import FAMILIES, SCRIPTS, load, write_folder

    family = request.param
    before, after = SCRIPTS[family]
    folder: Path = write_folder(tmp_path_factory.mktemp(family), family)
    return load(folder, f"{before}{THOUGHT}{after}{ANSWER}{FAMILIES[family].end}")


@pytest.mark.usefixtures("real_model")
@pytest.mark.parametrize("mode", MODES)
def test_a_local_models_thinking_is_neither_scored_nor_shown(thinker: "LocalModel", mode: StreamMode) -> None:
    *events, made = guard(thinker).stream(QUESTION, mode=mode)
    assert isinstance(made, Decision)
    assert (made.action, made.text, shown(events)) == (Action.ANSWER, ANSWER, ANSWER)
    attempt = made.attempts[0]
    assert set(attempt.signatures) == {"prompt", "last", "mean"}
    # Thinking is paid for.
    assert attempt.tokens is not None
    assert attempt.tokens > len(thinker.text_tokens(ANSWER))


@pytest.mark.usefixtures("real_model")
def test_a_local_model_that_is_cut_in_its_thoughts_gives_no_answer(tmp_path: Path) -> None:
    from tests.models.thinkers import load, write_folder

    model = load(write_folder(tmp_path, "deepseek"), THOUGHT * 9, max_new_tokens=20)
    made = guard(model).decide(QUESTION)
    assert (made.action, made.rules) == (Action.ESCALATE, ("thoughtful",))
    attempt = made.attempts[0]
    assert (attempt.text, attempt.finish_reason) == ("", "length")
