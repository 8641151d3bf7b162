"""A remote model inside a chain: the statistics of its answer come from its logprobs, over real HTTP."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from ilis_guard import Action, Guard, Policy, Tier
from ilis_guard.models.remote import RemoteModel
from ilis_guard_langchain import wrap
from tests.adapters.guards import PROMPT, guard_of
from tests.explained import problem

NORWAY = {"country": "Norway"}
TOKENS = [("Os", 0.8, 0.1), ("lo", 0.95, 0.02)]
"""Each with its probability, and that of its closest rival."""
POLICY = """
version: 1
name: by-logprobs
rules:
  - {id: sure, when: 'uncertainty < 0.3 && statistics.logprob_mean > -0.5', do: answer}
  - {id: unknown, do: abstain, say: No.}
"""


class Provider(BaseHTTPRequestHandler):
    """Answers as OpenAI's chat completions do, with logprobs where they are asked for."""

    asked: list[dict[str, Any]]
    status = 200

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        told = json.dumps(completion(body) if self.status == 200 else {"error": {"message": "no"}}).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_: Any) -> None:
        """Tests print nothing."""


def completion(body: dict[str, Any]) -> dict[str, Any]:
    content = [
        {
            "token": token,
            "logprob": math.log(likely),
            "bytes": list(token.encode()),
            "top_logprobs": [
                {"token": text, "logprob": math.log(share), "bytes": None}
                for text, share in [(token, likely), ("?", rival)][: body.get("top_logprobs", 0)]
            ],
        }
        for token, likely, rival in TOKENS
    ]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Oslo", "refusal": None},
                "finish_reason": "stop",
                "logprobs": {"content": content, "refusal": None} if body.get("logprobs") else None,
            }
        ],
        "usage": {"prompt_tokens": 17, "completion_tokens": 2, "total_tokens": 19},
    }


@pytest.fixture
def provider() -> Iterator[tuple[type[Provider], Callable[..., ChatOpenAI]]]:
    handler = type("Asked", (Provider,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()

    def model(**options: Any) -> ChatOpenAI:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        return ChatOpenAI(model="gpt-small", base_url=url, api_key=SecretStr("none"), max_retries=0, **options)

    yield handler, model
    server.shutdown()
    serving.join()
    server.server_close()


Given = tuple[type[Provider], Callable[..., ChatOpenAI]]


def test_statistics_come_from_the_logprobs_and_tokens_from_the_usage(provider: Given) -> None:
    model = provider[1](logprobs=True, top_logprobs=2)
    decision = wrap(PROMPT | model | StrOutputParser(), guard_of(), output="decision").invoke(NORWAY)
    (attempt,) = decision.attempts
    assert (attempt.text, attempt.tokens, attempt.finish_reason) == ("Oslo", 2, "stop")
    assert attempt.statistics is not None
    assert attempt.statistics.logprob_sum == pytest.approx(math.log(0.8 * 0.95))
    assert attempt.statistics.logprob_mean == pytest.approx(math.log(0.8 * 0.95) / 2)
    assert attempt.statistics.margin_min == pytest.approx(0.7)
    assert math.isnan(attempt.statistics.entropy_mean)


async def test_a_condition_may_look_at_them_and_without_them_nothing_is_answered(provider: Given) -> None:
    guard = guard_of(policy=POLICY)
    for wrapped, expected in (
        (wrap(provider[1](logprobs=True), guard), "Oslo"),
        (wrap(provider[1](), guard), "No."),
    ):
        assert wrapped.invoke("Capital of Norway?").content == expected
        assert (await wrapped.ainvoke("Capital of Norway?")).content == expected


def test_without_a_score_nothing_is_answered(provider: Given) -> None:
    wrapped = wrap(provider[1](logprobs=True, top_logprobs=2), guard_of(None, tiers=1), output="decision")
    decision = wrapped.invoke("Capital of Norway?")
    assert (decision.action, decision.uncertainty) == (Action.ABSTAIN, None)
    assert decision.attempts[0].statistics is not None


def test_the_message_keeps_the_integrations_metadata(provider: Given) -> None:
    found = wrap(provider[1](logprobs=True), guard_of()).invoke("Capital of Norway?")
    assert found.usage_metadata["total_tokens"] == 19
    assert found.response_metadata["model_name"] == "gpt-small"
    assert found.response_metadata["ilis_guard"]["action"] == "answer"


@pytest.mark.parametrize(("status", "calls"), [(429, 3), (500, 3), (400, 1)])
def test_transient_errors_are_retried_and_refusals_are_not(status: int, calls: int, provider: Given) -> None:
    handler, model = provider
    handler.status = status
    decision = wrap(model(), guard_of(), output="decision").invoke("Capital of Norway?")
    assert len(handler.asked) == calls
    assert f"status {status}" in problem(decision.attempts[0])
    assert decision.text == "Oslo, surely"


def test_a_remote_tier_of_a_guard_has_them_too(provider: Given) -> None:
    tier = Tier(name="only", model=RemoteModel(provider[1](logprobs=True, top_logprobs=2)))
    decision = Guard(tiers=[tier], policy=Policy.parse(POLICY)).decide("Capital of Norway?")
    assert decision.attempts[0].statistics is not None
    assert decision.attempts[0].statistics.margin_min == pytest.approx(0.7)


def test_a_larger_remote_tier_answers_in_the_chains_type(provider: Given) -> None:
    handler, model = provider
    larger: Any = RemoteModel(model())
    wrapped = wrap(PROMPT | model() | StrOutputParser(), guard_of(0.4, models={"large": larger}))
    assert wrapped.invoke(NORWAY) == "Oslo"
    assert [[turn["content"] for turn in body["messages"]] for body in handler.asked] == [
        ["Be brief.", "Capital of Norway?"]
    ] * 2
