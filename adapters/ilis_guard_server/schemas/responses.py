"""Response bodies: decisions as OpenAI's clients know answers and refusals, whole decisions, and resolved tickets.

They show the callers' view of a decision: errors by kind and message, rules by id and outcome. Exceptions' own texts,
which may quote a prompt, a key, a path or a host, are for operators and never stand in a response.
"""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from ilis_guard.cascade.stream import RetractionReason
from ilis_guard.config.base import StrictModel
from ilis_guard.text import is_blank
from ilis_guard.types import (
    Action,
    Decision,
    Departure,
    FinishReason,
    Label,
    Mode,
    ObstacleKind,
    Outcome,
    Stage,
    Ticket,
    TicketKind,
    TicketState,
    Verdict,
    total,
)

DECISION_HEADER: Final = "x-ilis-guard-decision"
"""For clients that drop members which they don't know."""
_DEFAULT_REFUSAL: Final = "No answer can be given."
"""Where the policy has no message of its own: an empty refusal would look like none."""
_RETRACTED: Final = "The text so far was withdrawn."

StreamFinishReason = Literal["stop", "length", "content_filter"]
"""`content_filter` where text was retracted, or a legacy completion has no answer."""
FinalAction = Literal["answer", "abstain", "escalate"]
AnyAction = Literal["answer", "abstain", "retry", "escalate"]


class Body(StrictModel):
    """Part of a response's body. In chunks, which leave out what wasn't set, what always stands has no default."""


# Parts of decisions.


class ErrorBody(Body):
    """An error by its kind: the name of a class in `ilis_guard.errors`, or ``UnexpectedError``."""

    kind: str
    message: str


class RuleOutcomeBody(Body):
    """What became of one rule; fields as in `ilis_guard.types.RuleOutcome`."""

    rule: str
    stage: Stage
    outcome: Outcome
    obstacle: ObstacleKind | None


class RulingBody(Body):
    """What the policy said to one attempt."""

    action: AnyAction
    rule: str | None
    """The rule that decided; none where no rule held."""
    stage: Stage
    outcomes: list[RuleOutcomeBody]


class ScoreBody(Body):
    """What a scorer said."""

    uncertainty: float
    typicality: float | None
    rank: float | None
    calibrated: bool
    departures: list[Departure]


class Summary(Body):
    """Some members of a larger body, of which the others are ignored."""

    model_config = ConfigDict(extra="ignore")


class AttemptSummary(Summary):
    """One tier's try, without its text."""

    tier: str
    stage: Stage
    uncertainty: float | None
    typicality: float | None
    rank: float | None
    """The share of its traffic's answers that are surer, 0 to 1; none where no traffic profile says."""
    calibrated: bool
    """Whether the uncertainty may be read as a probability; else it only ranks."""
    departures: list[Departure]
    """Why it isn't calibrated: what this request has that the rows with labels hadn't, or `labels`: there are none."""
    prompt_tokens: int | None
    """None where the provider doesn't say; so are the next two."""
    tokens: int | None
    cost: float | None
    finish_reason: FinishReason | None
    error: ErrorBody | None
    """Why there is no scored answer."""


class AttemptBody(AttemptSummary):
    """One tier's try; fields as in `ilis_guard.Attempt`."""

    model_config = ConfigDict(extra="forbid")

    text: str
    prompt_score: ScoreBody | None
    prompt_seconds: float | None
    prompt_cost: float | None
    statistics: dict[str, float | None] | None
    seconds: float
    stopped_at: int | None
    signatures: dict[str, list[list[float]]]


class TicketSummary(Summary):
    """Where a person sees the request: to answer it, or to audit the answer."""

    id: str
    queue: str


class DecisionSummary(Summary):
    """A decision without its texts, signatures and statistics; `/v1/decisions` returns all of it."""

    id: str
    action: FinalAction
    rule: str | None
    """The rule that decided; none where no rule held."""
    uncertainty: float | None
    """The last attempt's probability, 0 to 1, that the answer is wrong."""
    calibrated: bool
    """Whether it may be read as a probability; else it only ranks."""
    rank: float | None
    """The last attempt's: the share of its traffic's answers that are surer; none where no traffic profile says."""
    typicality: float | None
    """The last attempt's: 1 like the calibration rows, near 0 unlike any."""
    rulings: list[RulingBody]
    """What the policy said to each attempt."""
    tier: str
    """The last that was tried."""
    attempts: list[AttemptSummary]
    ticket: TicketSummary | None
    ticket_error: ErrorBody | None
    """Why no ticket could be stored."""
    cost: float | None
    """None where that of an attempt isn't known."""
    policy: str
    mode: Mode
    """`shadow` where the policy doesn't decide."""
    retracted: bool
    """Whether text was shown and retracted: then nothing in `content` counts."""
    text: str | None
    """The answer in place of the retracted text; none where there is none."""

    @classmethod
    def of(cls, decision: Decision, *, retracted: bool = False) -> "DecisionSummary":
        """Summarise a decision; after a retraction with the answer in place of the text, if there is one."""
        last = decision.attempts[-1]
        text = decision.text if retracted and decision.action is Action.ANSWER else None
        more = {"typicality": last.typicality, "tier": last.tier, "retracted": retracted, "text": text}
        return cls.model_validate(decision.for_callers() | more)


class TicketBody(Body):
    """The request before a person; fields as in `ilis_guard.Ticket`."""

    id: str
    queue: str
    state: TicketState
    kind: TicketKind
    created_at: float
    priority: int
    due_at: float | None
    version: int
    claimed_by: str
    claimed_until: float | None
    verdict: Verdict | None
    text: str
    reason: str
    ended_at: float | None


class ShadowBody(Body):
    """What a policy in shadow would have decided."""

    policy: str
    action: AnyAction | None
    rule: str | None
    rulings: list[RulingBody]
    error: ErrorBody | None


class DecisionBody(Body):
    """A decision; fields as in `ilis_guard.Decision`."""

    id: str
    created_at: float
    action: FinalAction
    text: str
    uncertainty: float | None
    calibrated: bool
    rank: float | None
    rule: str | None
    rulings: list[RulingBody]
    policy: str
    labels: dict[str, Label]
    prompt_length: int
    mode: Mode
    thresholds: dict[str, float | None]
    bundles: dict[str, str]
    shadow: ShadowBody | None
    cost: float | None
    ticket: TicketBody | None
    ticket_error: ErrorBody | None
    attempts: list[AttemptBody]


# OpenAI's.


class Withdrawal(Body):
    """All text of the stream so far is retracted."""

    retracted: Literal[True]
    reason: RetractionReason


class Usage(Body):
    """Tokens of all attempts together, also of answers that weren't given."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, decision: Decision) -> "Usage | None":
        """Add up a decision's attempts; None where the tokens of one aren't known."""
        prompt = total((attempt.prompt_tokens for attempt in decision.attempts), start=0)
        answer = total((attempt.tokens for attempt in decision.attempts), start=0)
        if prompt is None or answer is None:
            return None
        return cls(prompt_tokens=prompt, completion_tokens=answer, total_tokens=prompt + answer)


class ChatMessage(Body):
    """The answer, or why there is none: exactly one of the two."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None


class ChatChoice(Body):
    """The only one."""

    index: Literal[0] = 0
    message: ChatMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(Body):
    """A decision as a chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None
    """None where the tokens of an attempt aren't known."""
    ilis_guard: DecisionSummary


class ChatDelta(Body):
    """What a message grows by; the rest is left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None


class ChatChunkChoice(Body):
    """The only one."""

    index: Literal[0]
    delta: ChatDelta
    finish_reason: StreamFinishReason | None
    """In the last chunk that has a choice."""


class ChatChunk(Body):
    """A chunk of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    """None in the chunk with the usage."""
    usage: Usage | None = None
    """In the very last chunk, where the request asked for it."""
    ilis_guard: DecisionSummary | Withdrawal | None = None
    """The decision, beside the `finish_reason`; before that only a withdrawal."""


class CompletionChoice(Body):
    """The only one."""

    index: Literal[0]
    text: str
    """Empty where there is no answer."""
    refusal: str | None
    """Why there is none."""
    logprobs: None
    finish_reason: StreamFinishReason | None


class Completion(Body):
    """A decision as a legacy completion, or a chunk of one that is streamed."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    ilis_guard: DecisionSummary | Withdrawal | None = None


class ModelCard(Body):
    """The guard, as a model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """When the server started, seconds since the epoch."""
    owned_by: Literal["ilis_guard"] = "ilis_guard"


class ModelList(Body):
    """All models that requests may name."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def refusal_of(decision: Decision, *, retracted: bool = False) -> str | None:
    """The message in place of an answer; None where there is an answer.

    After a retraction there is always one, for clients that know nothing of retractions.
    """
    refusal = None
    if decision.action is not Action.ANSWER:
        refusal = _DEFAULT_REFUSAL if is_blank(decision.text) else decision.text.strip()
    return f"{_RETRACTED} {refusal or f'Instead: {decision.text}'}" if retracted else refusal


def finish_reason_of(decision: Decision) -> FinishReason:
    """Why the answer ended; a refusal stops by itself."""
    is_cut = decision.action is Action.ANSWER and decision.attempts[-1].finish_reason == "length"
    return "length" if is_cut else "stop"


def decision_headers(decision: Decision) -> dict[str, str]:
    """The decision's id and its action."""
    return {DECISION_HEADER: f"{decision.id}; {decision.action.value}"}


# Verdicts.


class ResolvedTicket(BaseModel):
    """A ticket as a verdict left it."""

    id: str
    queue: str
    state: TicketState
    version: int
    verdict: Verdict
    text: str
    reason: str
    ended_at: float
    """Seconds since the epoch, UTC."""

    @classmethod
    def of(cls, ticket: Ticket) -> "ResolvedTicket":
        """Describe a ticket that has ended."""
        values: dict[str, Any] = ticket.to_dict()
        return cls.model_validate(values, strict=True)
