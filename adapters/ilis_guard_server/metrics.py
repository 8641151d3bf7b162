"""Prometheus metrics of requests and decisions. No prompt, answer or caller's label is ever a metric's label."""

from collections.abc import Callable
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ilis_guard.types import Attempt, Decision

SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
UNCERTAINTY: Final = tuple(step / 20 for step in range(1, 21))


class Metrics:
    """Metrics of one application, in a registry of its own.

    Args:
        in_flight: returns how many requests are worked on.
        waiting: returns how many wait for a slot.
    """

    def __init__(self, *, in_flight: Callable[[], float], waiting: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        gauge = partial(Gauge, registry=self._registry)
        counter = partial(Counter, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        gauge("ilis_guard_requests_in_flight", "Requests that are worked on.").set_function(in_flight)
        gauge("ilis_guard_requests_waiting", "Requests that wait for a slot.").set_function(waiting)
        self._responses = counter("ilis_guard_responses", "Responses by path and status.", ["path", "status"])
        help_ = "Decisions by action, by the rule that decided, and by the last tier that was tried."
        self._decisions = counter("ilis_guard_decisions", help_, ["action", "rule", "tier"])
        self._attempts = counter("ilis_guard_attempts", "Tiers' attempts.", ["tier", "stage"])
        help_ = "Attempts that failed, by the kind of the error."
        self._errors = counter("ilis_guard_attempt_errors", help_, ["tier", "error"])
        self._tokens = counter("ilis_guard_tokens", "Tokens that models read and generated.", ["tier", "kind"])
        self._tickets = counter("ilis_guard_tickets", "Tickets that decisions made.", ["queue"])
        self._retractions = counter("ilis_guard_retractions", "Streams whose text had to be retracted.")
        self._disconnects = counter("ilis_guard_client_disconnects", "Requests whose clients disconnected.")
        help_ = "From a slot to the decision, by action."
        self._seconds = histogram("ilis_guard_decision_seconds", help_, ["action"], buckets=SECONDS)
        help_ = "Of scored attempts: the probability that the answer is wrong."
        self._uncertainty = histogram("ilis_guard_uncertainty", help_, ["tier"], buckets=UNCERTAINTY)
        help_ = "Scored attempts without a calibrated uncertainty, by each reason."
        self._departures = counter("ilis_guard_departures", help_, ["tier", "departure"])

    def count_decision(self, decision: Decision, seconds: float) -> None:
        """Count a decision, its attempts and its ticket."""
        self._decisions.labels(decision.action.value, decision.rule or "", decision.attempts[-1].tier).inc()
        self._seconds.labels(decision.action.value).observe(seconds)
        for attempt in decision.attempts:
            self._count_attempt(attempt)
        if decision.ticket is not None:
            self._tickets.labels(decision.ticket.queue).inc()

    def count_retraction(self) -> None:
        """Count a stream whose text had to be retracted."""
        self._retractions.inc()

    def count_disconnect(self) -> None:
        """Count a request whose client disconnected."""
        self._disconnects.inc()

    def count_response(self, path: str, status: int) -> None:
        """Count a response.

        Args:
            path: one of the guard's: paths that a client made up are no labels.
            status: its HTTP status.
        """
        self._responses.labels(path, str(status)).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _count_attempt(self, attempt: Attempt) -> None:
        self._attempts.labels(attempt.tier, attempt.stage).inc()
        for kind, tokens in (("prompt", attempt.prompt_tokens), ("answer", attempt.tokens)):
            if tokens is not None:
                self._tokens.labels(attempt.tier, kind).inc(tokens)
        if attempt.uncertainty is not None:
            self._uncertainty.labels(attempt.tier).observe(attempt.uncertainty)
        for departure in attempt.departures:
            self._departures.labels(attempt.tier, departure).inc()
        if attempt.error is not None:
            self._errors.labels(attempt.tier, attempt.error.kind).inc()
