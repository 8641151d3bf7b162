"""Decisions: what was done with a request, and every attempt at it."""

import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np

from ilis_guard.types.generations import Departure, FinishReason, Position, Score, Signature, Statistics
from ilis_guard.types.requests import Labels
from ilis_guard.types.rulings import (
    Action,
    ErrorInfo,
    Mode,
    Ruling,
    ShadowRuling,
    Stage,
    json_values,
    read_rulings,
    read_shadow_ruling,
)
from ilis_guard.types.scalars import total
from ilis_guard.types.tickets import Ticket

StreamMode = Literal["hold", "optimistic", "early_stop"]
"""`hold` shows nothing before the decision; `optimistic` shows tokens as they come, and may have to withdraw them;
`early_stop` shows nothing either, and generates no more of an answer that the policy wouldn't give."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Attempt:
    """One tier's try at a request: its answer, how uncertain it was, what it cost, or why it failed."""

    tier: str
    stage: Stage = "answer"
    """`prompt` where a rule ended it before a token was generated."""
    text: str = ""
    uncertainty: float | None = None
    """At the stage that it came to."""
    typicality: float | None = None
    """As `uncertainty`."""
    rank: float | None = None
    """As `Score.rank`; None where no traffic profile says."""
    departures: tuple[Departure, ...] = ()
    """Why the uncertainty isn't calibrated for this request; empty where it is, or there is none."""
    prompt_score: Score | None = None
    """The prompt bundle's score before a token was generated; None where it wasn't used."""
    prompt_seconds: float | None = None
    """Seconds until the rules of stage `prompt` were evaluated; None where none were."""
    prompt_cost: float | None = None
    """Cost at the same time: of the call under way and of the prompt that it read; None as `prompt_seconds`, and as
    `cost`."""
    signatures: Mapping[Position, Signature] = field(default_factory=dict)
    statistics: Statistics | None = None
    seconds: float = 0.0
    prompt_tokens: int | None = 0
    """What the model read; 0 where it gave nothing back, None where the provider doesn't say, or the call was given up
    before its end."""
    tokens: int | None = 0
    """What it wrote; as `prompt_tokens`."""
    cost: float | None = 0.0
    """In the unit of guard.yaml's prices; None where it isn't known: the tier has no prices, or one for tokens that
    aren't known."""
    finish_reason: FinishReason | None = None
    """`length` where the answer was cut off at its limit; None where there is none, or it was cut before it ended."""
    stopped_at: int | None = None
    """Answer tokens there were when a stream cut it, because no rule would answer; None where it came to its end."""
    error: ErrorInfo | None = None
    """Why there is no scored answer."""

    @property
    def calibrated(self) -> bool:
        """Whether the uncertainty may be read as a probability; False where there is none."""
        return self.uncertainty is not None and not self.departures

    @property
    def signature(self) -> Signature | None:
        """The mean map over the generated tokens, float32 [layers, layers], nats; None where there is none."""
        return self.signatures.get("mean")

    def __repr__(self) -> str:
        """On one line, without texts and signatures."""
        uncertainty = "None" if self.uncertainty is None else f"{self.uncertainty:.3g}"
        error = "" if self.error is None else f", error={self.error.kind!r}"
        return (
            f"Attempt(tier={self.tier!r}, stage={self.stage!r}, uncertainty={uncertainty}, tokens={self.tokens}{error})"
        )

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
            "rank": self.rank,
            "calibrated": self.calibrated,
            "departures": list(self.departures),
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
            "error": json_values(self.error),
            "signatures": {position: signature.tolist() for position, signature in self.signatures.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Decision:
    """The outcome of one request."""

    action: Action
    """`answer`, `abstain` or `escalate`: a retry is an attempt, not an outcome."""
    text: str
    """The answer where the action is `answer`; otherwise the message the policy chose, which may be empty."""
    uncertainty: float | None
    """The last attempt's uncertainty; None where it has no score."""
    rulings: tuple[Ruling, ...]
    """What the policy said to each attempt. Empty in the mode `shadow`: no rule decided."""
    attempts: tuple[Attempt, ...]
    policy: str
    """Fingerprint of the policy in force."""
    labels: Labels = field(default_factory=dict)
    """The caller's, as the policy saw them."""
    prompt_length: int = 0
    """Characters of the user's last turn, as the policy saw it."""
    mode: Mode = "enforce"
    """`shadow` where the policy in force doesn't decide: what it would have decided is in `shadow`, and the first
    tier's answer was given."""
    thresholds: Mapping[str, float | None] = field(default_factory=dict)
    """By tier, where the policy gives a guarantee: the uncertainty, 0 to 1, up to which it holds; None where it can't
    be certified."""
    bundles: Mapping[str, str] = field(default_factory=dict)
    """By tier: the digest of the bundle that scores its answers."""
    shadow: ShadowRuling | None = None
    """What a policy in shadow said: guard.yaml's `shadow`, or the policy in force in the mode `shadow`."""
    ticket: Ticket | None = None
    """Where the action is `escalate`; or `answer`, and the answer was sampled for an audit."""
    ticket_error: ErrorInfo | None = None
    """Why a ticket couldn't be stored: an escalation became an abstention, or an audit was lost."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created_at: float = field(default_factory=time.time)

    @property
    def calibrated(self) -> bool:
        """Whether the uncertainty may be read as a probability; False where there is none."""
        return bool(self.attempts) and self.attempts[-1].calibrated

    @property
    def rank(self) -> float | None:
        """The last attempt's; None where no traffic profile says."""
        return self.attempts[-1].rank if self.attempts else None

    @property
    def rule(self) -> str | None:
        """Id of the rule that decided in the end; None where no rule held."""
        return self.rulings[-1].rule if self.rulings else None

    @property
    def rules(self) -> tuple[str | None, ...]:
        """Id of the rule that decided after each attempt; None where no rule held."""
        return tuple(ruling.rule for ruling in self.rulings)

    @property
    def cost(self) -> float | None:
        """Of all attempts together, in the unit of guard.yaml's prices; None where that of one isn't known."""
        return total((attempt.cost for attempt in self.attempts), start=0.0)

    def __repr__(self) -> str:
        """On one line, without texts and signatures."""
        uncertainty = "None" if self.uncertainty is None else f"{self.uncertainty:.3g}"
        ticket = "" if self.ticket is None else f", ticket={self.ticket.id!r}"
        return (
            f"Decision(action={self.action.value!r}, rule={self.rule!r}, uncertainty={uncertainty}, "
            f"attempts={len(self.attempts)}{ticket}, id={self.id!r})"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, complete: texts, scores, statistics and signatures of all attempts, errors' details."""
        return {
            "id": self.id,
            "created_at": self.created_at,
            "action": self.action.value,
            "text": self.text,
            "uncertainty": self.uncertainty,
            "calibrated": self.calibrated,
            "rank": self.rank,
            "rule": self.rule,
            "rulings": [ruling.to_dict() for ruling in self.rulings],
            "policy": self.policy,
            "labels": dict(self.labels),
            "prompt_length": self.prompt_length,
            "mode": self.mode,
            "thresholds": dict(self.thresholds),
            "bundles": dict(self.bundles),
            "shadow": None if self.shadow is None else self.shadow.to_dict(),
            "cost": self.cost,
            "ticket": None if self.ticket is None else self.ticket.to_dict(),
            "ticket_error": json_values(self.ticket_error),
            "attempts": [attempt.to_dict() for attempt in self.attempts],
        }

    def for_callers(self) -> dict[str, Any]:
        """As `to_dict`, for an API's callers: errors by kind and message, rules by id and outcome.

        No exception's text is in it, and so no path, host or key.
        """
        return self.to_dict() | {
            "rulings": [ruling.for_callers() for ruling in self.rulings],
            "shadow": None if self.shadow is None else self.shadow.for_callers(),
            "ticket_error": None if self.ticket_error is None else self.ticket_error.for_callers(),
            "attempts": [
                attempt.to_dict() | {"error": None if attempt.error is None else attempt.error.for_callers()}
                for attempt in self.attempts
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """A decision as it is kept under the id that its caller gave it."""

    id: str
    digest: str
    """The request's: under this id nobody may ask for anything else."""
    values: Mapping[str, Any]
    """The decision's JSON values."""
    ticket: Ticket | None = None
    """The decision's ticket as it is now."""

    def decision(self) -> Decision:
        """Read the decision, with its ticket as it is now."""
        return read_decision(self.values, ticket=self.ticket)


def read_decision(values: Mapping[str, Any], *, ticket: Ticket | None) -> Decision:
    """A decision from the JSON values that `Decision.to_dict` made, signatures and all.

    Args:
        values: JSON values.
        ticket: takes the place of the one in the values.
    """
    shadow, error = values["shadow"], values["ticket_error"]
    return Decision(
        **{name: values[name] for name in _PLAIN},
        action=Action(values["action"]),
        rulings=read_rulings(values["rulings"]),
        attempts=tuple(
            replace(
                read_attempt(attempt),
                signatures={
                    position: np.asarray(signature, dtype=np.float32)
                    for position, signature in attempt["signatures"].items()
                },
            )
            for attempt in values["attempts"]
        ),
        shadow=None if shadow is None else read_shadow_ruling(shadow),
        ticket=ticket,
        ticket_error=None if error is None else ErrorInfo(**error),
    )


def read_attempt(values: Mapping[str, Any]) -> Attempt:
    """An attempt from the JSON values that `Attempt.to_dict` made, without its signatures."""
    score, statistics, error = values["prompt_score"], values["statistics"], values["error"]
    return Attempt(
        **{name: value for name, value in values.items() if name not in _NESTED},
        departures=tuple(values["departures"]),
        prompt_score=None if score is None else Score.read(score),
        statistics=(
            None if statistics is None else Statistics(**{name: _number(each) for name, each in statistics.items()})
        ),
        error=None if error is None else ErrorInfo(**error),
    )


_PLAIN: Final = (
    "id",
    "created_at",
    "text",
    "uncertainty",
    "policy",
    "labels",
    "prompt_length",
    "mode",
    "thresholds",
    "bundles",
)
_NESTED: Final = frozenset({"calibrated", "departures", "prompt_score", "statistics", "error", "signatures"})


def _number(value: float | None) -> float:
    return math.nan if value is None else value
