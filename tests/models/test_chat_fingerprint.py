"""RemoteFingerprint of LangChain's ChatOpenAI: which settings count, and which do not."""

from typing import Any

import httpx
import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, TypeAdapter

from ilis_guard.models.remote import fingerprint_of
from ilis_guard.types import Fingerprint, RemoteFingerprint
from tests.fingerprints import fingerprint

BASE: dict[str, Any] = {
    "model": "gpt-small",
    "base_url": "https://models.example.org/v1",
    "api_key": "sk-first",
    "logprobs": True,
    "top_logprobs": 2,
    "temperature": 0.0,
}


def of(**changes: Any) -> RemoteFingerprint:
    return fingerprint_of(ChatOpenAI(**BASE | changes))


def test_fingerprint_holds_class_model_and_arguments() -> None:
    found = of()
    assert found.chat_model == "langchain_openai.chat_models.base:ChatOpenAI"
    assert found.model == "gpt-small"
    assert found.arguments["temperature"] == 0.0
    assert (found.arguments["logprobs"], found.arguments["top_logprobs"]) == (True, 2)


def test_fingerprint_holds_no_secret_and_no_address() -> None:
    found = of(extra_body={"tenant": "acme"}, default_headers={"X-Key": "sk-third"})
    told = f"{found!r} {found}"
    for hidden in ("sk-first", "sk-third", "models.example.org", "acme"):
        assert hidden not in told


@pytest.mark.parametrize(
    "changes",
    [
        {"api_key": "sk-second"},
        {"timeout": 3},
        {"max_retries": 7},
        {"default_headers": {"Authorization": "Bearer sk-second"}},
        {"http_client": httpx.Client()},
        {"organization": "org-1"},
        {"tags": ["a"], "metadata": {"b": "c"}, "verbose": True},
        {"streaming": True},
    ],
    ids=", ".join,
)
def test_secrets_timeouts_and_connection_do_not_change_the_fingerprint(changes: dict[str, Any]) -> None:
    assert of(**changes) == of()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"model": "gpt-large"}, "model"),
        ({"base_url": "https://other.example.org/v1"}, "arguments.openai_api_base"),
        ({"temperature": 0.7}, "arguments.temperature"),
        ({"top_logprobs": 5}, "arguments.top_logprobs"),
        ({"max_tokens": 16}, "arguments.max_tokens"),
        ({"logit_bias": {"5": -100}}, "arguments.logit_bias"),
        ({"extra_body": {"guided_choice": ["yes", "no"]}}, "arguments.extra_body"),
    ],
    ids=str,
)
def test_whatever_may_change_an_answer_differs_by_its_name(changes: dict[str, Any], name: str) -> None:
    assert of().differences(of(**changes)) == (name,)


def test_environment_variables_count_like_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-fourth")
    monkeypatch.setenv("OPENAI_API_BASE", BASE["base_url"])
    given = {name: value for name, value in BASE.items() if name not in ("api_key", "base_url")}
    assert fingerprint_of(ChatOpenAI(**given)) == of()


def test_bound_arguments_count_like_the_models_own() -> None:
    plain = {name: value for name, value in BASE.items() if not name.endswith("logprobs")}
    bound = {"logprobs": True, "top_logprobs": 2, "timeout": 5}
    assert fingerprint_of(ChatOpenAI(**plain), bound) == of()
    assert fingerprint_of(ChatOpenAI(**BASE), {"tools": [{"type": "function"}]}).differences(of()) == (
        "arguments.tools",
    )


def test_custom_chat_model_is_fingerprinted_by_its_fields() -> None:
    class Style(BaseModel):
        tone: str

    class Own(GenericFakeChatModel):
        style: Any = None
        model: str = "own-1"

    def own(style: Any) -> RemoteFingerprint:
        return fingerprint_of(Own(messages=iter([]), style=style))

    assert own(None).model == "own-1"
    assert own(Style(tone="dry")) == own(Style(tone="dry"))
    assert own(Style(tone="dry")) != own(Style(tone="warm"))
    assert own({"b", "a"}) == own({"a", "b"})
    assert own(lambda: 1) == own(lambda: 2)


def test_a_token_is_a_secret_and_a_number_of_tokens_is_none() -> None:
    class Own(GenericFakeChatModel):
        api_token: str = ""
        num_tokens: int = 8

    def own(**given: Any) -> RemoteFingerprint:
        return fingerprint_of(Own(messages=iter([]), **given))

    assert own(api_token="first") == own(api_token="second")
    assert own(num_tokens=9).differences(own()) == ("arguments.num_tokens",)


def test_fingerprint_round_trips_through_json() -> None:
    kinds: TypeAdapter[Fingerprint | RemoteFingerprint] = TypeAdapter(Fingerprint | RemoteFingerprint)
    assert kinds.validate_json(kinds.dump_json(of())) == of()


def test_two_kinds_differ_in_all_that_either_has() -> None:
    local = fingerprint()
    assert {"weights", "layers", "chat_model", "model", "arguments.temperature"} <= set(local.differences(of()))
