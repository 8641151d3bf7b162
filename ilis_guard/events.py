"""Names and fields of what is logged. Names are stable: dashboards and alerts may rest on them.

Prompts and answers are never fields, unless whoever runs the guard asks for them (``log_texts`` in guard.yaml).
"""

import logging
from collections.abc import Callable
from typing import Any, Final

import structlog

WEIGHTS_TERMS: Final = "ilis_guard.weights.terms"
"""Weights under terms of their own are about to be used. Fields: weights, terms, where."""
WEIGHTS_CONVERTED: Final = "ilis_guard.weights.converted"
"""Packaged weights were converted and stand in the cache. Fields: weights, folder, seconds."""
MODEL_LOADED: Final = "ilis_guard.model.loaded"
"""Fields: model, precision, layers, fingerprint, seconds."""
TAPS_PROVEN: Final = "ilis_guard.taps.proven"
"""Every tap was disturbed and the logits moved. In standard deviations. Fields: layers, least_moved."""
PROOF_NOT_KEPT: Final = "ilis_guard.proof.not_kept"
"""A warning: the proof can't be written to the cache and is given again at the next start. Fields: error."""
TIER_UNSCORED: Final = "ilis_guard.tier.unscored"
"""A warning: the tier has no bundle, so nothing it says can be answered by a policy. Fields: tier."""
TIER_UNFIT: Final = "ilis_guard.tier.unfit"
"""A warning: the chat model that took a remote tier's place isn't the one that its bundle was fitted to, so its answers
have no score. Fields: tier, differing."""
ATTEMPT_FINISHED: Final = "ilis_guard.attempt.finished"
"""A tier answered and was scored, or was spared the answer by a rule of stage `prompt`.
Fields: decision, tier, attempt, stage, uncertainty, typicality, tokens, stopped_at, seconds."""
ATTEMPT_FAILED: Final = "ilis_guard.attempt.failed"
"""A tier gave no scored answer. Fields: decision, tier, attempt, error, seconds."""
ATTEMPT_REPEATED: Final = "ilis_guard.attempt.repeated"
"""A transient model error; the same tier is called again. Fields: tier, call, error."""
CIRCUIT_OPENED: Final = "ilis_guard.tier.down"
"""An error: so many calls of a tier in a row failed, and none is made for so long. Fields: tier, failures, seconds."""
CIRCUIT_CLOSED: Final = "ilis_guard.tier.up"
"""A tier that was down answered again. Fields: tier."""
DECISION_MADE: Final = "ilis_guard.decision.made"
"""Thresholds and bundles are given by tier; shadow is what the policy that looks on said.
Fields: decision, action, rule, tier, uncertainty, attempts, ticket, seconds, cost, mode, policy, thresholds, bundles,
shadow."""
STREAM_LEFT: Final = "ilis_guard.stream.left"
"""The reader of a stream left before the decision: there is none. Fields: decision, seconds."""
ESCALATION_FAILED: Final = "ilis_guard.escalation.failed"
"""A ticket could not be stored; the decision became an abstention. Fields: decision, queue, error."""
AUDIT_FAILED: Final = "ilis_guard.audit.failed"
"""An error: an answer was drawn for an audit, and its ticket could not be stored. Fields: decision, queue, error."""
SHADOW_FAILED: Final = "ilis_guard.shadow.failed"
"""An error: the policy that looks on couldn't say what it would have decided. Fields: decision, error."""
POLICY_RELOADED: Final = "ilis_guard.policy.reloaded"
"""A warning: a policy file has changed, and what it says now is in force. Fields: files, policy, mode, shadow."""
POLICY_NOT_RELOADED: Final = "ilis_guard.policy.not_reloaded"
"""An error: a policy file has changed and can't be used; what was in force before stays.
Fields: files, policy, shadow, problems."""
TICKET_CREATED: Final = "ilis_guard.ticket.created"
"""A ticket is committed. Fields: ticket, queue."""
TICKET_CLAIMED: Final = "ilis_guard.ticket.claimed"
"""A claim is committed. Fields: ticket, queue, by."""
TICKET_RELEASED: Final = "ilis_guard.ticket.released"
"""A claim was given back. Fields: ticket, queue, by."""
TICKET_OVERDUE: Final = "ilis_guard.ticket.overdue"
"""A ticket's time is up: it left its queue and became `expire`, or another queue's. Fields: ticket, queue, became."""
TICKET_RESOLVED: Final = "ilis_guard.ticket.resolved"
"""A verdict is committed. Fields: ticket, queue, verdict."""
TICKETS_REDACTED: Final = "ilis_guard.tickets.redacted"
"""The texts of so many tickets, which ended long ago, were taken out. Fields: tickets."""
TICKETS_PURGED: Final = "ilis_guard.tickets.purged"
"""So many tickets, which ended long ago, were deleted. Fields: tickets."""
DELIVERY_DELIVERED: Final = "ilis_guard.delivery.delivered"
"""An endpoint took a webhook. Fields: delivery, endpoint, type, tries, status."""
DELIVERY_FAILED: Final = "ilis_guard.delivery.failed"
"""A warning: a try failed, and there will be another. Fields: as before, error, next_try_at."""
DELIVERY_EXHAUSTED: Final = "ilis_guard.delivery.exhausted"
"""An error: the last try failed. Fields: delivery, endpoint, type, tries, status, error."""
ENDPOINT_DISABLED: Final = "ilis_guard.endpoint.disabled"
"""An error: an endpoint answered 410 Gone and is sent nothing more. Fields: delivery, endpoint, type, tries, status."""
DELIVERIES_HELD_UP: Final = "ilis_guard.deliveries.held_up"
"""A warning: the database failed, and the worker waits for it; tries not written down: tried. Fields: error, tried."""
DELIVERIES_ORPHANED: Final = "ilis_guard.deliveries.orphaned"
"""A warning: deliveries wait for an endpoint that guard.yaml doesn't name. Fields: endpoint, deliveries."""

REQUEST_FAILED: Final = "ilis_guard.request.failed"
"""The server refused a request or failed. Fields: request, method, path, status, error, and where for a defect."""
REQUEST_DECIDED: Final = "ilis_guard.request.decided"
"""The server decided on a request; client is its key's name. Fields: request, decision, client, path, mode, seconds."""
QUEUE_UNREACHABLE: Final = "ilis_guard.queue.unreachable"
"""A warning: the server isn't ready, because the human queue's database failed. Fields: error."""
CLIENT_GONE: Final = "ilis_guard.client.gone"
"""A client left before there was a decision, and the generation was ended. Fields: request, client, path, seconds."""
API_KEY_REFUSED: Final = "ilis_guard.api_key.refused"
"""A warning: a request came without a key that guard.yaml knows. Fields: request, address."""
API_KEY_SHUT_OUT: Final = "ilis_guard.api_key.shut_out"
"""An error: the hash of somebody's API key isn't where guard.yaml says it is. Fields: name, error."""
SIGNED_IN: Final = "ilis_guard.signed_in"
"""Somebody signed in to the reviewers' page, by `token` or through the `proxy`. Fields: name, how."""
SIGNED_OUT: Final = "ilis_guard.signed_out"
"""Fields: name."""
SIGN_IN_REFUSED: Final = "ilis_guard.sign_in.refused"
"""A warning: the token was wrong, or too many wrong ones came from there. Fields: address, why."""
REVIEWER_SHUT_OUT: Final = "ilis_guard.reviewer.shut_out"
"""An error: the hash of somebody's token isn't where guard.yaml says it is. Fields: name, error."""


def log() -> Any:
    """The package's logger: ``log().info(EVENT, field=...)``. A log that fails never stops what it tells of.

    Where the application has configured structlog, events go its way; otherwise they go to the standard logger
    ``ilis_guard``, which is silent below WARNING until the application says otherwise.
    """
    return _Unfailing(_logger())


class _Unfailing:
    """A logger whose failures are told by the standard logger: a ticket, or an answer, doesn't hang on a log."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def __getattr__(self, level: str) -> Callable[..., None]:
        def tell_or_go_on(event: str, **fields: Any) -> None:
            try:
                getattr(self._logger, level)(event, **fields)
            except Exception as error:  # noqa: BLE001 - the application's log may fail in any way
                what = f"{event} couldn't be logged: {type(error).__name__}"
                logging.getLogger("ilis_guard").error(what)  # noqa: TRY400 - a traceback may quote what isn't logged

        return tell_or_go_on


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
