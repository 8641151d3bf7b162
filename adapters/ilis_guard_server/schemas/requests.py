"""Request bodies: the parameters of OpenAI's API that a guard supports, and verdicts from other tools.

A parameter that would change the answer and isn't supported is refused by name, see `body_error`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, ValidationError

from ilis_guard.config.base import StrictModel
from ilis_guard.types import Label, Message, StreamMode, Verdict
from ilis_guard_server.problem_details import ApiError


class Body(StrictModel):
    """Part of a request's body: frozen, strict, and without unknown members."""


class TextPart(Body):
    """A part of a message. Only text is supported."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(fail_fast=True)]


class SystemMessage(Body):
    """The application's instructions to the model."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(Body):
    """A turn of the user."""

    role: Literal["user"]
    content: Content


class AssistantMessage(Body):
    """An earlier answer, or the refusal in its place."""

    role: Literal["assistant"]
    content: Content | None = None
    refusal: str | None = None


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]
ChatMessages = Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
"""Only the first error is reported: to collect half a million of them, which fit into a megabyte, would block all other
requests for seconds."""
StopSequence = Annotated[str, Field(min_length=1)]


class GuardOptions(Body):
    """`ilis_guard`, in a client's `extra_body`: options of the guard itself."""

    labels: dict[str, Label] = Field(default_factory=dict)
    """The policy sees them as `labels.NAME`; only names that the operator allows."""
    mode: StreamMode | None = None
    """When text is shown, and whether generations are cut; only modes that the operator allows."""


class StoppableRequest(Body):
    """A request with stop sequences."""

    stop: StopSequence | Annotated[list[StopSequence], Field(min_length=1, max_length=4, fail_fast=True)] | None = None
    """The answer ends before the first of these, and is scored as it then is."""

    @property
    def stop_sequences(self) -> list[str]:
        """As the guard takes them."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool | None = None
    """Whether a chunk with the tokens comes at the end."""
    include_obfuscation: Literal[False] | None = None


class OpenAIRequest(StoppableRequest):
    """Parameters that all of OpenAI's requests share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    ilis_guard: GuardOptions | None = None

    temperature: float | None = Field(default=None, ge=0, le=2)
    """The tiers' own, where they have one: decoding is set in guard.yaml."""
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    top_p: Annotated[float, Field(ge=1, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    user: str | None = None
    """Ignored."""
    metadata: dict[str, str] | None = None
    """Ignored."""

    @property
    def options(self) -> GuardOptions:
        """Options of the guard itself."""
        return self.ilis_guard or GuardOptions()

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the tokens."""
        return self.stream_options is not None and self.stream_options.include_usage is True


class TextFormat(Body):
    """The only format of answers."""

    type: Literal["text"]


class ChatRequest(OpenAIRequest):
    """A conversation that ends with the user's turn."""

    messages: ChatMessages
    response_format: TextFormat | None = None
    store: Literal[False] | None = None
    safety_identifier: str | None = None
    """Ignored."""
    prompt_cache_key: str | None = None
    """Ignored."""

    def conversation(self) -> list[Message]:
        """As the guard takes it."""
        return [_message(each) for each in self.messages]


class CompletionRequest(OpenAIRequest):
    """A prompt."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1, fail_fast=True)]

    def conversation(self) -> list[Message]:
        """As the guard takes it: the user's only turn."""
        prompt = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        return [Message(role="user", content=prompt)]


class DecisionRequest(StoppableRequest):
    """A conversation for which the caller wants the whole decision."""

    messages: ChatMessages
    labels: dict[str, Label] = Field(default_factory=dict)
    """The policy sees them as `labels.NAME`; only names that the operator allows."""
    mode: Literal["hold", "early_stop"] | None = None
    """Whether generations are cut once no rule can answer any more; only modes that the operator allows."""

    @property
    def options(self) -> GuardOptions:
        """Options of the guard itself."""
        return GuardOptions(labels=self.labels, mode=self.mode)

    def conversation(self) -> list[Message]:
        """As the guard takes it."""
        return [_message(each) for each in self.messages]


AnyRequest = ChatRequest | CompletionRequest | DecisionRequest


def _message(message: SystemMessage | UserMessage | AssistantMessage) -> Message:
    if isinstance(message, AssistantMessage):
        content = message.refusal if message.content is None else message.content
        return Message(role="assistant", content=_text(content or ""))
    return Message(role="user" if isinstance(message, UserMessage) else "system", content=_text(message.content))


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


# PostgreSQL takes no NUL in a text.
_Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]


class VerdictMessage(Body):
    """A verdict from another tool.

    Standard Webhooks sign the id, the time and the body, and not the address: so the body names its ticket, or a
    verdict on one ticket could be sent on to another's address.
    """

    ticket: str = Field(pattern=r"^[0-9a-f]{32}$")
    """The same as in the address."""
    verdict: Verdict
    text: _Text = ""
    """The right answer, with the verdict `correct` and only with it."""
    reason: _Text = ""
    """Why."""
    reviewer: _Text = Field(default="", max_length=100)
    """Who gave the verdict, as the ticket will show it. Only they may end a ticket that somebody has claimed."""
    version: int | None = Field(default=None, ge=1)
    """The version of the ticket that they looked at; without one, the verdict is on the current version."""


# Errors.

_REASONS: Final = (
    ("a guard answers in text", "audio modalities"),
    (
        "a guard answers in text and calls no tools; leave it out",
        "function_call functions parallel_tool_calls tool_choice tools web_search_options",
    ),
    ("a guard decides on one answer", "best_of n"),
    (
        "decoding is set in guard.yaml (a tier's `decoding`), which scores are fitted to",
        "frequency_penalty logit_bias presence_penalty reasoning_effort seed temperature top_p",
    ),
    (
        "the length of answers is set in guard.yaml (a tier's `max_new_tokens`), which scores are fitted to",
        "max_completion_tokens max_tokens",
    ),
    ("a guard returns one uncertainty instead (`ilis_guard.uncertainty`)", "logprobs top_logprobs"),
    ("an answer comes without its prompt", "echo"),
    ("answers are plain text, as the tiers' models give them", "response_format"),
    ("it is a string, or a list of one to four, and none of them empty", "stop"),
    ("nothing is stored but tickets", "store"),
    ("a guard answers prompts and fills no gaps", "suffix"),
)
UNSUPPORTED: Final[Mapping[str, str]] = {name: why for why, names in _REASONS for name in names.split()}
"""OpenAI's parameters that a guard doesn't support, or not with every value, and why."""
_UNION_MEMBERS: Final = frozenset(
    {"str", "constrained-str", "bool", "int", "float", "system", "developer", "user", "assistant"}
)


def body_error(invalid: ValidationError) -> ApiError:
    """Describe the first error in a body by the name of its parameter, and never by the parameter's value."""
    errors = invalid.errors(include_url=False, include_context=False, include_input=False)
    # Unknown parameters come first: they are what the caller wanted most.
    first: Any = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    names = [str(part) for part in first["loc"] if not _is_union_member(part)]
    param = ".".join(names)
    if first["type"] == "extra_forbidden":
        why = UNSUPPORTED.get(param, "there is no such parameter")
        code = "unsupported_parameter" if param in UNSUPPORTED else "unknown_parameter"
        return ApiError(400, f"The parameter {param!r} can't be used: {why}.", param=param, code=code)
    if not names:
        return ApiError(400, "The body isn't a JSON object of the documented shape.", code="invalid_body")
    if first["type"] == "missing":
        return ApiError(400, f"The parameter {param!r} is missing.", param=param, code="missing_parameter")
    if names[0] in UNSUPPORTED:
        return value_error(param, UNSUPPORTED[names[0]])
    return ApiError(400, f"This value of {param!r} can't be used.", param=param, code="invalid_value")


def value_error(param: str, why: str) -> ApiError:
    """Describe a parameter whose value has the right type but can't be used."""
    return ApiError(400, f"This value of {param!r} can't be used: {why}.", param=param, code="unsupported_value")


def _is_union_member(part: int | str) -> bool:
    """Whether part of an error's place names the type that pydantic tried, and no member of the body."""
    return isinstance(part, str) and (part in _UNION_MEMBERS or "[" in part)
