"""What is counted of requests and decisions, for Prometheus; never by prompts, answers or callers' labels."""

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ilis_guard.types import Attempt, Decision

SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
UNCERTAINTY: Final = tuple(step / 20 for step in range(1, 21))


class Metrics:
    """Counters of one application, in a registry of its own.

    Args:
        under_way: how many requests are worked on.
        waiting: how many wait in line.
    """

    def __init__(self, *, under_way: Callable[[], float], waiting: Callable[[], float]) -> None:
        registry = self._registry = CollectorRegistry()
        Gauge("ilis_guard_requests_in_flight", "Requests that are worked on.", registry=registry).set_function(
            under_way
        )
        Gauge("ilis_guard_requests_waiting", "Requests that wait in line.", registry=registry).set_function(waiting)
        self._responses = Counter(
            "ilis_guard_responses", "Responses by path and status.", ["path", "status"], registry=registry
        )
        self._decisions = Counter(
            "ilis_guard_decisions",
            "Decisions by action, by the rule that decided, and by the last tier that was asked.",
            ["action", "rule", "tier"],
            registry=registry,
        )
        self._attempts = Counter("ilis_guard_attempts", "Tiers' attempts.", ["tier", "stage"], registry=registry)
        self._errors = Counter(
            "ilis_guard_attempt_errors",
            "Attempts that failed, by the error's class.",
            ["tier", "error"],
            registry=registry,
        )
        self._tokens = Counter(
            "ilis_guard_tokens", "Tokens that models read and generated.", ["tier", "kind"], registry=registry
        )
        self._tickets = Counter("ilis_guard_tickets", "Tickets that decisions made.", ["queue"], registry=registry)
        self._retractions = Counter(
            "ilis_guard_retractions", "Streams whose pieces had to be withdrawn.", registry=registry
        )
        self._gone = Counter("ilis_guard_clients_gone", "Requests that their clients left.", registry=registry)
        self._seconds = Histogram(
            "ilis_guard_decision_seconds",
            "From a place in line to the decision, by action.",
            ["action"],
            buckets=SECONDS,
            registry=registry,
        )
        self._uncertainty = Histogram(
            "ilis_guard_uncertainty",
            "Of scored attempts: the probability that the answer is wrong.",
            ["tier"],
            buckets=UNCERTAINTY,
            registry=registry,
        )

    def decided(self, decision: Decision, seconds: float) -> None:
        """Count a decision and what it is made of."""
        self._decisions.labels(decision.action.value, decision.rule or "", decision.attempts[-1].tier).inc()
        self._seconds.labels(decision.action.value).observe(seconds)
        for attempt in decision.attempts:
            self._attempted(attempt)
        if decision.ticket is not None:
            self._tickets.labels(decision.ticket.queue).inc()

    def retracted(self) -> None:
        """Count a stream whose pieces had to be withdrawn."""
        self._retractions.inc()

    def gone(self) -> None:
        """Count a request that its client left."""
        self._gone.inc()

    def responded(self, path: str, status: int) -> None:
        """Count a response.

        Args:
            path: one of ours: whatever else was asked for is not a label.
            status: its HTTP status.
        """
        self._responses.labels(path, str(status)).inc()

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def _attempted(self, attempt: Attempt) -> None:
        self._attempts.labels(attempt.tier, attempt.stage).inc()
        self._tokens.labels(attempt.tier, "prompt").inc(attempt.prompt_tokens)
        self._tokens.labels(attempt.tier, "answer").inc(attempt.tokens)
        if attempt.uncertainty is not None:
            self._uncertainty.labels(attempt.tier).observe(attempt.uncertainty)
        if attempt.error is not None:
            self._errors.labels(attempt.tier, attempt.error.kind).inc()
