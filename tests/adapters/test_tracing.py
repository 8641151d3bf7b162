"""What tracers and LangSmith hear of a decision."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from uuid import UUID, uuid4

import pytest
from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackHandler, CallbackManager
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from langsmith import Client

from ilis_guard import Decision
from ilis_guard.errors import ModelError
from ilis_guard.policy.explain import explain_decision
from ilis_guard.testing import FakeModel, fake_guard
from ilis_guard_langchain import feedback, trace_attempts
from ilis_guard_langchain.tracing import atrace_attempts
from tests.adapters.guards import ABSTAIN, RETRY, guard_of

SECRET = "my grandmother's account number"


class Spy(BaseCallbackHandler):
    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.ended: list[dict[str, Any]] = []
        self.failed: list[BaseException] = []
        self.events: list[tuple[str, Any, UUID]] = []

    def on_chain_start(self, serialized: Any, inputs: Any, **told: Any) -> None:  # noqa: ARG002 - LangChain's signature
        self.begun.append({"inputs": inputs, **told})

    def on_chain_end(self, outputs: Any, **_: Any) -> None:
        self.ended.append(outputs)

    def on_chain_error(self, error: BaseException, **_: Any) -> None:
        self.failed.append(error)

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **_: Any) -> None:
        self.events.append((name, data, run_id))


@pytest.fixture
def decision() -> Decision:
    return guard_of(RETRY, models={"small": FakeModel(SECRET)}).decide(SECRET)


def check(spy: Spy, parent: UUID, decision: Decision) -> None:
    assert [run["name"] for run in spy.begun] == ["ilis_guard.attempt"] * 2
    assert {run["parent_run_id"] for run in spy.begun} == {parent}
    assert [run["inputs"] for run in spy.begun] == [{"tier": "small", "attempt": 1}, {"tier": "large", "attempt": 2}]
    assert [outputs["uncertainty"] for outputs in spy.ended] == [RETRY, 0.1]
    ((name, data, run),) = spy.events
    assert (name, data["id"], run) == ("ilis_guard.decision", decision.id, parent)
    assert SECRET not in json.dumps([run["inputs"] for run in spy.begun] + spy.ended + [data])


def test_each_attempt_is_a_run_with_its_score_and_the_decision_an_event(decision: Decision) -> None:
    spy, parent = Spy(), uuid4()
    trace_attempts(decision, {"callbacks": CallbackManager([spy], [spy], parent_run_id=parent)})
    check(spy, parent, decision)


async def test_async_callbacks_hear_the_same(decision: Decision) -> None:
    spy, parent = Spy(), uuid4()
    await atrace_attempts(decision, {"callbacks": AsyncCallbackManager([spy], [spy], parent_run_id=parent)})
    check(spy, parent, decision)


def test_a_models_run_manager_will_do(decision: Decision) -> None:
    """A chat model has one, which makes no children itself."""
    spy = Spy()
    (manager,) = CallbackManager([spy], [spy]).on_chat_model_start({}, [[HumanMessage("q")]])
    trace_attempts(decision, manager)
    check(spy, manager.run_id, decision)


async def test_an_async_run_manager_will_do_too(decision: Decision) -> None:
    spy = Spy()
    (manager,) = await AsyncCallbackManager([spy], [spy]).on_chat_model_start({}, [[HumanMessage("q")]])
    await atrace_attempts(decision, manager)
    check(spy, manager.run_id, decision)


def test_a_failed_attempt_is_a_failed_run() -> None:
    spy = Spy()
    decision = fake_guard("default", {"only": ModelError("down")}).decide("q")
    trace_attempts(decision, {"callbacks": CallbackManager([spy], [spy], parent_run_id=uuid4())})
    assert [str(error) for error in spy.failed] == ["ModelError: The model gave no answer."]


def test_without_a_run_to_belong_to_there_is_no_event(decision: Decision) -> None:
    spy = Spy()
    trace_attempts(decision, {"callbacks": [spy]})
    assert (len(spy.ended), spy.events) == (2, [])


def test_attempts_are_traced_inside_any_runnable(decision: Decision) -> None:
    spy = Spy()

    def work(_: str, config: Any) -> str:
        trace_attempts(decision, config)
        return "done"

    RunnableLambda(work).invoke("q", {"callbacks": [spy]})
    assert [run["name"] for run in spy.begun] == ["work", "ilis_guard.attempt", "ilis_guard.attempt"]
    assert len(spy.events) == 1


class Stub(BaseHTTPRequestHandler):
    """LangSmith, as far as feedback goes."""

    heard: list[tuple[str, dict[str, Any]]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.heard.append((self.path, json.loads(body)))
        self._reply()

    def do_GET(self) -> None:
        self._reply()

    def log_message(self, *_: Any) -> None:
        """Tests print nothing."""

    def _reply(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b"{}")


@pytest.fixture
def langsmith() -> Iterator[tuple[Client, list[tuple[str, dict[str, Any]]]]]:
    heard: list[tuple[str, dict[str, Any]]] = []
    server = HTTPServer(("127.0.0.1", 0), type("Heard", (Stub,), {"heard": heard}))
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    client = Client(api_url=f"http://127.0.0.1:{server.server_port}", api_key="none", auto_batch_tracing=False)
    yield client, heard
    client.close()
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.mark.parametrize(("uncertainty", "action"), [(0.1, "answer"), (ABSTAIN, "abstain"), (None, "abstain")])
def test_langsmith_takes_the_feedback(
    uncertainty: float | None, action: str, langsmith: tuple[Client, list[tuple[str, dict[str, Any]]]]
) -> None:
    client, heard = langsmith
    decision = guard_of(uncertainty, models={"small": FakeModel(SECRET)}, tiers=1).decide(SECRET)
    run, project = uuid4(), uuid4()
    client.create_feedback(**feedback(decision, run, project))
    ((path, body),) = heard
    assert path.endswith("/feedback")
    assert (body["run_id"], body["session_id"]) == (str(run), str(project))
    assert body["key"] == "ilis_guard.uncertainty"
    assert (body.get("score"), body["value"]) == (uncertainty, action)
    assert body["comment"] == explain_decision(decision)
    assert body["feedback_source"]["metadata"]["decision"] == decision.id
    assert SECRET not in json.dumps(body)
