"""What may be asked, how it is refused, and asking from an event loop."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from ilis_guard import Policy, Tier
from ilis_guard.errors import RequestError
from ilis_guard.guard import Guard
from ilis_guard.testing import FakeModel, FixedScorer
from ilis_guard.types import Action, Generation, Message, Request

SECRET = "my diagnosis is xyzzy"


def user(content: Any = SECRET) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "the prompt is empty (message number 1)"),
        (" \n\t", "the prompt is empty (message number 1)"),
        ([], "there are no messages"),
        ([user(), user(" ")], "the prompt is empty (message number 2)"),
        ([user(), {"role": "assistant", "content": SECRET}], "the last message (number 2) is by 'assistant'"),
        ([{"role": "system", "content": SECRET}], "the last message (number 1) is by 'system'"),
        ([{"role": "tool", "content": SECRET}, user()], "message number 1 has the role 'tool'"),
        ([{"role": ["user"], "content": SECRET}], "message number 1 has the role ['user']"),
        ([{"content": SECRET}], "message number 1 must have exactly the keys 'role' and 'content', got the keys ['con"),
        ([user() | {"name": SECRET}], "got the keys ['content', 'name', 'role']"),
        ([SECRET], "message number 1 must have exactly the keys 'role' and 'content', got a str"),
        ([user([SECRET])], "message number 1 has content of type list"),
        ([user(None)], "message number 1 has content of type NoneType"),
        (b"xyzzy", "message number 1 must have exactly the keys 'role' and 'content', got a int"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused_unquoted(build: Callable[..., Guard], prompt: Any, words: str) -> None:
    model = FakeModel("yes")
    with pytest.raises(RequestError) as refused:
        build("answer", {"small": (model, FixedScorer(0.1))}).decide(prompt)
    assert words in str(refused.value)
    assert "xyzzy" not in str(refused.value)
    assert model.calls == []


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"not a name": 1}, "the label name 'not a name' isn't an identifier"),
        ({7: "x"}, "the label name 7 isn't an identifier"),
        ({"topic": None}, "the label 'topic' is a NoneType"),
        ({"topic": [SECRET]}, "the label 'topic' is a list"),
        ({"risk": float("nan")}, "the label 'risk' is a float"),
        ({"risk": float("inf")}, "the label 'risk' is a float"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_unquoted(build: Callable[..., Guard], labels: Any, words: str) -> None:
    with pytest.raises(RequestError) as refused:
        build("answer", {"small": (FakeModel("yes"), FixedScorer(0.1))}).decide("?", labels=labels)
    assert words in str(refused.value)
    assert "xyzzy" not in str(refused.value)


async def test_adecide_checks_requests_before_starting_a_thread(build: Callable[..., Guard]) -> None:
    with pytest.raises(RequestError, match="the prompt is empty"):
        await build("answer", {"small": (FakeModel("yes"), FixedScorer(0.1))}).adecide(" ")


def test_the_model_gets_the_whole_conversation(build: Callable[..., Guard]) -> None:
    model = FakeModel("4")
    turns: list[Message | Mapping[str, str]] = [
        Message(role="system", content="Be brief."),
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And 2 + 2?"},
    ]
    made = build("answer", {"small": (model, FixedScorer(0.1))}).decide(turns)
    assert made.action is Action.ANSWER
    assert [(turn.role, turn.content) for turn in model.calls[0]] == [
        ("system", "Be brief."),
        ("user", "1 + 1?"),
        ("assistant", "2"),
        ("user", "And 2 + 2?"),
    ]


class WaitingModel(FakeModel):
    """Answers once it is let go."""

    def __init__(self) -> None:
        super().__init__("yes")
        self.go = threading.Event()

    def generate(self, messages: Sequence[Message], **options: Any) -> Generation:
        assert self.go.wait(30), "nobody let the model go: the event loop stands still"
        return super().generate(messages, **options)


async def test_adecide_lets_the_event_loop_go_on(build: Callable[..., Guard]) -> None:
    model = WaitingModel()
    pending = asyncio.create_task(build("answer", {"small": (model, FixedScorer(0.1))}).adecide("?"))
    # If `adecide` held the loop, these turns would never come, and the model would wait for ever.
    for _ in range(3):
        await asyncio.sleep(0.01)
    assert not pending.done()
    model.go.set()
    assert (await pending).text == "yes"


async def test_decisions_made_at_once_do_not_mix(build: Callable[..., Guard]) -> None:
    asked = [f"question {number}" for number in range(30)]
    scores = {f"answer to {question}": number / 30 for number, question in enumerate(asked)}
    small = FakeModel({question: f"answer to {question}" for question in asked})
    large = FakeModel({question: f"second answer to {question}" for question in asked})
    guard = build("retry-then-answer", {"small": (small, FixedScorer(scores)), "large": (large, FixedScorer(0.1))})
    made = await asyncio.gather(*(guard.adecide(question) for question in asked))
    assert [[attempt.text for attempt in decision.attempts] for decision in made] == [
        [f"answer to {question}"] + ([f"second answer to {question}"] if number / 30 >= 0.2 else [])
        for number, question in enumerate(asked)
    ]
    assert [decision.attempts[0].uncertainty for decision in made] == list(scores.values())
    assert len({decision.id for decision in made}) == len(asked)


@pytest.fixture
def plain() -> Guard:
    policy = Policy.parse("version: 1\nname: p\nrules: [{id: sure, when: uncertainty < 0.5, do: answer}]\n")
    return Guard(tiers=[Tier(name="small", model=FakeModel("yes"), scorer=FixedScorer(0.1))], policy=policy)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(messages=()), "there are no messages"),
        (Request(messages=(Message(role="assistant", content="a"),)), "the last message (number 1) is by 'assistant'"),
        (Request(messages=(Message(role="user", content="q"),), labels={"no name": 1}), "isn't an identifier"),
        (Request(messages=(Message(role="user", content="q"),), stop=("",)), "`stop` is a list of strings"),
    ],
)
def test_requests_built_without_of_are_checked_by_the_guard(plain: Guard, request_: Request, words: str) -> None:
    with pytest.raises(RequestError) as refused:
        plain.decide(request_)
    assert words in str(refused.value)


def test_labels_and_stops_beside_a_request_are_refused_not_dropped(plain: Guard) -> None:
    request = Request.of("q", {"topic": "a"})
    assert plain.decide(request).labels == {"topic": "a"}
    for options in ({"labels": {"topic": "b"}}, {"stop": ("x",)}):
        with pytest.raises(RequestError, match="a Request holds its own labels and stop sequences"):
            plain.decide(request, **options)
