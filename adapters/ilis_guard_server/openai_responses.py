"""What OpenAI's clients get back, with what is ours in `ilis_guard`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from ilis_guard.types import FinishReason, Mode, ObstacleKind, Stage
from ilis_guard.types import Outcome as RuleResult

EndReason = Literal["stop", "length", "content_filter"]
"""`content_filter` where what was shown was withdrawn, or a legacy completion has no answer."""
Outcome = Literal["answer", "abstain", "escalate"]


class Told(BaseModel):
    """What stands in a response. In chunks, which leave out what wasn't set, what is always there has no default."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class OutcomeBody(Told):
    """What became of one rule; fields as of `ilis_guard.types.RuleOutcome`."""

    rule: str
    stage: Stage
    outcome: RuleResult
    obstacle: ObstacleKind | None


class RulingBody(Told):
    """What the policy said to one attempt."""

    action: Literal["answer", "abstain", "retry", "escalate"]
    rule: str | None
    stage: Stage
    outcomes: list[OutcomeBody]


class ErrorBody(Told):
    """An error by its kind: the name of a class in `ilis_guard.errors`, or ``UnexpectedError``."""

    kind: str
    message: str


class TicketSummary(Told):
    """Where a person sees the request: to answer it, or to audit the answer."""

    id: str
    queue: str


class Summary(Told):
    """A decision without its texts, signatures and statistics; `/v1/decisions` tells all of it."""

    id: str
    action: Outcome
    rule: str | None
    """The rule that decided; none where no rule held."""
    uncertainty: float | None
    """Calibrated probability, 0 to 1, that the answer is wrong."""
    rulings: list[RulingBody]
    errors: list[ErrorBody]
    """Of the attempts that failed, in order."""
    tier: str
    """The last that was asked."""
    attempts: int
    ticket: TicketSummary | None
    cost: float
    policy: str
    mode: Mode
    """`shadow` where the policy only looked on."""
    retracted: bool
    """Whether pieces were shown and withdrawn: then nothing in `content` counts."""
    text: str | None
    """The answer that stands instead of what was withdrawn; none where there is none."""


class Withdrawal(Told):
    """All that a stream has shown so far is withdrawn."""

    retracted: Literal[True]
    reason: str


class Usage(Told):
    """Tokens of all attempts together: of answers that weren't given, too."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatMessage(Told):
    """The answer, or why there is none: exactly one of the two."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None


class ChatChoice(Told):
    """The only one."""

    index: Literal[0] = 0
    message: ChatMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(Told):
    """A decision as a chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    ilis_guard: Summary


class ChatDelta(Told):
    """What a message grows by; what it doesn't is left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None


class ChatChunkChoice(Told):
    """The only one."""

    index: Literal[0]
    delta: ChatDelta
    finish_reason: EndReason | None
    """In the last chunk that has a choice."""


class ChatChunk(Told):
    """A piece of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    """None in the chunk that tells the usage."""
    usage: Usage | None = None
    """In the very last chunk, where it was asked for."""
    ilis_guard: Summary | Withdrawal | None = None
    """The decision, beside the `finish_reason`; before that only a withdrawal."""


class CompletionChoice(Told):
    """The only one."""

    index: Literal[0]
    text: str
    """Empty where there is no answer."""
    refusal: str | None
    """Why there is none."""
    logprobs: None
    finish_reason: EndReason | None


class Completion(Told):
    """A decision as a legacy completion, or a piece of one that is streamed."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    ilis_guard: Summary | Withdrawal | None = None


class ModelCard(Told):
    """The guard, as a model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """When the server started, seconds since the epoch."""
    owned_by: Literal["ilis_guard"] = "ilis_guard"


class ModelList(Told):
    """All that may be asked for."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
