"""Whatever goes wrong with a model, a score or the queue ends as a decision that isn't an answer, with its reason."""

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ilis_guard.errors import (
    ModelError,
    PromptTooLongError,
    ReviewError,
    ScoringError,
    SignatureError,
    TransientModelError,
)
from ilis_guard.guard import Guard
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Action, Decision, ErrorInfo, Generation, Request, Score, Statistics
from ilis_guard.types.rulings import json_values
from tests.explained import problem, why

QUESTION = "What is the boiling point of gallium?"
# As eager as a policy can be: it answers whatever the engine lets it answer.
EAGER = "version: 1\nname: eager\nrules:\n  - {id: any, when: uncertainty <= 1.0 || uncertainty > 1.0, do: answer}\n"
ESCALATE_ERRORS = "version: 1\nname: p\nrules:\n  - {id: failed, when: error != '', do: escalate}\n"
EAGER_ON_ERROR = EAGER + "  - {id: failed, when: error != '', do: abstain, say: Sorry.}\n"


def bare(text: Any = "yes") -> Generation:
    return Generation(text=text, tokens=1, prompt_tokens=1, finish_reason="stop", seconds=0.0)


def check_failed(made: Decision, error: str) -> None:
    assert (made.action, made.text, made.uncertainty) == (Action.ABSTAIN, "Sorry.", None)
    assert problem(made.attempts[0]) == error
    assert why(made)[0] == f"tier 'small' failed: {error}"
    assert why(made)[1].startswith("rule 'any' passed over: ")


@pytest.mark.parametrize(
    ("score", "error"),
    [
        (math.nan, "ScoringError: the uncertainty must lie between 0 and 1, got nan"),
        (math.inf, "ScoringError: the uncertainty must lie between 0 and 1, got inf"),
        (1.01, "ScoringError: the uncertainty must lie between 0 and 1, got 1.01"),
        (-0.01, "ScoringError: the uncertainty must lie between 0 and 1, got -0.01"),
        (Score(uncertainty=None, typicality=1.0), "ScoringError: the uncertainty must be a number, got a NoneType"),  # type: ignore[arg-type]
        (Score(uncertainty="0.1", typicality=1.0), "ScoringError: the uncertainty must be a number, got a str"),  # type: ignore[arg-type]
        (Score(uncertainty=0.1, typicality=1.5), "ScoringError: the typicality must lie between 0 and 1, got 1.5"),
        (Score(uncertainty=0.1, typicality=None), "ScoringError: the typicality must be a number, got a NoneType"),  # type: ignore[arg-type]
        (ScoringError("no map"), "ScoringError: no map"),
        (ZeroDivisionError("oh"), "UnexpectedError: ZeroDivisionError: oh"),
    ],
)
def test_no_answer_without_a_proper_score(build: Callable[..., Guard], score: Any, error: str) -> None:
    guard = build(EAGER_ON_ERROR, {"small": (FakeModel("yes"), FixedScorer(score))})
    made = guard.decide(QUESTION)
    check_failed(made, error)
    # What the model said isn't lost: a reviewer may want to see it.
    assert made.attempts[0].text == "yes"


def test_a_scorer_that_returns_no_score_gives_no_answer(build: Callable[..., Guard]) -> None:
    class Forgetful:
        def score(self, generation: Generation) -> Any:
            """Returns nothing."""

    made = build(EAGER_ON_ERROR, {"small": (FakeModel("yes"), Forgetful())}).decide(QUESTION)
    assert made.action is Action.ABSTAIN
    assert problem(made.attempts[0]) == "ScoringError: a scorer returns a Score, got a NoneType"


def test_a_typicality_that_cannot_be_told_is_missing_and_not_a_number(build: Callable[..., Guard]) -> None:
    policy = (
        EAGER.replace("uncertainty <= 1.0", "typicality >= 0.0 && uncertainty <= 1.0") + "  - {id: ask, do: escalate}\n"
    )
    with InMemoryQueue() as queue:
        scorer = FixedScorer(0.1, typicality=math.nan)
        made = build(policy, {"small": (FakeModel("yes"), scorer)}, review=queue).decide(QUESTION)
        assert made.ticket is not None
        assert (made.rule, made.attempts[0].typicality, problem(made.attempts[0])) == ("ask", None, "")
        assert queue.get(made.ticket.id).attempts[0]["typicality"] is None


def test_statistics_that_are_no_numbers_dont_keep_a_request_from_a_person(build: Callable[..., Guard]) -> None:
    overflowed = Statistics(logprob_sum=math.nan, logprob_mean=-math.inf, entropy_mean=math.nan, margin_min=0.5)
    model = FakeModel(replace(bare(), statistics=overflowed))
    policy = "version: 1\nname: p\nrules:\n  - {id: ask, do: escalate}\n"
    with InMemoryQueue() as queue:
        made = build(policy, {"small": (model, FixedScorer(0.1))}, review=queue).decide(QUESTION)
        assert made.ticket is not None
        told = queue.get(made.ticket.id).attempts[0]["statistics"]
    assert told == {"logprob_sum": None, "logprob_mean": None, "entropy_mean": None, "margin_min": 0.5}
    json.dumps(made.to_dict(), allow_nan=False)


def test_a_tier_without_a_scorer_never_answers(build: Callable[..., Guard]) -> None:
    made = build(EAGER_ON_ERROR, {"small": (FakeModel("yes"), None)}).decide(QUESTION)
    check_failed(made, "ScoringError: the tier 'small' has no bundle, so its answers have no score")


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_answer_is_none(build: Callable[..., Guard], text: str) -> None:
    made = build(EAGER_ON_ERROR, {"small": (FakeModel(bare(text)), FixedScorer(0.0))}).decide(QUESTION)
    check_failed(made, "ScoringError: there is nothing to score: the answer is empty (1 tokens)")


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (ModelError("it refused"), "ModelError: it refused"),
        (SignatureError("layer 3 didn't fire"), "SignatureError: layer 3 didn't fire"),
        (PromptTooLongError("9 tokens, 8 fit"), "PromptTooLongError: 9 tokens, 8 fit"),
        (RuntimeError("CUDA out of memory"), "UnexpectedError: RuntimeError: CUDA out of memory"),
        (StopIteration(), "UnexpectedError: StopIteration: "),
    ],
)
def test_a_model_that_raises_is_called_once_and_gives_no_answer(
    build: Callable[..., Guard], raised: Exception, error: str
) -> None:
    model = FakeModel(raised)
    made = build(EAGER_ON_ERROR, {"small": (model, FixedScorer(0.0))}).decide(QUESTION)
    check_failed(made, error)
    assert len(model.calls) == 1
    assert (made.attempts[0].text, dict(made.attempts[0].signatures)) == ("", {})


@pytest.mark.parametrize("returned", [None, "yes", {"text": "yes"}])
def test_a_model_that_returns_no_generation_gives_no_answer(build: Callable[..., Guard], returned: Any) -> None:
    class Careless(FakeModel):
        def generate(self, messages: Any, **options: Any) -> Any:  # noqa: ARG002 - whatever is asked
            return returned

    made = build(EAGER_ON_ERROR, {"small": (Careless("x"), FixedScorer(0.0))}).decide(QUESTION)
    check_failed(made, f"ModelError: the model must return a Generation, got a {type(returned).__name__}")


@pytest.mark.parametrize(
    ("part", "value", "error"),
    [
        ("statistics", {"margin_min": 1.0}, "statistics are Statistics or None, got a dict"),
        (
            "statistics",
            Statistics(
                logprob_sum=-1.0,
                logprob_mean=-1.0,
                entropy_mean=0.5,
                margin_min="0.5",  # type: ignore[arg-type]  # what a model of a user's own may return
            ),
            "statistics are numbers, got a str as margin_min",
        ),
        ("finish_reason", 5, "finish_reason is 'stop', 'length' or None"),
        ("finish_reason", "secret", "finish_reason is 'stop', 'length' or None"),
        ("signatures", {"last": [[0.0]]}, "signatures are a mapping of NumPy arrays"),
        ("signatures", None, "signatures are a mapping of NumPy arrays"),
        ("departures", ("secret",), "departures are among ("),
        ("departures", 5, "departures are among ("),
        ("departures", None, "departures are among ("),
        ("departures", ([],), "departures are among ("),
    ],
)
def test_malformed_generation_fails_the_attempt(build: Callable[..., Guard], part: str, value: Any, error: str) -> None:
    model = FakeModel(replace(bare(), **{part: value}))
    with InMemoryQueue() as queue:
        made = build(ESCALATE_ERRORS, {"small": (model, FixedScorer(0.1))}, review=queue).decide(QUESTION)
        assert made.action is Action.ESCALATE
        assert made.ticket is not None
        assert queue.get(made.ticket.id).attempts[0]["error"] == json_values(made.attempts[0].error)
    assert problem(made.attempts[0]).startswith("ModelError: a Generation's ")
    assert error in problem(made.attempts[0])
    assert "secret" not in json.dumps(made.to_dict())


def test_statistics_in_numpys_numbers_are_read(build: Callable[..., Guard]) -> None:
    numbers: dict[str, Any] = dict.fromkeys(
        ("logprob_sum", "logprob_mean", "entropy_mean", "margin_min"), np.float32(0.5)
    )
    said = replace(bare(), statistics=Statistics(**numbers))
    made = build("answer", {"small": (FakeModel(said), FixedScorer(0.1))}).decide(QUESTION)
    assert made.action is Action.ANSWER
    assert json.loads(json.dumps(made.to_dict()))["attempts"][0]["statistics"]["margin_min"] == 0.5


async def test_a_model_that_cancels_itself_cancels_no_request(build: Callable[..., Guard]) -> None:
    class Cancelling(FakeModel):
        def generate(self, *_: Any, **__: Any) -> Generation:
            raise asyncio.CancelledError

    with InMemoryQueue() as queue:
        guard = build(ESCALATE_ERRORS, {"small": (Cancelling(""), FixedScorer(0.1))}, review=queue)
        made = await guard.adecide(QUESTION)
    assert (made.action, problem(made.attempts[0])) == (
        Action.ESCALATE,
        "ModelError: the model of the tier 'small' cancelled its own call",
    )


def test_a_larger_tier_may_answer_where_the_first_one_failed(build: Callable[..., Guard]) -> None:
    policy = (
        "version: 1\nname: p\nrules:\n  - {id: larger, when: error != '', do: retry}\n" + EAGER.split("rules:\n")[1]
    )
    tiers = {"small": (FakeModel(RuntimeError("x")), FixedScorer(0.0)), "large": (FakeModel("yes"), FixedScorer(0.1))}
    made = build(policy, tiers).decide(QUESTION)
    assert (made.action, made.text, made.rules) == (Action.ANSWER, "yes", ("larger", "any"))
    assert problem(made.attempts[0]) == "UnexpectedError: RuntimeError: x"


def test_a_model_that_fails_in_passing_is_called_three_times(build: Callable[..., Guard]) -> None:
    model = FakeModel([TransientModelError("busy")] * 3 + ["too late"])
    made = build(EAGER_ON_ERROR, {"small": (model, FixedScorer(0.0))}).decide(QUESTION)
    check_failed(made, "TransientModelError: busy")
    assert len(model.calls) == 3


def test_a_model_that_recovers_answers(build: Callable[..., Guard]) -> None:
    model = FakeModel([TransientModelError("busy"), TransientModelError("busy"), "yes"])
    made = build(EAGER_ON_ERROR, {"small": (model, FixedScorer(0.1))}).decide(QUESTION)
    assert (made.action, made.text, len(made.attempts), len(model.calls)) == (Action.ANSWER, "yes", 1, 3)


def test_permanent_error_after_a_transient_one_ends_the_calls(build: Callable[..., Guard]) -> None:
    model = FakeModel([TransientModelError("busy"), ModelError("refused"), "yes"])
    made = build(EAGER_ON_ERROR, {"small": (model, FixedScorer(0.1))}).decide(QUESTION)
    check_failed(made, "ModelError: refused")
    assert len(model.calls) == 2


class BrokenQueue(InMemoryQueue):
    """A queue whose disk is full."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def escalate(self, **_: Any) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [ReviewError("the disk is full"), RuntimeError("the disk is full")])
def test_an_escalation_that_cannot_be_stored_abstains_and_promises_nothing(
    build: Callable[..., Guard], error: Exception
) -> None:
    guard = build("escalate", {"small": (FakeModel("2400 °C"), FixedScorer(0.6))}, review=BrokenQueue(error))
    made = guard.decide(QUESTION)
    assert (made.action, made.text, made.ticket, made.rule) == (Action.ABSTAIN, "", None, "person")
    assert made.ticket_error == ErrorInfo.of(error)
    assert made.ticket_error.detail.endswith("the disk is full")


def test_an_escalation_to_a_database_that_is_gone_abstains(build: Callable[..., Guard]) -> None:
    queue = InMemoryQueue()
    guard = build("escalate", {"small": (FakeModel("2400 °C"), FixedScorer(0.6))}, review=queue)
    queue.close()
    made = guard.decide(QUESTION)
    assert (made.action, made.text, made.ticket) == (Action.ABSTAIN, "", None)
    assert "abstained: the ticket couldn't be stored: QueueStorageError: " in why(made)[-1]


def test_a_request_whose_model_failed_can_be_escalated(build: Callable[..., Guard]) -> None:
    policy = "version: 1\nname: p\nrules:\n  - {id: failed, when: error != '', do: escalate}\n"
    with InMemoryQueue() as queue:
        guard = build(policy, {"small": (FakeModel(RuntimeError("x")), FixedScorer(0.0))}, review=queue)
        made = guard.decide(QUESTION)
        assert made.ticket is not None
        record = queue.get(made.ticket.id)
    assert (made.ticket.queue, record.proposed) == ("default", None)
    assert record.request == Request.of(QUESTION).to_dict()
