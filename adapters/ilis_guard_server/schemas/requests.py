"""What OpenAI's clients send, as far as a guard can do it. What isn't here is refused, see `refusing`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ilis_guard.types import Label, Message, StreamMode


class Body(BaseModel):
    """What stands in a request."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TextPart(Body):
    """A part of a message. Only texts are understood."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(fail_fast=True)]


class SystemTurn(Body):
    """What the application says to the model."""

    role: Literal["system", "developer"]
    content: Content


class UserTurn(Body):
    """What the user says."""

    role: Literal["user"]
    content: Content


class AssistantTurn(Body):
    """What was answered before; a refusal stands for the answer that wasn't given."""

    role: Literal["assistant"]
    content: Content | None = None
    refusal: str | None = None


Turn = Annotated[SystemTurn | UserTurn | AssistantTurn, Field(discriminator="role")]
Turns = Annotated[list[Turn], Field(min_length=1, fail_fast=True)]
"""Its first problem is the only one that is told. To gather half a million of them, which fit into a megabyte, would
keep everybody waiting for seconds."""


Stop = Annotated[str, Field(min_length=1)]


class Wishes(Body):
    """`ilis_guard`, in a client's `extra_body`: what the guard itself is told."""

    labels: dict[str, Label] = Field(default_factory=dict)
    """What the policy sees as `labels.NAME`; only those that the operator allows."""
    mode: StreamMode | None = None
    """When what is shown, and whether generations are cut; only modes that the operator allows."""


class EndedRequest(Body):
    """What may say where an answer ends."""

    stop: Stop | Annotated[list[Stop], Field(min_length=1, max_length=4, fail_fast=True)] | None = None
    """The answer ends before the first of these, and is scored as it then is."""

    @property
    def stops(self) -> list[str]:
        """As the guard takes them."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class StreamOptions(Body):
    """How a stream is told."""

    include_usage: bool | None = None
    """Whether a chunk with the tokens comes at the end."""
    include_obfuscation: Literal[False] | None = None


class GuardedRequest(EndedRequest):
    """What all of OpenAI's requests share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    ilis_guard: Wishes | None = None

    temperature: float | None = Field(default=None, ge=0, le=2)
    """The tiers' own, where they have one: decoding is guard.yaml's."""
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    top_p: Annotated[float, Field(ge=1, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    user: str | None = None
    """Not looked at."""
    metadata: dict[str, str] | None = None
    """Not looked at."""

    @property
    def wishes(self) -> Wishes:
        """What the guard itself is told."""
        return self.ilis_guard or Wishes()

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the tokens."""
        return self.stream_options is not None and self.stream_options.include_usage is True


class TextFormat(Body):
    """The only format that answers have."""

    type: Literal["text"]


class ChatRequest(GuardedRequest):
    """A conversation that ends with the user's turn."""

    messages: Turns
    response_format: TextFormat | None = None
    store: Literal[False] | None = None
    safety_identifier: str | None = None
    """Not looked at."""
    prompt_cache_key: str | None = None
    """Not looked at."""

    def conversation(self) -> list[Message]:
        """As the guard takes it."""
        return [_message(turn) for turn in self.messages]


class CompletionRequest(GuardedRequest):
    """A prompt."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1, fail_fast=True)]

    def conversation(self) -> list[Message]:
        """As the guard takes it: the user's only turn."""
        prompt = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        return [Message(role="user", content=prompt)]


class DecisionRequest(EndedRequest):
    """Our own: what the whole decision is wanted of."""

    messages: Turns
    labels: dict[str, Label] = Field(default_factory=dict)
    """What the policy sees as `labels.NAME`; only those that the operator allows."""
    mode: Literal["hold", "early_stop"] | None = None
    """Whether generations are cut as soon as nothing can be answered with them; only what the operator allows."""

    @property
    def wishes(self) -> Wishes:
        """What the guard itself is told."""
        return Wishes(labels=self.labels, mode=self.mode)

    def conversation(self) -> list[Message]:
        """As the guard takes it."""
        return [_message(turn) for turn in self.messages]


def _message(turn: SystemTurn | UserTurn | AssistantTurn) -> Message:
    if isinstance(turn, AssistantTurn):
        said = turn.refusal if turn.content is None else turn.content
        return Message(role="assistant", content=_text(said or ""))
    return Message(role="user" if isinstance(turn, UserTurn) else "system", content=_text(turn.content))


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
