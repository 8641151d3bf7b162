"""What departs, what is refused, and scores as JSON."""

import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from ilis_guard.types import DEPARTURES, Departure, Fingerprint, Message, RemoteFingerprint, Score, Wording, in_order
from tests.fingerprints import fingerprint

FITTED = fingerprint()
OTHER: dict[str, Any] = {
    "weights": "cd",
    "precision": "nf4",
    "dtype": "bfloat16",
    "layers": 31,
    "hidden": 577,
    "site": "residual",
    "taps": "model.layers.*",
    "temperature": 2.0,
    "decoding": "{}",
    "prompt": "ef",
}
SOFT: dict[str, Departure] = {"decoding": "decoding", "prompt": "wording"}
REMOTE = {
    "temperature": "decoding",
    "seed": "decoding",
    "stop": "decoding",
    "max_tokens": "length",
    "base_url": None,
    "logprobs": None,
    "tools": None,
}
ROLES = st.sampled_from(["system", "user", "assistant"])
CONVERSATIONS = st.lists(st.builds(Message, role=ROLES, content=st.text(max_size=3)), max_size=4).map(
    lambda turns: [*turns, Message(role="user", content="?")]
)


@given(st.sets(st.sampled_from(sorted(OTHER))))
def test_every_difference_of_a_fingerprint_is_refused_or_departs(changed: set[str]) -> None:
    assert OTHER.keys() == {field.name for field in fields(Fingerprint)}
    other = replace(FITTED, **{name: OTHER[name] for name in changed})
    assert set(FITTED.differences(other)) == changed
    assert set(FITTED.hard_differences(other)) == changed - SOFT.keys()
    assert set(FITTED.departures(other)) == {SOFT[name] for name in changed & SOFT.keys()}


@given(st.sets(st.sampled_from(sorted(REMOTE))))
def test_only_arguments_that_choose_tokens_or_limit_answers_depart(changed: set[str]) -> None:
    fitted = RemoteFingerprint(chat_model="p:C", model="m", arguments={})
    other = replace(fitted, arguments=dict.fromkeys(changed, 1))
    assert set(fitted.hard_differences(other)) == {f"arguments.{name}" for name in changed if REMOTE[name] is None}
    assert set(fitted.departures(other)) == {soft for name in changed if (soft := REMOTE[name]) is not None}
    assert fitted.hard_differences(replace(other, model="another")) == ("model", *fitted.hard_differences(other))
    assert FITTED.hard_differences(fitted)


@given(st.lists(st.sampled_from(DEPARTURES)))
def test_departures_have_one_order_and_a_score_survives_json(names: list[Departure]) -> None:
    found = in_order(names)
    assert set(found) == set(names)
    assert sorted(found, key=DEPARTURES.index) == list(found)
    score = Score(uncertainty=0.5, typicality=math.nan, rank=0.25, departures=found)
    told = json.loads(json.dumps(score.to_dict(), allow_nan=False))
    assert told["calibrated"] is score.calibrated is (not names)
    back = Score.read(told)
    assert (back.uncertainty, back.rank, back.departures) == (0.5, 0.25, found)
    assert math.isnan(back.typicality)


@given(CONVERSATIONS, CONVERSATIONS)
def test_a_wording_departs_from_another_by_what_they_have_of_their_own(
    one: list[Message], other: list[Message]
) -> None:
    mine, theirs = Wording.of(one, prompt="a"), Wording.of(other, prompt="b")
    assert mine.departures(mine) == ()
    assert "wording" in mine.departures(theirs)
    assert set(mine.departures(theirs)) == set(theirs.departures(mine))
    same_question = [*one[:-1], Message(role="user", content="another question")]
    assert Wording.of(same_question, prompt="a") == mine


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_turns_before_the_question_are_a_history(role: Any) -> None:
    turns = [Message(role=role, content="Hello."), Message(role="user", content="?")]
    assert Wording.of(turns, prompt="a").history
