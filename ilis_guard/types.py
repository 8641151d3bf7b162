"""The vocabulary: what a request becomes on its way through the house. Everything here is frozen."""

import math
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, Final, Literal, Self

import numpy as np
from jaxtyping import Float32

from ilis_guard.errors import RequestError, ReviewError
from ilis_guard.labels import problem as label_problem
from ilis_guard.sentences import paragraph

Label = str | int | float | bool
Labels = Mapping[str, Label]
Role = Literal["system", "user", "assistant"]
Position = Literal["prompt", "last", "mean", "answer"]
"""A token position: the last prompt token, the last answer token, the mean over all answer tokens, or the mean over
those that lie in a span of the text (only where a span was given)."""
POSITIONS: Final[tuple[Position, ...]] = ("prompt", "last", "mean")
"""Those that every answer has, whether or not a span was given."""

Stage = Literal["prompt", "answer"]
"""When a rule may act: once the prompt was read and before a token is generated, or on the answer."""
STAGES: Final[tuple[Stage, ...]] = ("prompt", "answer")

Site = Literal["mlp", "residual"]
"""Where a layer is tapped: `mlp` is the MLP module's output, before it is added to the residual stream; `residual` is
the layer's output, the stream itself."""
Mode = Literal["enforce", "shadow"]
"""Whether a policy decides, or only says what it would have decided."""
StreamMode = Literal["hold", "optimistic", "early_stop"]
"""`hold` shows nothing before the decision; `optimistic` shows tokens as they come, and may have to withdraw them;
`early_stop` shows nothing either, and generates no more of an answer that the policy wouldn't give."""
Precision = Literal["nf4", "full"]
"""How weights are held: bitsandbytes NF4 (4 bits, double quantisation), or as floating-point numbers."""
FinishReason = Literal["stop", "length"]
"""The model ended its answer itself, or it was cut off at its length limit."""
Dtype = Literal["float32", "bfloat16", "float16"]
Statistic = Literal["logprob_sum", "logprob_mean", "entropy_mean", "margin_min"]
"""The name of one of the output `Statistics`."""
STATISTICS: Final[tuple[Statistic, ...]] = ("logprob_sum", "logprob_mean", "entropy_mean", "margin_min")

TicketState = Literal["open", "claimed", "resolved", "expired"]
TicketKind = Literal["escalated", "audited"]
"""Why a ticket exists: a policy escalated the request, or an audit sampled an answer that was given."""
TicketWait = Callable[[str, float | None], "Awaitable[Ticket]"]
"""Waits for the ticket of this id for so many seconds, and returns it when it has ended."""

Signature = Float32[np.ndarray, "layers layers"]
"""The L x L map of directed KL divergences at one token position, in nats: row i, column j is KL(p_i || p_j)."""


class Action(StrEnum):
    """What is done with an answer."""

    ANSWER = "answer"
    ABSTAIN = "abstain"
    RETRY = "retry"
    ESCALATE = "escalate"


class Verdict(StrEnum):
    """What a person says of an escalated answer."""

    ACCEPT = "accept"
    CORRECT = "correct"
    REJECT = "reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the caller asks: a conversation that ends with the user's turn, and labels that policies may look at."""

    messages: tuple[Message, ...]
    labels: Labels = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""

    @classmethod
    def of(
        cls,
        prompt: "str | Sequence[Message | Mapping[str, str]]",
        labels: Labels | None = None,
        stop: Sequence[str] = (),
    ) -> Self:
        """Build a request from a string, messages, or ``{"role": ..., "content": ...}`` mappings.

        Raises:
            RequestError: the prompt is empty, a message is malformed, the last turn isn't the user's, a label isn't a
                short string, a number or a boolean (see `labels`), or a stop sequence isn't a string or is empty.
        """
        if not isinstance(prompt, Sequence):
            raise RequestError(f"a prompt is a string or a sequence of messages, got a {type(prompt).__name__}")
        turns = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
        messages = tuple(_message(index, turn) for index, turn in enumerate(turns))
        if not messages:
            raise RequestError("there are no messages; pass at least one turn by the user")
        if messages[-1].role != "user":
            raise RequestError(
                f"the last message (number {len(messages)}) is by {messages[-1].role!r}; the last turn must be the "
                "user's"
            )
        if not messages[-1].content.strip():
            raise RequestError(f"the prompt is empty (message number {len(messages)}); there is nothing to answer")
        if what := label_problem(labels or {}):
            raise RequestError(what)
        if isinstance(stop, str) or not all(isinstance(sequence, str) and sequence for sequence in stop):
            raise RequestError(f"`stop` is a list of strings that aren't empty, got a {type(stop).__name__} of others")
        return cls(messages=messages, labels=dict(labels or {}), stop=tuple(stop))

    @property
    def prompt(self) -> str:
        """The user's last turn."""
        return self.messages[-1].content

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `stop` only where there is any, so that others look as their tickets always did."""
        told = {
            "messages": [{"role": turn.role, "content": turn.content} for turn in self.messages],
            "labels": dict(self.labels),
        }
        return told | ({"stop": list(self.stop)} if self.stop else {})


class _Fingerprint:
    """What fingerprints of both kinds can."""

    __slots__: tuple[str, ...] = ()

    def differences(self, other: "_Fingerprint") -> tuple[str, ...]:
        """Names of what the two differ in; of two kinds, all of both."""
        mine, others = self.to_dict(), other.to_dict()
        return tuple(name for name in mine | others if mine.get(name) != others.get(name))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, flat."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.to_dict().items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint(_Fingerprint):
    """What makes a model's signatures comparable. A bundle holds only for models whose fingerprint equals its own."""

    weights: str
    """Digest of the checkpoint's tensors, hexadecimal."""
    precision: Precision
    dtype: Dtype
    """What activations are computed in: maps in bfloat16 differ from maps in float32 by percents."""
    layers: int
    hidden: int
    site: Site
    taps: str
    """Where the tapped modules are, the layer's number as a star: `model.layers.*.mlp`."""
    temperature: float
    decoding: str
    """How tokens are chosen: `greedy`, or what differs from it, as JSON."""
    prompt: str
    """Digest of how a question becomes a prompt, hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFingerprint(_Fingerprint):
    """As `Fingerprint`, of a model that can't be tapped: what makes the output statistics of its answers comparable.

    It is asked a conversation as it is, so there is no wording to tell of. What stands behind its name is its
    provider's secret, and may change under it.
    """

    chat_model: str
    """Import path of the class that asks it, ``package.module:Class``."""
    model: str
    """Its provider's name for it; empty where the class doesn't say."""
    arguments: Mapping[str, bool | int | float | str]
    """What else it is asked with, by name: truth values and numbers as they are, all else as a digest. Secrets,
    time-outs and the like aren't among them; its address is, for another server may hold another model of that name."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, flat: each argument as ``arguments.NAME``."""
        arguments = {f"arguments.{name}": value for name, value in self.arguments.items()}
        return {"chat_model": self.chat_model, "model": self.model, **arguments}


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Output statistics of the pass that generated an answer, over its answer tokens (natural logarithms)."""

    logprob_sum: float
    """Log-probability of the whole answer, nats, at most 0."""
    logprob_mean: float
    """The same per answer token, nats, at most 0."""
    entropy_mean: float
    """Mean entropy of the next-token distributions, nats, at least 0."""
    margin_min: float
    """Smallest gap between the probabilities of the likeliest and the second token, 0 to 1."""

    def to_dict(self) -> dict[str, float]:
        """As JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What a model returned, with what was seen inside it on the way."""

    text: str
    tokens: int
    """Answer tokens: end-of-sequence and other special tokens don't count."""
    prompt_tokens: int
    finish_reason: FinishReason | None
    """None where the generation isn't at its end: while tokens come, or where it was stopped at the prompt."""
    seconds: float
    token_ids: tuple[int, ...] = ()
    """Everything generated up to the end token, special tokens too; what `LocalModel.read` takes."""
    signatures: Mapping[Position, Signature] = field(default_factory=dict)
    """Signatures by token position; empty where the model can't be tapped. `last` and `mean` are missing where no
    generated token passed through the model."""
    statistics: Statistics | None = None
    sent: tuple[Message, ...] = ()
    """The conversation that the model was really sent, where it words its own, as a chain does: larger tiers are asked
    this one, and tickets show it. Empty where that is the request's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a scorer says of one generation."""

    uncertainty: float
    """Calibrated probability, 0 to 1, that the answer is wrong; higher is more uncertain."""
    typicality: float
    """From 0 (unlike the calibration signatures) to 1 (like them); uniform on data exchangeable with them. NaN where
    the scorer can't tell."""

    def to_dict(self) -> dict[str, float | None]:
        """As JSON values: NaN is none."""
        return {"uncertainty": self.uncertainty, "typicality": None if math.isnan(self.typicality) else self.typicality}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A generation as far as it has come: after the prompt, after each token, and at its end."""

    token: str
    """What the text grew by: texts joined are the whole answer. Empty after the prompt, and where a special token or
    part of a character came."""
    generation: Generation
    """So far: `prompt` is there from the first step, `last`, `mean` and statistics once a token passed."""
    score: Score | None = None
    """What is known so far of how uncertain the answer is: at the prompt by the tier's prompt bundle, then by its
    bundle; None where there is nothing to score yet or nothing to score it with. Only the last step's is calibrated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One tier's try at a request: what it said, how sure it was, what it cost, or why it failed."""

    tier: str
    stage: Stage = "answer"
    """`prompt` where a rule ended it before a token was generated."""
    text: str = ""
    uncertainty: float | None = None
    """At the stage that it came to."""
    typicality: float | None = None
    """As `uncertainty`."""
    prompt_score: Score | None = None
    """What the tier's prompt bundle said before a token was generated; None where it wasn't asked."""
    prompt_seconds: float | None = None
    """What the attempt had taken when the rules of stage `prompt` were asked; None where none were. So has
    `prompt_cost`."""
    prompt_cost: float | None = None
    """With the price of the call under way, and of the prompt that it read."""
    signatures: Mapping[Position, Signature] = field(default_factory=dict)
    statistics: Statistics | None = None
    seconds: float = 0.0
    prompt_tokens: int = 0
    """What the model read; 0 where it gave nothing back."""
    tokens: int = 0
    cost: float = 0.0
    """In the unit of guard.yaml's prices; 0 where the tier has none."""
    finish_reason: FinishReason | None = None
    """`length` where the answer was cut off at its limit; None where there is none, or it was cut before it ended."""
    stopped_at: int | None = None
    """Answer tokens there were when a stream cut it, because no rule would answer; None where it came to its end."""
    error: str = ""

    @property
    def signature(self) -> Signature | None:
        """The mean map over the generated tokens, float32 [layers, layers], nats; None where there is none."""
        return self.signatures.get("mean")

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, signatures as nested lists: with a verdict, an attempt is an example to fit on."""
        # An overflowed model's statistics are no numbers, which JSON can't say: a ticket with them couldn't be stored.
        known = {} if self.statistics is None else self.statistics.to_dict()
        statistics = {name: value if math.isfinite(value) else None for name, value in known.items()}
        return {
            "tier": self.tier,
            "stage": self.stage,
            "text": self.text,
            "uncertainty": self.uncertainty,
            "typicality": self.typicality,
            "prompt_score": None if self.prompt_score is None else self.prompt_score.to_dict(),
            "prompt_seconds": self.prompt_seconds,
            "prompt_cost": self.prompt_cost,
            "statistics": statistics or None,
            "seconds": self.seconds,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "cost": self.cost,
            "finish_reason": self.finish_reason,
            "stopped_at": self.stopped_at,
            "error": self.error,
            "signatures": {position: signature.tolist() for position, signature in self.signatures.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One escalated request in the review queue; it ends with a verdict."""

    id: str
    queue: str
    state: TicketState
    """`open` or `claimed` while it waits; `resolved` by a verdict or `expired` without one when it ended."""
    created_at: float
    """Seconds since the epoch, UTC, as all times here."""
    kind: TicketKind = "escalated"
    priority: int = 0
    """Higher is reviewed earlier."""
    due_at: float | None = None
    """When it is overdue; None for never."""
    version: int = 1
    """Grows with every change: who decides on what they saw says which version that was."""
    claimed_by: str = ""
    """Who has it in hand; empty unless it is claimed."""
    claimed_until: float | None = None
    """When it is open again for others, unless the claim is renewed."""
    verdict: Verdict | None = None
    text: str = ""
    """The corrected answer, where the verdict is `correct`."""
    reason: str = ""
    """Why the reviewer decided so."""
    ended_at: float | None = None
    waiter: TicketWait | None = field(default=None, repr=False, compare=False)
    """How `wait` waits: given by the queue that escalated it, and lost when the ticket is pickled or copied."""

    async def wait(self, timeout: float | None = None) -> "Ticket":  # noqa: ASYNC109 - what callers look for
        """Wait until the ticket has ended, and return it as it then is, with its verdict and text.

        Args:
            timeout: seconds to wait at most; None waits for as long as it takes.

        Raises:
            TimeoutError: it hasn't ended in time.
            ReviewError: the queue failed, or this ticket didn't come from `escalate` in this process.
        """
        if self.waiter is None:
            raise ReviewError(
                f"this copy of ticket {self.id} doesn't know its queue; wait with ReviewQueue.wait({self.id!r})"
            )
        return await self.waiter(self.id, timeout)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "waiter"}

    def __reduce__(self) -> "tuple[Callable[[], Ticket], tuple[()]]":
        return partial(Ticket, **self.to_dict()), ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowRuling:
    """What a policy that only looks on would have decided."""

    policy: str
    """Its fingerprint."""
    action: Action | None
    """`retry` where it wants a tier that wasn't asked; None where it hangs on an answer that was never made, or on an
    error of the policy's own."""
    rule: str | None
    """Id of the rule that would have decided; None where no rule held."""
    reasons: tuple[str, ...]
    """As a decision's."""
    error: str = ""
    """Why it couldn't say; the decision is none the worse for it."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "policy": self.policy,
            "action": None if self.action is None else self.action.value,
            "rule": self.rule,
            "reasons": list(self.reasons),
            "error": self.error,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The outcome of one request."""

    action: Action
    """`answer`, `abstain` or `escalate`: a retry is an attempt, not an outcome."""
    text: str
    """The answer where the action is `answer`; otherwise the message the policy chose, which may be empty."""
    uncertainty: float | None
    """The last attempt's uncertainty; None where it has no score."""
    rules: tuple[str | None, ...]
    """Id of the rule that decided after each attempt; None where no rule held."""
    reasons: tuple[str, ...]
    """Why, in the order it came about: rules passed over, errors met, what decided."""
    attempts: tuple[Attempt, ...]
    policy: str
    """Fingerprint of the policy in force."""
    labels: Labels = field(default_factory=dict)
    """The caller's, as the policy saw them."""
    prompt_length: int = 0
    """Characters of the user's last turn, as the policy saw it."""
    mode: Mode = "enforce"
    """`shadow` where that policy only looked on: what it would have decided stands in `shadow`, no rule decided, and
    the first tier's answer went out."""
    thresholds: Mapping[str, float | None] = field(default_factory=dict)
    """By tier, where the policy gives a guarantee: the uncertainty, 0 to 1, up to which it holds; None where it can't
    be certified."""
    bundles: Mapping[str, str] = field(default_factory=dict)
    """By tier: the digest of the bundle that scores its answers."""
    shadow: ShadowRuling | None = None
    """What a policy that only looks on said: guard.yaml's `shadow`, or the policy in force in the mode `shadow`."""
    ticket: Ticket | None = None
    """Where the action is `escalate`; or `answer`, and the answer was drawn for an audit."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created_at: float = field(default_factory=time.time)

    @property
    def rule(self) -> str | None:
        """Id of the rule that decided in the end; None where no rule held."""
        return self.rules[-1]

    @property
    def cost(self) -> float:
        """Of all attempts together, in the unit of guard.yaml's prices."""
        return sum(attempt.cost for attempt in self.attempts)

    def explain(self) -> str:
        """What was done and why, in a few sentences for a reviewer, without prompts and answers."""
        told = ("tier", "stage", "uncertainty", "stopped_at", "error")
        return paragraph(
            action=self.action.value,
            attempts=[{name: getattr(attempt, name) for name in told} for attempt in self.attempts],
            reasons=self.reasons,
            queue="" if self.ticket is None else self.ticket.queue,
            mode=self.mode,
            shadow=None if self.shadow is None else self.shadow.to_dict(),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, complete: texts, scores, statistics and signatures of all attempts."""
        return {
            "id": self.id,
            "created_at": self.created_at,
            "action": self.action.value,
            "text": self.text,
            "uncertainty": self.uncertainty,
            "rule": self.rule,
            "rules": list(self.rules),
            "reasons": list(self.reasons),
            "policy": self.policy,
            "labels": dict(self.labels),
            "prompt_length": self.prompt_length,
            "mode": self.mode,
            "thresholds": dict(self.thresholds),
            "bundles": dict(self.bundles),
            "shadow": None if self.shadow is None else self.shadow.to_dict(),
            "cost": self.cost,
            "ticket": None if self.ticket is None else self.ticket.to_dict(),
            "attempts": [attempt.to_dict() for attempt in self.attempts],
        }


def _message(index: int, turn: Message | Mapping[str, str]) -> Message:
    where = f"message number {index + 1}"
    if isinstance(turn, Message):
        turn = {"role": turn.role, "content": turn.content}
    if not isinstance(turn, Mapping) or set(turn) != {"role", "content"}:
        raise RequestError(f"{where} must have exactly the keys 'role' and 'content', got {_shape(turn)}")
    role, content = turn["role"], turn["content"]
    if role not in ("system", "user", "assistant"):
        raise RequestError(f"{where} has the role {role!r}; it must be 'system', 'user' or 'assistant'")
    if not isinstance(content, str):
        raise RequestError(f"{where} has content of type {type(content).__name__}; it must be a string")
    return Message(role=role, content=content)  # type: ignore[arg-type]  # narrowed by the check above


def _shape(turn: object) -> str:
    """What was got, without its text: prompts stay out of error messages."""
    return f"the keys {sorted(map(str, turn))!r}" if isinstance(turn, Mapping) else f"a {type(turn).__name__}"
