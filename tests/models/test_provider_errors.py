import socket
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import requests
import tenacity
from langchain_core.exceptions import LangChainException, ModelError as LangChainModelError, ModelRateLimitError
from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI

from ilis_guard import Guard, Policy, Tier
from ilis_guard.config.tiers import BreakerSettings
from ilis_guard.errors import ModelError, TransientModelError
from ilis_guard.models.provider_errors import LONGEST_CHAIN, as_model_error, is_transient
from ilis_guard.models.remote import RemoteModel
from ilis_guard.testing import FakeModel, FixedScorer
from ilis_guard.types import Message
from ilis_guard_langchain import wrap
from tests.endpoint import listening
from tests.scripted_provider import Scripted, scripted_provider

SECRET = "what is my grandmother's account number"
QUESTION = [Message(role="user", content=SECRET)]


def strangers(kind: str, *bases: str, **attributes: Any) -> Exception:
    """An error of a library that isn't installed: its classes by ``package.module:Name``, the root last."""
    made: type[Exception] = Exception
    for path in reversed((kind, *bases)):
        module, _, name = path.partition(":")
        made = type(name, (made,), {"__module__": module})
    error = made(SECRET)
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def raised(work: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any
        work()
    return caught.value


def caused(outer: Exception, inner: BaseException) -> Exception:
    """As ``raise outer from inner``."""
    outer.__cause__ = inner
    return outer


def while_handling(outer: Exception, inner: Exception, *, is_hidden: bool) -> Exception:
    """As ``raise outer`` in an ``except``, or ``raise outer from None``."""
    outer.__context__, outer.__suppress_context__ = inner, is_hidden
    return outer


def aws(code: str, status: int | None) -> Exception:
    response = {"Error": {"Code": code, "Message": SECRET}}
    if status is not None:
        response["ResponseMetadata"] = {"HTTPStatusCode": status}  # type: ignore[dict-item]
    return strangers("botocore.exceptions:ClientError", response=response)


def grpc(code: str) -> Exception:
    return strangers("grpc._channel:_InactiveRpcError", "grpc:RpcError", code=lambda: SimpleNamespace(name=code))


@pytest.mark.parametrize(
    ("scripts", "expected"),
    [
        (("never replies", "resets", "closes without a reply", "closes in the middle of a reply"), True),
        ((408, 409, 425, 429, 500, 502, 503, 504, 529), True),
        ((400, 401, 402, 403, 404, 405, 410, 413, 422), False),
    ],
    ids=("broken", "busy", "refused"),
)
def test_what_happens_on_the_way_to_a_real_server_passes_and_what_it_refuses_does_not(
    scripts: tuple[Scripted, ...], *, expected: bool
) -> None:
    with scripted_provider() as provider:
        chat = ChatOpenAI(**provider.arguments(timeout=0.5))
        client = openai.OpenAI(base_url=f"{provider.url}/v1", api_key="k", max_retries=0, timeout=0.5)
        for provider.script in scripts:
            errors = [
                raised(lambda: chat.invoke(SECRET)),
                raised(lambda: client.completions.create(model="m", prompt=SECRET)),
                raised(lambda: httpx.post(provider.url, json={}, timeout=0.5).raise_for_status()),
                raised(lambda: requests.post(provider.url, json={}, timeout=0.5).raise_for_status()),
            ]
            assert [is_transient(error) for error in errors] == [expected] * 4, provider.script
            with pytest.raises(ModelError) as caught:
                RemoteModel(chat).generate(QUESTION)
            assert isinstance(caught.value, TransientModelError) is expected
            assert SECRET not in str(caught.value)


def test_a_server_that_nobody_runs_may_be_started() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert is_transient(raised(lambda: httpx.post(url)))
        assert is_transient(raised(lambda: requests.post(url, timeout=1)))


def test_a_certificate_that_isnt_trusted_stays_so(tmp_path: Path) -> None:
    with listening(tmp_path) as untrusted:
        for error in (
            raised(lambda: httpx.post(untrusted.url)),
            raised(lambda: requests.post(untrusted.url, timeout=5)),
        ):
            assert not is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        strangers("botocore.exceptions:ReadTimeoutError", "botocore.exceptions:HTTPClientError"),
        strangers("botocore.exceptions:EndpointConnectionError", "botocore.exceptions:HTTPClientError"),
        aws("ThrottlingException", 429),
        aws("ModelNotReadyException", 429),
        aws("ServiceUnavailableException", 503),
        aws("throttlingException", 400),
        aws("throttlingException", None),
        *map(grpc, ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL")),
        strangers("google.api_core.exceptions:ServiceUnavailable", code=HTTPStatus.SERVICE_UNAVAILABLE),
        strangers("google.api_core.exceptions:RetryError"),
        strangers("google.genai.errors:ServerError", code=503, status="UNAVAILABLE"),
        strangers("google.auth.exceptions:TransportError", retryable=False),
        strangers("ollama._types:ResponseError", status_code=503),
        strangers("groq:APITimeoutError", "groq:APIConnectionError"),
        strangers("groq:RateLimitError", status_code=429),
        strangers("anthropic:APIStatusError", status_code=200, body={"error": {"type": "overloaded_error"}}),
        strangers("openai:APIError", code="server_error", body={"type": "server_error"}),
        strangers("mistralai.models:SDKError", status_code=502),
        strangers("httpx2:ReadError", "httpx2:NetworkError"),
        strangers("httpcore:ConnectTimeout", "httpcore:TimeoutException"),
        strangers("aiohttp.client_exceptions:ServerDisconnectedError", "aiohttp:ClientConnectionError"),
        strangers("aiohttp.client_exceptions:ClientResponseError", status=503),
        strangers("azure.core.exceptions:ServiceResponseError"),
        strangers("nobody.knows:ModelTimedOut"),
        socket.gaierror(socket.EAI_AGAIN, "try again"),
        OSError(101, "Network is unreachable"),
    ],
    ids=repr,
)
def test_time_outs_resets_and_overload_pass_in_every_library(error: Exception) -> None:
    assert is_transient(error)
    assert is_transient(caused(LangChainException("wrapped"), error))
    assert is_transient(while_handling(ValueError("wrapped"), error, is_hidden=False))
    assert is_transient(while_handling(ValueError("wrapped"), error, is_hidden=True))
    assert is_transient(ExceptionGroup("two", [error, error]))


@pytest.mark.parametrize(
    "error",
    [
        aws("ValidationException", 400),
        aws("AccessDeniedException", 403),
        aws("ServiceQuotaExceededException", 400),
        strangers("botocore.exceptions:NoCredentialsError"),
        strangers("botocore.exceptions:SSLError", "botocore.exceptions:HTTPClientError"),
        *map(grpc, ("INVALID_ARGUMENT", "UNAUTHENTICATED", "NOT_FOUND", "CANCELLED", "DATA_LOSS")),
        strangers("google.genai.errors:ClientError", code=400, status="INVALID_ARGUMENT"),
        strangers("google.auth.exceptions:RefreshError", retryable=False),
        strangers("ollama._types:ResponseError", status_code=404),
        strangers("anthropic:APIStatusError", status_code=200, body={"error": {"type": "invalid_request_error"}}),
        strangers("httpx:UnsupportedProtocol", "httpx:TransportError"),
        strangers("somebody:ConnectionError"),
        socket.gaierror(socket.EAI_NONAME, "no such host"),
        PermissionError(13, "no"),
        KeyError("content"),
    ],
    ids=repr,
)
def test_what_the_caller_must_change_stays_in_every_library(error: Exception) -> None:
    assert not is_transient(error)
    assert not is_transient(caused(LangChainException("wrapped"), error))


def test_what_an_error_says_itself_counts_before_its_causes() -> None:
    assert not is_transient(caused(strangers("x:BadRequest", status_code=400), TimeoutError()))
    assert is_transient(caused(ModelRateLimitError("slow down"), ValueError()))
    assert not is_transient(caused(LangChainModelError("no"), TimeoutError()))
    assert is_transient(caused(RuntimeError(), strangers("x:Busy", status_code=503)))
    assert is_transient(caused(TimeoutError(), caused(RuntimeError(), ValueError())))


def test_each_error_of_a_group_must_pass() -> None:
    assert not is_transient(ExceptionGroup("both", [TimeoutError(), ValueError()]))
    assert not is_transient(caused(RuntimeError(), ExceptionGroup("both", [TimeoutError(), ValueError()])))
    assert is_transient(ExceptionGroup("outer", [ExceptionGroup("inner", [TimeoutError()]), ConnectionResetError()]))


def test_errors_that_are_circular_or_endless_or_raise_when_they_are_read_end_in_an_answer() -> None:
    one, two = RuntimeError("one"), RuntimeError("two")
    one.__cause__, two.__cause__ = two, one
    assert not is_transient(one)
    deep: BaseException = TimeoutError()
    for _ in range(10_000):
        outer = RuntimeError()
        outer.__cause__ = deep
        deep = outer
    assert not is_transient(deep), f"only {LONGEST_CHAIN} errors are looked at"
    group: Exception = TimeoutError()
    for _ in range(10_000):
        group = ExceptionGroup("nested", [group])
    assert not is_transient(group), "as are so many groups in one another"

    class Hostile(Exception):  # noqa: N818 - a stranger's
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    assert not is_transient(Hostile())


def test_the_status_that_is_told_is_the_failures_wherever_it_stands() -> None:
    response = SimpleNamespace(status_code=429)
    assert str(as_model_error(strangers("x:HTTPStatusError", response=response), "Chat")) == (
        "Chat didn't answer: HTTPStatusError (status 429)"
    )
    assert str(as_model_error(caused(LangChainException(SECRET), aws("ThrottlingException", 429)), "Chat")) == (
        "Chat didn't answer: LangChainException (status 429)"
    )


POLICY = "version: 1\nname: sure\nrules:\n- id: sure\n  when: uncertainty < 0.5\n  do: answer\n"


def guard_of(model: Any, breaker: BreakerSettings | None = None) -> Guard:
    tier = Tier(name="remote", model=model, scorer=FixedScorer(0.1), breaker=breaker)
    return Guard(tiers=[tier], policy=Policy.parse(POLICY), review=None, backoff=tenacity.wait_none())


@pytest.mark.parametrize(("status", "calls", "kind"), [(503, 3, "TransientModelError"), (400, 1, "ModelError")])
def test_a_guard_repeats_what_passes_and_a_wrapped_chains_calls_too(status: int, calls: int, kind: str) -> None:
    with scripted_provider(status) as provider:
        chat = ChatOpenAI(**provider.arguments())
        direct = guard_of(RemoteModel(chat)).decide("Where is Oslo?")
        assert provider.requests == calls
        stand_in = guard_of(FakeModel("never called"))
        opaque: RunnableLambda[Any, str] = RunnableLambda(lambda given: chat.invoke(given).text)
        decisions = [direct]
        for chain in (chat, opaque):
            provider.requests = 0
            decisions.append(wrap(chain, stand_in, output="decision").invoke("Where is Oslo?"))
            assert provider.requests == calls
    for decision in decisions:
        error = decision.attempts[-1].error
        assert error is not None
        assert (decision.action.value, error.kind) == ("abstain", kind)


def test_a_circuit_opens_for_a_provider_that_is_down_and_not_for_one_that_refuses() -> None:
    with scripted_provider(400) as provider:
        guard = guard_of(RemoteModel(ChatOpenAI(**provider.arguments())), BreakerSettings(failures=3, seconds=60))
        kinds = []
        for script in (400, 400, 400, 503, 503):
            provider.script = script
            error = guard.decide("Where is Oslo?").attempts[-1].error
            assert error is not None
            kinds.append(error.kind)
    assert kinds == [*["ModelError"] * 3, "TransientModelError", "CircuitOpenError"]
