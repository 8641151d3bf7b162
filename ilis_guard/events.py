"""Names and fields of log events. Names are stable: dashboards and alerts may use them.

Prompts and answers are never fields, unless the operator sets ``log_texts`` in guard.yaml.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

import structlog

WEIGHTS_TERMS: Final = "ilis_guard.weights.terms"
"""Weights with terms of use of their own are about to be used. Fields: weights, terms, where."""
WEIGHTS_CONVERTED: Final = "ilis_guard.weights.converted"
"""Packaged weights were converted and cached. Fields: weights, folder, seconds."""
MODEL_LOADED: Final = "ilis_guard.model.loaded"
"""Fields: model, precision, layers, fingerprint, seconds."""
TAPS_PROVEN: Final = "ilis_guard.taps.proven"
"""Each tap was perturbed and the logits moved; least_moved is in standard deviations. Fields: layers, least_moved."""
PROOF_NOT_STORED: Final = "ilis_guard.proof.not_stored"
"""A warning: the proof can't be cached, so the next start repeats it. Fields: error."""
TIER_UNSCORED: Final = "ilis_guard.tier.unscored"
"""A warning: the tier has neither a bundle nor a rolling profile, so no policy can answer with its answers.
Fields: tier."""
PROFILE_DRIFTED: Final = "ilis_guard.profile.drifted"
"""A warning, once a drift: the newest answers of a tier's rolling profile don't resemble those before them. Medians are
of what ranks them: uncertainties, or perplexities' logarithms where there is no bundle. Fields: tier, answers, earlier,
distance, p_value, median, earlier_median."""
PROFILE_MISMATCHED: Final = "ilis_guard.profile.mismatched"
"""A warning: the model that replaces a tier's isn't the one whose answers its rolling profile holds, so its answers
have no rank. Fields: tier, error."""
PROFILE_NOT_STORED: Final = "ilis_guard.profile.not_stored"
"""A warning: an answer couldn't be written to a tier's rolling profile, and is known to this process alone.
Fields: tier, error."""
TIER_UNCALIBRATED: Final = "ilis_guard.tier.uncalibrated"
"""A warning: a tier's model gets its questions, or decodes its answers, otherwise than the one that its bundle was
fitted to, so no score of it is calibrated: it only ranks. Fields: tier, stage, departures."""
BUNDLE_DOUBTED: Final = "ilis_guard.bundle.doubted"
"""A warning: what a fit's or a recalibration's own figures say against a tier's score, at the guard's start. `kind` is
a finding's. Fields: tier, stage, bundle, kind, severity, value, bound."""
THRESHOLD_IDLE: Final = "ilis_guard.threshold.idle"
"""A warning: a rule compares the typicality with a threshold below the least one that the tier's bundle can give, so
that the comparison always or never holds. Fields: policy, rule, tier, threshold, least, calibration_rows."""
BUNDLE_MISMATCHED: Final = "ilis_guard.bundle.mismatched"
"""A warning: the chat model that replaces a remote tier's isn't the one that its bundle was fitted to, so its answers
have no score. Fields: tier, differing."""
ATTEMPT_FINISHED: Final = "ilis_guard.attempt.finished"
"""A tier's answer was scored, or a rule of stage `prompt` ended the attempt before the answer.
Fields: decision, tier, attempt, stage, uncertainty, typicality, rank, departures, tokens, stopped_at, seconds."""
ATTEMPT_FAILED: Final = "ilis_guard.attempt.failed"
"""A tier gave no scored answer. Fields: decision, tier, attempt, error, seconds."""
CALL_REPEATED: Final = "ilis_guard.call.repeated"
"""A call failed with a transient error, and the same tier is called again. Fields: tier, call, error."""
CIRCUIT_OPENED: Final = "ilis_guard.circuit.opened"
"""An error: a tier's calls failed too often in a row; none is made for some time. Fields: tier, failures, seconds."""
CIRCUIT_CLOSED: Final = "ilis_guard.circuit.closed"
"""A tier whose circuit was open answered again. Fields: tier."""
DECISION_MADE: Final = "ilis_guard.decision.made"
"""Thresholds and bundles are given by tier; shadow is the ruling of the shadow policy.
Fields: decision, action, rule, tier, uncertainty, calibrated, rank, attempts, ticket, seconds, cost, mode, policy,
thresholds, bundles, shadow."""
STREAM_ABANDONED: Final = "ilis_guard.stream.abandoned"
"""A stream was closed before the decision, so there is none. Fields: decision, seconds."""
ESCALATION_FAILED: Final = "ilis_guard.escalation.failed"
"""A ticket couldn't be stored; the decision became an abstention. Fields: decision, queue, error."""
AUDIT_FAILED: Final = "ilis_guard.audit.failed"
"""An error: an answer was sampled for an audit, and its ticket couldn't be stored. Fields: decision, queue, error."""
DECISION_NOT_FOUND: Final = "ilis_guard.decision.not_found"
"""A warning: the queue's storage failed when a decision was looked up by its caller's id, so it is made anew; if it is
there, it is found when this one is to be kept. Fields: decision, error."""
DECISION_NOT_RECORDED: Final = "ilis_guard.decision.not_recorded"
"""An error: a decision couldn't be kept under the id that its caller gave it, so a repeated request is decided anew.
Fields: decision, error."""
SHADOW_FAILED: Final = "ilis_guard.shadow.failed"
"""An error: the shadow policy couldn't be evaluated. Fields: decision, error."""
POLICY_RELOADED: Final = "ilis_guard.policy.reloaded"
"""A warning: a policy file has changed and is in force. Fields: files, policy, mode, shadow."""
POLICY_RELOAD_FAILED: Final = "ilis_guard.policy.reload_failed"
"""An error: a policy file has changed and can't be used; the last valid policies stay in force.
Fields: files, policy, shadow, problems."""
TICKET_CREATED: Final = "ilis_guard.ticket.created"
"""A ticket is committed. Fields: ticket, queue."""
TICKET_CLAIMED: Final = "ilis_guard.ticket.claimed"
"""A claim is committed. Fields: ticket, queue, by."""
TICKET_RELEASED: Final = "ilis_guard.ticket.released"
"""A claim was released. Fields: ticket, queue, by."""
TICKET_OVERDUE: Final = "ilis_guard.ticket.overdue"
"""An overdue ticket expired (overdue is `expire`) or moved to another queue (its name). Fields: ticket, queue,
overdue."""
TICKET_RESOLVED: Final = "ilis_guard.ticket.resolved"
"""A verdict is committed. Fields: ticket, queue, verdict."""
TICKETS_REDACTED: Final = "ilis_guard.tickets.redacted"
"""The texts of a number of old tickets were deleted. Fields: tickets."""
TICKETS_PURGED: Final = "ilis_guard.tickets.purged"
"""A number of old tickets was deleted. Fields: tickets."""
DELIVERY_DELIVERED: Final = "ilis_guard.delivery.delivered"
"""An endpoint accepted a webhook. Fields: delivery, endpoint, type, tries, status."""
DELIVERY_FAILED: Final = "ilis_guard.delivery.failed"
"""A warning: a try failed, and there will be another. Fields: as before, error, next_try_at."""
DELIVERY_EXHAUSTED: Final = "ilis_guard.delivery.exhausted"
"""An error: the last try failed. Fields: delivery, endpoint, type, tries, status, error."""
ENDPOINT_DISABLED: Final = "ilis_guard.endpoint.disabled"
"""An error: an endpoint answered 410 Gone, so it gets no more. Fields: delivery, endpoint, type, tries, status."""
RELAY_DELAYED: Final = "ilis_guard.relay.delayed"
"""A warning: the database failed, and the outbox relay waits for it; unrecorded counts the tries whose outcome isn't
stored yet. Fields: error, unrecorded."""
DELIVERIES_ORPHANED: Final = "ilis_guard.deliveries.orphaned"
"""A warning: deliveries wait for an endpoint that guard.yaml doesn't name. Fields: endpoint, deliveries."""

REQUEST_FAILED: Final = "ilis_guard.request.failed"
"""The server refused a request or failed. Fields: request, method, path, status, error, and where for a defect."""
REQUEST_DECIDED: Final = "ilis_guard.request.decided"
"""The server decided a request; client is its key's name. Fields: request, decision, client, path, mode, seconds."""
QUEUE_UNREACHABLE: Final = "ilis_guard.queue.unreachable"
"""A warning: the server isn't ready, because the human queue's database failed. Fields: error."""
CONNECTIONS_CLOSED: Final = "ilis_guard.connections.closed"
"""A warning, at most every ten seconds: how many connections the server has closed, and why. Fields: open, no_room,
slow_head, slow_body, reads_nothing, invalid."""
CLIENT_DISCONNECTED: Final = "ilis_guard.client.disconnected"
"""A client disconnected before the decision, and the generation was stopped. Fields: request, client, path, seconds."""
AUTH_FAILED: Final = "ilis_guard.auth.failed"
"""A warning: a request had no valid API key. Fields: request, address."""
API_KEY_UNREADABLE: Final = "ilis_guard.api_key.unreadable"
"""An error: the reference to an API key's hash can't be resolved, so the key isn't accepted. Fields: name, error."""
SIGN_IN_SUCCEEDED: Final = "ilis_guard.sign_in.succeeded"
"""A person signed in to the reviewers' page, by `token` or through the `proxy`. Fields: name, method."""
SIGN_IN_FAILED: Final = "ilis_guard.sign_in.failed"
"""A warning: the token was wrong, or too many wrong ones came from the address. Fields: address, reason."""
SIGN_OUT_SUCCEEDED: Final = "ilis_guard.sign_out.succeeded"
"""Fields: name."""
REVIEWER_UNREADABLE: Final = "ilis_guard.reviewer.unreadable"
"""An error: the reference to a token's hash can't be resolved, so the token isn't accepted. Fields: name, error."""


def log() -> Any:
    """The package's logger: ``log().info(EVENT, field=...)``. A failing log handler never stops the caller.

    Events go through structlog where the application has configured it, otherwise to the standard logger
    ``ilis_guard``, which is silent below WARNING by default.
    """
    return _Unfailing(_logger())


class _Unfailing:
    """A logger whose failures go to the standard logger: no ticket or answer depends on a log."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def __getattr__(self, level: str) -> Callable[..., None]:
        def log_or_continue(event: str, **fields: Any) -> None:
            try:
                getattr(self._logger, level)(event, **fields)
            except Exception as error:  # noqa: BLE001 - the application's handlers may raise anything
                what = f"{event} couldn't be logged: {type(error).__name__}"
                logging.getLogger("ilis_guard").error(what)  # noqa: TRY400 - a traceback may quote texts

        return log_or_continue


def _logger() -> Any:
    if structlog.is_configured():
        return structlog.get_logger("ilis_guard")
    return structlog.wrap_logger(
        logging.getLogger("ilis_guard"),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
    )
