import json
import math
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda

from ilis_guard import Action, Guard, Policy, Tier, Verdict
from ilis_guard.errors import PolicyError, QuestionError, RequestError, ReviewError
from ilis_guard.lab.questions import read_questions
from ilis_guard.policy.facts import Facts
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.text import is_blank
from ilis_guard.types import Generation, Score, Statistics, to_float
from ilis_guard_langchain import ChatIlisGuard, GuardRunnable, wrap
from tests.server.servers import serve

POLICY = (
    "version: 1\nname: sure\nrules:\n- {id: sure, when: uncertainty < 0.5, do: answer}\n- {id: else, do: escalate}\n"
)
BLANK = {
    "nothing": "",
    "spaces": " \t\r\n\u00a0\u2003\u3000",
    "zero-width space": "\u200b",
    "joiners": "\u200c\u200d\u2060\u034f",
    "BOM": "\ufeff",
    "NUL": "\x00",
    "controls": "\x01\x1b\x7f\x85",
    "soft hyphen": "\u00ad",
    "bidi marks": "\u200e\u200f\u202a\u202e\u2066\u2069\u061c",
    "variation selectors": "\ufe0f\ufe0e\U000e0100\u180b",
    "tags": "\U000e0041\U000e007f",
    "Hangul fillers": "\u3164\u115f\u1160\uffa0",
    "braille blank": "\u2800",
    "marks without a letter": "\u0301\u20dd",
    "half a character": "\ud83d",
    "what couldn't be read": "\ufffd\ufffc",
    "reserved": "\ufdd0\uffff\U0001fffe\u2065",
    "all together": "\u200b\ufeff\x00\u00ad \u3164\ufe0f",
}
SHOWN = {
    "letters": "a",
    "a letter among them": "\u200b\ufeffé\u200b",
    "a digit": "7",
    "a full stop": ".",
    "a symbol": "€",
    "an emoji with a selector": "❤\ufe0f",
    "Han": "東",
    "Hangul": "한",
    "Thai": "ก็",
    "braille": "⠃",
    "private use": "\ue000",
    "a letter newer than Python": "\U0003fff0",
}


blanks = pytest.mark.parametrize("text", BLANK.values(), ids=BLANK.keys())


def guard_of(answer: str, *, uncertainty: Any = 0.1, review: Any = None, policy: str = POLICY) -> Guard:
    tier = Tier(name="only", model=FakeModel(answer), scorer=FixedScorer(uncertainty))
    return Guard(tiers=[tier], policy=Policy.parse(policy), review=review or InMemoryQueue())


@blanks
def test_a_text_that_shows_nothing_is_blank(text: str) -> None:
    assert is_blank(text)


@pytest.mark.parametrize("text", SHOWN.values(), ids=SHOWN.keys())
def test_a_text_that_shows_anything_is_not(text: str) -> None:
    assert not is_blank(text)


def test_no_letter_digit_sign_or_symbol_of_unicode_is_blank_but_those_that_show_nothing() -> None:
    everything = map(chr, range(0x110000))
    shown = [each for each in everything if unicodedata.category(each)[0] in "LNPS"]
    assert {each for each in shown if is_blank(each)} == set("\u115f\u1160\u3164\uffa0\u2800\U0001d159\ufffc\ufffd")


@blanks
def test_a_prompt_that_shows_nothing_is_refused_at_every_entrance(text: str) -> None:
    guard = guard_of("Oslo.")
    calls: list[Callable[[], Any]] = [
        lambda: guard.decide(text),
        lambda: guard.decide([{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]),
        lambda: list(guard.stream(text)),
        lambda: GuardRunnable(guard).invoke(text),
        lambda: ChatIlisGuard(guard=guard).invoke([HumanMessage(text)]),
        lambda: wrap(RunnableLambda(lambda _: "Oslo."), guard).invoke(text),
    ]
    for call in calls:
        with pytest.raises(RequestError, match="the prompt is empty"):
            call()
    assert guard.tiers[0].model.calls == []  # type: ignore[attr-defined]


@blanks
def test_an_answer_that_shows_nothing_is_no_answer_however_sure_the_score_is(text: str) -> None:
    with InMemoryQueue() as queue:
        decision = guard_of(text, review=queue).decide("Where is Oslo?")
        error = decision.attempts[-1].error
        assert error is not None
        assert (decision.action, error.kind) == (Action.ESCALATE, "ScoringError")
        assert "the answer is empty" in error.detail
        assert decision.ticket is not None
        assert queue.get(decision.ticket.id).proposed is None
        with pytest.raises(ReviewError, match="no answer to accept"):
            queue.resolve(decision.ticket.id, Verdict.ACCEPT, reviewer="ann")


@blanks
def test_a_chains_or_chat_models_answer_that_shows_nothing_is_no_answer(text: str) -> None:
    for chain in (lambda _: text, lambda _: AIMessage(text, response_metadata={"finish_reason": "stop"})):
        decision = wrap(RunnableLambda(chain), guard_of("never called"), output="decision").invoke("Where is Oslo?")
        assert (decision.action, decision.text) == (Action.ESCALATE, "")


@blanks
def test_in_shadow_mode_an_answer_that_shows_nothing_is_an_abstention(text: str) -> None:
    decision = guard_of(text, policy=f"{POLICY}mode: shadow\n").decide("Where is Oslo?")
    assert (decision.action, decision.text) == (Action.ABSTAIN, "")


@blanks
def test_a_correction_or_a_reviewers_name_that_shows_nothing_is_refused(text: str) -> None:
    with InMemoryQueue() as queue:
        decision = guard_of("Oslo.", uncertainty=0.9, review=queue).decide("Where is Oslo?")
        assert decision.ticket is not None
        with pytest.raises(ReviewError, match="needs the right answer"):
            queue.resolve(decision.ticket.id, Verdict.CORRECT, text=text, reviewer="ann")
        with pytest.raises(ReviewError, match="needs a reviewer's name"):
            queue.claim(decision.ticket.id, reviewer=text)
        assert queue.get(decision.ticket.id).ticket.state == "open"


@blanks
def test_a_policys_message_and_a_harvests_question_must_show_something(text: str, tmp_path: Any) -> None:
    if text.isprintable() and text:  # YAML takes no other characters
        with pytest.raises(PolicyError, match="is empty; leave the key out"):
            Policy.parse(f"version: 1\nname: n\nrules:\n- {{id: a, do: abstain, say: '{text}'}}\n")
    path = tmp_path / "questions.jsonl"
    for changed in ({"question": text}, {"answers": [text]}, {"id": text}, {"context": text}):
        path.write_text(json.dumps({"id": "q", "question": "Where?", "answers": ["Oslo"], **changed}))
        with pytest.raises(QuestionError, match=r"something in it to read|is blank|surrogate|half a character"):
            read_questions(path)


def test_the_server_refuses_a_prompt_of_zero_width_spaces_and_never_answers_with_them() -> None:
    with serve(guard_of("\u200b")) as served, served.http() as client:
        for prompt, status in (("\u200b\ufeff", 400), ("Where is Oslo?", 200)):
            body = {"model": "ilis-guard", "messages": [{"role": "user", "content": prompt}]}
            reply = client.post("/v1/chat/completions", json=body)
            assert reply.status_code == status
        message = reply.json()["choices"][0]["message"]
    assert message["content"] is None
    assert not is_blank(message["refusal"])


NO_NUMBERS = {
    "False": False,
    "True": True,
    "NumPy's False": np.bool_(False),
    "an array of False": np.array(False),
    "an array": np.array([0.1]),
    "text": "0.1",
    "None": None,
    "a complex number": 0.1 + 0j,
}


@pytest.mark.parametrize("value", NO_NUMBERS.values(), ids=NO_NUMBERS.keys())
@pytest.mark.parametrize("part", ["uncertainty", "typicality"])
def test_a_score_that_is_no_number_is_an_error(value: Any, part: str) -> None:
    score = Score(**({"uncertainty": 0.1, "typicality": 0.5} | {part: value}))
    decision = guard_of("Oslo.", uncertainty=score).decide("Where is Oslo?")
    error = decision.attempts[-1].error
    assert error is not None
    assert (decision.action, error.kind) == (Action.ESCALATE, "ScoringError")
    assert f"the {part} must be a number, got a {type(value).__name__}" in error.detail


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.001, 1.001, 10**400, np.float32(2)])
def test_an_uncertainty_that_is_no_share_is_an_error(value: Any) -> None:
    score = Score(uncertainty=value, typicality=0.5)
    decision = guard_of("Oslo.", uncertainty=score).decide("Where is Oslo?")
    error = decision.attempts[-1].error
    assert error is not None
    assert (decision.action, error.kind) == (Action.ESCALATE, "ScoringError")
    assert "the uncertainty must lie between 0 and 1" in error.detail


@pytest.mark.parametrize("value", [0, 0.25, np.float32(0.25), np.int64(0), Fraction(1, 4), Decimal("0.25")])
def test_any_real_number_is_one(value: Any) -> None:
    decision = guard_of("Oslo.", uncertainty=Score(uncertainty=value, typicality=math.nan)).decide("Where is Oslo?")
    assert (decision.action, decision.uncertainty) == (Action.ANSWER, float(value))
    assert type(decision.uncertainty) is float


@pytest.mark.parametrize("returned", [None, {"uncertainty": 0.1}, (0.1, 0.5), 0.1])
def test_what_a_scorer_returns_is_a_score(returned: Any) -> None:
    class Other:
        def score(self, generation: Generation) -> Any:  # noqa: ARG002 - a scorer's signature
            return returned

    tier = Tier(name="only", model=FakeModel("Oslo."), scorer=Other())
    decision = Guard(tiers=[tier], policy=Policy.parse(POLICY), review=InMemoryQueue()).decide("Where is Oslo?")
    error = decision.attempts[-1].error
    assert error is not None
    assert (decision.action, error.kind) == (Action.ESCALATE, "ScoringError")


def test_facts_and_statistics_that_are_booleans_are_missing_and_refused() -> None:
    policy = Policy.parse(POLICY)
    assert not Facts(uncertainty=False).has_score
    assert not Facts(uncertainty=0.1, threshold=True).certified
    assert policy.evaluate(Facts(uncertainty=False)).action is Action.ESCALATE
    statistics = Statistics(logprob_sum=-1.0, logprob_mean=False, entropy_mean=0.1, margin_min=0.1)
    answer = Generation(
        text="Oslo.", tokens=1, prompt_tokens=1, finish_reason="stop", seconds=0.0, statistics=statistics
    )
    tier = Tier(name="only", model=FakeModel(answer), scorer=FixedScorer(0.1))
    error = Guard(tiers=[tier], policy=policy, review=InMemoryQueue()).decide("Where is Oslo?").attempts[-1].error
    assert error is not None
    assert error.detail == "a Generation's statistics are numbers, got a bool as logprob_mean"


def test_numbers_too_large_for_a_float_are_infinite() -> None:
    assert (to_float(10**400), to_float(-(10**400))) == (math.inf, -math.inf)
