import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.exceptions import ModelAuthenticationError, ModelRateLimitError
from langchain_core.language_models import BaseChatModel, FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from ilis_guard.errors import ModelError, TransientModelError
from ilis_guard.models.remote import RemoteModel, fingerprint_of
from ilis_guard.types import Message

SECRET = "what is my grandmother's account number"
QUESTION = [Message(role="user", content=SECRET)]
PATH = "langchain_core.language_models:FakeListChatModel"


class Recorder(BaseChatModel):
    """Answers with one reply, or raises; keeps what it was asked."""

    reply: Any = None
    asked: list[list[BaseMessage]] = []  # noqa: RUF012  # pydantic copies it

    @property
    def _llm_type(self) -> str:
        return "recorder"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> ChatResult:
        self.asked.append(messages)
        if isinstance(self.reply, BaseException):
            raise self.reply
        return ChatResult(generations=[ChatGeneration(message=self.reply)])


def ask(reply: Any) -> Any:
    return RemoteModel(Recorder(reply=reply)).generate(QUESTION)


def failing(error: BaseException, **attributes: Any) -> BaseException:
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def test_a_reply_becomes_a_generation_with_its_usage_and_no_signature() -> None:
    usage = {"input_tokens": 12, "output_tokens": 3, "total_tokens": 15}
    found = ask(AIMessage("  Oslo.\n", usage_metadata=usage, response_metadata={"finish_reason": "stop"}))
    assert (found.text, found.tokens, found.prompt_tokens, found.finish_reason) == ("Oslo.", 3, 12, "stop")
    assert found.signatures == {}
    assert found.statistics is None
    assert found.seconds > 0


def test_langchains_own_fake_model_answers() -> None:
    replies: Iterator[AIMessage | str] = iter([AIMessage(content="Oslo"), "Paris"])
    model = RemoteModel(GenericFakeChatModel(messages=replies))
    assert [model.generate(QUESTION).text for _ in range(2)] == ["Oslo", "Paris"]


def test_a_reply_in_content_blocks_is_its_text() -> None:
    assert ask(AIMessage(content=[{"type": "text", "text": "Os"}, {"type": "text", "text": "lo"}])).text == "Oslo"


@pytest.mark.parametrize(
    "reply",
    [
        AIMessage(content="", additional_kwargs={"refusal": SECRET}),
        AIMessage(content="Oslo", additional_kwargs={"refusal": SECRET}),
        AIMessage(content=[{"type": "text", "text": "Oslo"}, {"type": "refusal", "refusal": SECRET}]),
    ],
)
def test_a_refusal_is_no_answer_and_its_words_are_not_repeated(reply: AIMessage) -> None:
    with pytest.raises(ModelError, match=r"^the model refused to answer$") as caught:
        ask(reply)
    assert not caught.value.is_retryable
    assert SECRET not in str(caught.value)


def test_an_empty_refusal_is_none() -> None:
    assert ask(AIMessage(content="Oslo", additional_kwargs={"refusal": None})).text == "Oslo"


def test_the_whole_conversation_is_sent_with_its_roles() -> None:
    chat = Recorder(reply=AIMessage(content="x"))
    turns = [("system", "be brief"), ("user", "one"), ("assistant", "two"), ("user", "three")]
    RemoteModel(chat).generate([Message(role=role, content=content) for role, content in turns])  # type: ignore[arg-type]
    sent = [(message.type, message.content) for message in chat.asked[-1]]
    assert sent == [("system", "be brief"), ("human", "one"), ("ai", "two"), ("human", "three")]


def test_a_remote_models_fingerprint_is_its_chat_models() -> None:
    chat = FakeListChatModel(responses=["Rome"])
    assert RemoteModel(chat).fingerprint == fingerprint_of(chat)
    assert RemoteModel.load(PATH, {"responses": ["Rome"]}).fingerprint == fingerprint_of(chat)


def test_a_path_and_arguments_make_a_model() -> None:
    assert RemoteModel.load(PATH, {"responses": ["Rome"]}).generate(QUESTION).text == "Rome"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("langchain_core.language_models.FakeListChatModel", "reads 'package.module:Class', got 'langchain_core"),
        ("no_such_package_here:Chat", "can't be imported .*no_such_package_here.*is its package installed"),
        ("langchain_core.language_models:NoSuchChat", "can't be imported .*NoSuchChat"),
        ("collections:OrderedDict", "'collections:OrderedDict' isn't a LangChain chat model"),
        ("math:pi", "'math:pi' isn't a LangChain chat model"),
        ("langchain_core.language_models:FakeListLLM", "isn't a LangChain chat model"),
    ],
)
def test_a_path_that_leads_to_no_chat_model_is_refused(path: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        RemoteModel.load(path, {})
    assert not caught.value.is_retryable


def test_arguments_refused_by_the_class_name_the_chat_model() -> None:
    with pytest.raises(ModelError, match=rf"the chat model '{PATH}' refuses its arguments: ValidationError"):
        RemoteModel.load(PATH, {})


def test_a_constructor_that_fails_in_its_own_way_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class NeedsKey(Recorder):
        def __init__(self, **_arguments: Any) -> None:
            raise LookupError("set VENDOR_KEY")

    monkeypatch.setitem(sys.modules, "vendor", SimpleNamespace(Chat=NeedsKey))
    with pytest.raises(ModelError, match=r"'vendor:Chat' refuses its arguments: LookupError: .*set VENDOR_KEY"):
        RemoteModel.load("vendor:Chat", {})


@pytest.mark.parametrize(
    "error",
    [
        failing(RuntimeError(SECRET), is_retryable=True),
        ModelRateLimitError(SECRET),
        *(failing(RuntimeError(SECRET), status_code=status) for status in (408, 409, 425, 429, 500, 502, 503, 529)),
        ConnectionError(SECRET),
        ConnectionResetError(SECRET),
        TimeoutError(SECRET),
    ],
    ids=repr,
)
def test_temporary_errors_are_transient(error: BaseException) -> None:
    with pytest.raises(TransientModelError) as caught:
        ask(error)
    assert caught.value.is_retryable
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        failing(RuntimeError(SECRET), is_retryable=False, status_code=503),
        failing(TimeoutError(SECRET), is_retryable=False),
        ModelAuthenticationError(SECRET),
        *(failing(RuntimeError(SECRET), status_code=status) for status in (400, 401, 403, 404, 422)),
        failing(ConnectionError(SECRET), status_code=400),
        failing(RuntimeError(SECRET), status_code="503"),
        ValueError(SECRET),
    ],
    ids=repr,
)
def test_lasting_errors_are_permanent(error: BaseException) -> None:
    with pytest.raises(ModelError) as caught:
        ask(error)
    assert not isinstance(caught.value, TransientModelError)
    assert not caught.value.is_retryable


@pytest.mark.parametrize("status", [400, 429])
def test_an_error_tells_model_kind_and_status_and_never_the_prompt(status: int) -> None:
    with pytest.raises(ModelError) as caught:
        ask(failing(RuntimeError(f"could not process: {SECRET}"), status_code=status))
    assert str(caught.value) == f"Recorder didn't answer: RuntimeError (status {status})"


def test_an_interrupt_isnt_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt):
        ask(KeyboardInterrupt())


def test_a_key_among_refused_arguments_is_not_repeated() -> None:
    with pytest.raises(ModelError) as caught:
        RemoteModel.load("langchain_core.language_models:FakeListChatModel", {"responses": "sk-secret"})
    assert "responses: Input should be a valid list" in str(caught.value)
    assert "sk-secret" not in str(caught.value)
