"""The parts that users' own tests are made of."""

import doctest
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ilis_guard.testing
from ilis_guard.errors import ConfigError, ReviewError, ScoringError, TicketNotFoundError, TicketResolvedError
from ilis_guard.policy import Policy
from ilis_guard.review import ReviewQueue
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue, fake_guard
from ilis_guard.types import Action, Attempt, Generation, Message, Request, Score, Verdict
from tests.explained import problem
from tests.fingerprints import fingerprint

GUARANTEED = """
version: 1
name: p
guarantee: {max_error: 0.1}
rules:
  - {id: covered, when: certified, do: answer}
  - {id: larger, do: retry}
  - {id: person, do: escalate}
"""


def says(model: FakeModel, prompt: str = "?") -> Generation:
    return model.generate([Message(role="user", content=prompt)])


def test_examples_of_the_testing_module_run() -> None:
    results = doctest.testmod(ilis_guard.testing)
    assert results.attempted >= 9
    assert results.failed == 0


def test_a_model_says_one_thing_or_one_after_the_other_or_by_prompt() -> None:
    same, series = FakeModel("a"), FakeModel(["a", RuntimeError("b"), "c"])
    by_prompt = FakeModel({"one": "1", "two": RuntimeError("2")})
    assert [says(same).text, says(same).text] == ["a", "a"]
    assert says(series).text == "a"
    with pytest.raises(RuntimeError, match="b"):
        says(series)
    assert says(series).text == "c"
    assert says(by_prompt, "one").text == "1"
    with pytest.raises(RuntimeError, match="2"):
        says(by_prompt, "two")


def test_a_call_without_a_reply_is_an_error() -> None:
    series = FakeModel(["a"])
    says(series)
    with pytest.raises(LookupError, match="the script ended"):
        says(series)
    with pytest.raises(LookupError):
        says(FakeModel({"one": "1"}), "two")


def test_fake_model_records_all_calls() -> None:
    model = FakeModel(RuntimeError("no"))
    with pytest.raises(RuntimeError):
        says(model, "first")
    assert model.calls == [(Message(role="user", content="first"),)]


def test_signatures_are_proper_maps_that_depend_on_the_text_alone() -> None:
    first, again, other = says(FakeModel("a b")), says(FakeModel("a b")), says(FakeModel("c"))
    assert set(first.signatures) == {"prompt", "last", "mean"}
    for position, signature in first.signatures.items():
        assert signature.dtype == np.float32
        assert signature.shape == (4, 4)
        assert (signature >= 0).all()
        assert not signature.diagonal().any()
        assert np.array_equal(signature, again.signatures[position])
        assert not np.array_equal(signature, other.signatures[position])
    assert not np.array_equal(first.signatures["last"], first.signatures["mean"])
    assert (first.tokens, first.statistics) == (2, again.statistics)
    assert says(FakeModel("a", layers=6)).signatures["mean"].shape == (6, 6)


def test_an_empty_text_has_no_tokens_to_look_into() -> None:
    empty = says(FakeModel(""))
    assert (empty.tokens, empty.statistics, set(empty.signatures)) == (0, None, {"prompt"})


def test_fake_model_returns_whole_generations_unchanged() -> None:
    whole = Generation(text="cut", tokens=7, prompt_tokens=1, finish_reason="length", seconds=2.0)
    assert says(FakeModel([whole])) is whole


def test_fake_model_has_the_given_fingerprint() -> None:
    known = fingerprint()
    assert FakeModel("a").fingerprint is None
    assert FakeModel("a", fingerprint=known).fingerprint is known


def test_a_scorer_says_one_thing_or_one_after_the_other_or_by_text() -> None:
    a, b = says(FakeModel("a")), says(FakeModel("b"))
    whole = Score(uncertainty=0.4, typicality=0.3)
    assert FixedScorer(0.2).score(a) == Score(uncertainty=0.2, typicality=1.0)
    assert FixedScorer(0.2, typicality=0.1).score(a) == Score(uncertainty=0.2, typicality=0.1)
    series = FixedScorer([0.2, whole])
    assert [series.score(a).uncertainty, series.score(a)] == [0.2, whole]
    by_text = FixedScorer({"a": 0.9, "b": ScoringError("no map")})
    assert by_text.score(a).uncertainty == 0.9
    with pytest.raises(ScoringError, match="no map"):
        by_text.score(b)


def escalated(queue: ReviewQueue, decision: str = "d") -> str:
    return queue.escalate(
        decision=decision,
        request=Request.of("?"),
        attempts=[Attempt(tier="small", text="yes")],
        queue="q",
        policy="p",
        rule="r",
    ).id


def test_a_queue_keeps_the_rules_of_a_real_one() -> None:
    with InMemoryQueue() as queue:
        ticket = escalated(queue)
        assert escalated(queue) == ticket
        assert [found.id for found in queue.list(state="open")] == [ticket]
        assert queue.resolve(ticket[:8], Verdict.ACCEPT) == queue.resolve(ticket, Verdict.ACCEPT)
        with pytest.raises(TicketResolvedError):
            queue.resolve(ticket, Verdict.REJECT)
        with pytest.raises(TicketNotFoundError):
            queue.get("0" * 32)


def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return lambda: [path.name for path in tmp_path.iterdir()]


def test_a_closed_queue_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left = folders(monkeypatch, tmp_path)
    queue = InMemoryQueue()
    escalated(queue)
    assert len(left()) == 1
    queue.close()
    queue.close()
    assert left() == []
    with pytest.raises(ReviewError):
        escalated(queue)


def test_a_forgotten_queue_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left = folders(monkeypatch, tmp_path)
    fake_guard("default", {"small": 0.9}).decide("?")
    gc.collect()
    assert left() == []


def test_queues_share_no_tickets() -> None:
    with InMemoryQueue() as one, InMemoryQueue() as other:
        escalated(one)
        assert other.list() == []


def test_a_fake_guard_has_a_real_policy_and_fake_tiers() -> None:
    with fake_guard("default", {"small": RuntimeError("down"), "middle": None, "large": 0.1}) as guard:
        made = guard.decide("?")
    assert (made.action, made.text) == (Action.ANSWER, "answer of large")
    assert [problem(attempt) for attempt in made.attempts] == [
        "UnexpectedError: RuntimeError: down",
        "ScoringError: the tier 'middle' has no bundle, so its answers have no score",
        "",
    ]


def test_a_fake_guard_takes_a_whole_score_and_a_queue_of_yours() -> None:
    with InMemoryQueue() as queue:
        guard = fake_guard("clinical", {"small": Score(uncertainty=0.01, typicality=0.001)}, review=queue)
        made = guard.decide("?")
        assert made.rule == "unknown-ground"
        assert queue.list(queue="clinician") == [made.ticket]


def test_fake_guard_checks_policies_as_a_real_one() -> None:
    with pytest.raises(ConfigError, match="at least one tier"):
        fake_guard("default", {})
    with pytest.raises(ConfigError, match=r"prompts names the tiers \['smal'\], which don't exist"):
        fake_guard("cost-first", {"small": 0.1, "large": 0.1}, prompts={"small": 0.5, "smal": 0.95})
    with pytest.raises(ConfigError, match=r"thresholds names the tiers \['b'\], which don't exist; there are \['a'\]"):
        fake_guard("clinical", {"a": 0.1}, thresholds={"b": 0.5})
    with pytest.raises(ConfigError, match=r"costs names the tiers \['b'\]"):
        fake_guard("clinical", {"a": 0.1}, costs={"b": 0.5})
    with pytest.raises(ConfigError, match="the policy 'default' guarantees nothing"):
        fake_guard("default", {"a": 0.1}, thresholds={"a": 0.5})


def test_fake_guards_guarantee_holds_up_to_given_thresholds() -> None:
    scores = {"small": 0.2, "middle": 0.2, "large": 0.2}
    with fake_guard("shadow-roll-out", scores, thresholds={"small": 0.2}) as guard:
        made = guard.decide("?")
    assert made.thresholds == {"small": 0.2, "middle": None, "large": None}
    policy = Policy.parse(GUARANTEED)
    with fake_guard(policy, scores, thresholds={"small": 0.19, "large": 0.2}) as guard:
        assert guard.decide("?").rules == ("larger", "larger", "covered")
    with fake_guard(policy, scores) as guard:
        assert guard.decide("?").rules == ("larger", "larger", "person")


def test_fake_guards_tiers_have_the_given_costs() -> None:
    scores = {"small": 0.9, "large": 0.9}
    with fake_guard("cost-first", scores, prompts={"small": 0.1}) as guard:
        assert guard.decide("?").cost == 0.0
    with fake_guard("cost-first", scores, prompts={"small": 0.1}, costs={"small": 0.01, "large": 0.5}) as guard:
        assert guard.decide("?").cost == pytest.approx(0.51)
