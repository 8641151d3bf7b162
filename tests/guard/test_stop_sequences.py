"""Stop sequences on their way through the guard."""

from typing import Any

import pytest

from ilis_guard import Action, Guard, Policy, Tier
from ilis_guard.cascade.stream import TextDelta
from ilis_guard.errors import RequestError
from ilis_guard.models.remote import RemoteModel
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Request, StreamMode

POLICY = """
version: 1
name: stopping
budget: {max_seconds: 60}
rules:
  - {id: sure, when: uncertainty < 0.5, do: answer}
  - {id: larger, when: '!last_tier', do: retry}
  - {id: person, do: escalate, to: people}
"""
SCORES = {"It": 0.3, "It is": 0.1, "It is Os": 0.9, "It is Oslo": 0.9}


def guard(*models: Any, review: InMemoryQueue | None = None) -> Guard:
    tiers = [Tier(name=f"t{number}", model=model, scorer=FixedScorer(SCORES)) for number, model in enumerate(models)]
    return Guard(tiers=tiers, policy=Policy.parse(POLICY), review=review or InMemoryQueue())


async def test_answer_is_scored_without_the_text_after_a_stop_sequence() -> None:
    guarded = guard(FakeModel("It is Oslo"))
    assert guarded.decide("q").action is Action.ESCALATE
    for made in (guarded.decide("q", stop=[" Os"]), await guarded.adecide("q", stop=[" Os"])):
        assert (made.action, made.text, made.uncertainty, made.attempts[0].text) == (
            Action.ANSWER,
            "It is",
            0.1,
            "It is",
        )


def test_every_tier_ends_there() -> None:
    made = guard(FakeModel("It is Oslo"), FakeModel("It is Oslo")).decide("q", stop=["lo"])
    assert [(attempt.text, attempt.uncertainty) for attempt in made.attempts] == [("It is Os", 0.9)] * 2


@pytest.mark.parametrize("mode", ["hold", "optimistic", "early_stop"])
def test_a_stream_ends_there_too(mode: StreamMode) -> None:
    *pieces, made = guard(FakeModel("It is Oslo")).stream("q", stop=["Os"], mode=mode)
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == "It is"
    assert made.text == "It is"  # type: ignore[union-attr]  # the last event is the decision


def test_a_reviewer_sees_where_the_answer_had_to_end() -> None:
    with InMemoryQueue() as queue:
        made = guard(FakeModel("It is Oslo"), review=queue).decide("q", stop=["Rome"])
        assert made.ticket is not None
        assert queue.get(made.ticket.id).request["stop"] == ["Rome"]


@pytest.mark.parametrize("stop", ["Os", [""], [1], [None]])
def test_stop_must_be_a_list_of_strings(stop: Any) -> None:
    with pytest.raises(RequestError, match="`stop`"):
        Request.of("q", stop=stop)


def test_a_model_that_takes_none_is_refused_before_any_is_asked() -> None:
    class Own:
        fingerprint = None

        def generate(self, messages: Any) -> Any:
            raise AssertionError(f"it must not be asked, with {messages!r}")

    first = FakeModel("It is Oslo")
    with pytest.raises(RequestError, match=r"the tiers \['t1'\] can't end an answer"):
        guard(first, Own()).decide("q", stop=["Os"])
    assert first.calls == []


def test_a_remote_model_is_given_them() -> None:
    from langchain_core.language_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage

    given: list[Any] = []

    class Listening(GenericFakeChatModel):
        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> Any:
            given.append(stop)
            return super()._generate(messages, stop, run_manager, **options)

    model = RemoteModel(Listening(messages=iter([AIMessage("It is"), AIMessage("It is Oslo")])), reports_endings=False)
    guarded = guard(model)
    guarded.decide("q", stop=["Os"])
    guarded.decide("q")
    assert given == [["Os"], None]
