import math
from typing import Any

import pytest
from hypothesis import given, strategies as st
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

from ilis_guard.models.remote import RemoteModel, generation_of, statistics_of
from ilis_guard.policy.facts import Facts, fact_values
from ilis_guard.types import STATISTICS, Message, Statistics


def token(*probabilities: float, drawn: int = 0) -> dict[str, Any]:
    """As OpenAI tells of one token: the likeliest first, of which one was drawn."""
    listed = [{"token": str(at), "logprob": math.log(each)} for at, each in enumerate(probabilities)]
    return {**listed[drawn], "top_logprobs": listed}


def test_sum_mean_and_margin_are_exact_and_the_entropy_is_unknown() -> None:
    found = statistics_of({"content": [token(0.9, 0.05), token(0.3, 0.25, 0.2, drawn=1)]})
    assert found is not None
    assert found.logprob_sum == pytest.approx(math.log(0.9) + math.log(0.25), abs=1e-12)
    assert found.logprob_mean == pytest.approx(found.logprob_sum / 2, abs=1e-12)
    assert found.margin_min == pytest.approx(0.05, abs=1e-12)
    assert math.isnan(found.entropy_mean)


@pytest.mark.parametrize(
    "second", [token(0.4), {"logprob": -0.1}, {"logprob": -0.1, "top_logprobs": [{"logprob": None}, {"logprob": -1}]}]
)
def test_a_margin_is_unknown_where_one_token_came_without_its_rival(second: dict[str, Any]) -> None:
    for order in ([token(0.9, 0.05), second], [second, token(0.9, 0.05)]):
        found = statistics_of({"content": order})
        assert found is not None
        assert math.isnan(found.margin_min)
        assert math.isfinite(found.logprob_sum)


def test_openai_placeholder_logprob_is_nan() -> None:
    found = statistics_of({"content": [{"logprob": -9999.0, "top_logprobs": []}, token(0.9, 0.05)]})
    assert found is not None
    assert math.isnan(found.logprob_sum)
    assert math.isnan(found.logprob_mean)


@pytest.mark.parametrize("told", [None, {}, {"content": None}, {"content": []}, {"content": "text"}, [], "text", 7])
def test_metadata_without_logprobs_gives_no_statistics(told: object) -> None:
    assert statistics_of(told) is None


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_whatever_a_server_sends_is_a_number_or_unknown(sent: object) -> None:
    for tokens in ([sent], [{"logprob": sent}], [{"logprob": -0.5, "top_logprobs": sent}]):
        found = statistics_of({"content": tokens})
        assert found is not None
        assert math.isnan(found.logprob_sum) or found.logprob_sum <= 0
        assert math.isnan(found.margin_min) or 0 <= found.margin_min <= 1


def test_unknown_statistics_are_missing_in_conditions() -> None:
    facts = fact_values(Facts(statistics=statistics_of({"content": [token(0.9)]})))
    assert facts["statistics.logprob_mean"] == pytest.approx(math.log(0.9))
    assert math.isnan(facts["statistics.entropy_mean"])
    assert math.isnan(facts["statistics.margin_min"])


def test_a_remote_tier_has_the_statistics_of_its_reply() -> None:
    reply = AIMessage("Oslo", response_metadata={"logprobs": {"content": [{**token(0.9, 0.05), "token": "Oslo"}]}})
    found = RemoteModel(GenericFakeChatModel(messages=iter([reply]))).generate([Message(role="user", content="q")])
    assert found.statistics is not None
    assert found.statistics.logprob_sum == pytest.approx(math.log(0.9))


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [({"finish_reason": "length"}, "length"), ({"stop_reason": "max_tokens"}, "length"), ({}, None)],
)
def test_why_an_answer_ended_is_told_in_the_guards_words(metadata: dict[str, Any], reason: str | None) -> None:
    assert generation_of(AIMessage("Oslo", response_metadata=metadata), seconds=0.1).finish_reason == reason


def test_the_statistics_have_one_order() -> None:
    assert Statistics.__slots__ == STATISTICS
