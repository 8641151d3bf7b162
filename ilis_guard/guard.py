"""The guard: a request in, a decision out."""

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, get_args

from tenacity.wait import wait_base

from ilis_guard.cascade.caller import BACKOFF
from ilis_guard.cascade.cascade import Cascade
from ilis_guard.cascade.escalation import Review
from ilis_guard.cascade.idempotency import DecisionMemory, check_id
from ilis_guard.cascade.loading import load_tier
from ilis_guard.cascade.settlement import Settlement
from ilis_guard.cascade.stream import StreamEvent, StreamWriter
from ilis_guard.cascade.tier import Check, Tier, policy_context
from ilis_guard.concurrency.portal import run_in_thread
from ilis_guard.concurrency.threads import EventChannel, astream_events, stream_events
from ilis_guard.config.guard_yaml import GuardConfig, read_config
from ilis_guard.config.review import ReviewConfig
from ilis_guard.errors import ConfigError, DecisionRecordedError, RequestError
from ilis_guard.models import Model
from ilis_guard.models.weights import Progress
from ilis_guard.policy import Policy
from ilis_guard.policy.binding import ActivePolicies, PolicyContext
from ilis_guard.policy.bundle_warnings import warn_of_findings, warn_of_idle_thresholds
from ilis_guard.policy.loader import locate
from ilis_guard.policy.reload import PolicyReloader
from ilis_guard.review import ReviewQueue
from ilis_guard.types import Decision, Labels, Request, StreamMode
from ilis_guard.types.requests import Prompt

if TYPE_CHECKING:  # importing it imports httpx and Jinja
    from ilis_guard.review.relay import OutboxRelay


class Guard:
    """Decides what to do with a model's answer.

    Threads may share a guard. Between requests it keeps the state of its tiers (limiters and circuit breakers), and
    nothing of the requests.

    Args:
        tiers: from small to large; the first one answers first.
        policy: the policy that decides.
        shadow: a policy that is evaluated beside it, and decides nothing.
        review: where escalated requests go; needed if the policy escalates or audits.
        log_texts: whether log events may carry prompts and answers.
        backoff: tenacity's wait before a call is repeated after a transient error.
        clock: seconds, monotonic: of deadlines, durations and circuit breakers.

    Raises:
        ConfigError: a policy doesn't fit the tiers or the queue, or both policies are in shadow.
    """

    def __init__(
        self,
        *,
        tiers: Sequence[Tier],
        policy: Policy,
        shadow: Policy | None = None,
        review: Review | None = None,
        log_texts: bool = False,
        backoff: wait_base = BACKOFF,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context = policy_context(tiers, has_queue=review is not None)
        self._active = _bind(self._context, policy, shadow)
        warn_of_findings(self._context.scored_by())
        warn_of_idle_thresholds(self._context.scored_by(), self._active)
        self._reloader: PolicyReloader | None = None
        self._clock = clock
        self._memory = DecisionMemory(review)
        self._cascade = Cascade.of(tiers, review=review, log_texts=log_texts, backoff=backoff, clock=clock)

    @classmethod
    def from_config(cls, path: str | Path, progress: Progress | None = None) -> Self:
        """Build a guard from ``guard.yaml``: load its models and bundles, its policy and its queue.

        Unless the file pins the policy's fingerprint, changes of the policy's file take effect later on, see `follow`.

        Args:
            path: the file.
            progress: called with the steps of converting packaged weights, where that is needed.

        Raises:
            ConfigError: the file is invalid, doesn't fit its policy, or pins another one.
            PolicyError: the policy is invalid.
            ModelError: a model can't be loaded.
            BundleError: a bundle can't be read, or was fitted to another model.
            ReviewError: the queue's storage can't be used.
        """
        config = read_config(path)
        # Check all that is quick to check before models are loaded.
        policy, shadow = _policies(config.policy, config.shadow)
        _check_pin(policy, config)
        _bind(PolicyContext.of_config(config), policy, shadow)
        review = None if config.review is None else open_queue(config.review)
        tiers = [load_tier(tier, progress) for tier in config.tiers]
        guard = cls(tiers=tiers, policy=policy, shadow=shadow, review=review, log_texts=config.log_texts)
        if config.policy_fingerprint is None:
            guard.follow(config.policy, config.shadow)
        return guard

    @property
    def policy(self) -> Policy:
        """The active policy for a request that begins now."""
        return self._policies_now().enforced.policy

    @property
    def policy_problem(self) -> str:
        """Why the policy files' present contents aren't active; empty where they are, or aren't followed."""
        return "" if self._reloader is None else self._reloader.problem

    def follow(self, policy: str | Path, shadow: str | Path | None = None) -> None:
        """Read the policies from their files, now and whenever these have changed.

        A request keeps the policies that were active when it began. A file that is invalid, or doesn't fit the tiers
        and the queue, changes nothing: the problem is logged (`POLICY_RELOAD_FAILED`), and `policy_problem` returns it
        until the file is corrected.

        Args:
            policy: a file, or the name of a shipped policy.
            shadow: the same for the shadow policy; None for none.

        Raises:
            PolicyError: a policy is invalid.
            ConfigError: a policy doesn't fit the tiers or the queue.
        """
        files = [locate(name) for name in (policy, shadow) if name is not None]
        self._reloader = PolicyReloader(files, lambda: self._bind_anew(*_policies(policy, shadow)))

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """From small to large."""
        return self._cascade.tiers

    @property
    def review(self) -> Review | None:
        """Where escalated requests go; None where the guard has no queue."""
        return self._cascade.review

    def decide(
        self,
        prompt: Prompt | Request,
        *,
        labels: Labels | None = None,
        stop: Sequence[str] = (),
        id: str | None = None,  # noqa: A002 - the decision's word for it
        settlement: Settlement | None = None,
    ) -> Decision:
        """Call models, score their answers, and decide.

        Errors of models, scorers or the queue never raise: they end in a decision that isn't an answer, and are
        recorded in it. An escalation is returned only after its ticket is committed.

        Args:
            prompt: a question, or a conversation that ends with the user's turn; or a request from `Request.of`, which
                isn't checked again and has labels and stop sequences of its own.
            labels: the policy's conditions read them as ``labels.NAME``.
            stop: an answer ends before the first of these sequences, and is scored without the rest. Bundles are
                fitted to answers that end by themselves: one that is cut may be less typical, see `typicality`.
            id: the decision's id; None for a new one. A request that is repeated with the same id gets the same
                decision, without another call of a model: for a day where the queue is a database, else as long as this
                guard remembers its newest ones.
            settlement: lets another thread give the request up.

        Raises:
            RequestError: the prompt, the labels, the stop sequences or the id are invalid.
            RequestConflictError: the id was given to another request.
            ClientDisconnected: the request was given up; nothing was stored.
        """
        return self._decide(self._request(prompt, labels, stop), id=id, since=self._clock(), settlement=settlement)

    def check_id(self, request: Request, id: str) -> None:  # noqa: A002 - the decision's word for it
        """Check that an id wasn't given to another request.

        Raises:
            RequestError: it is no id.
            RequestConflictError: it was.
        """
        check_id(id)
        self._memory.check(id, request.digest)

    async def adecide(
        self,
        prompt: Prompt | Request,
        *,
        labels: Labels | None = None,
        stop: Sequence[str] = (),
        id: str | None = None,  # noqa: A002 - the decision's word for it
    ) -> Decision:
        """As `decide`, for callers on an event loop.

        The decision is made in a thread of its own, which this awaits, so the event loop stays free. Cancelling the
        caller gives the request up: then there is no ticket, unless it was committed before.
        """
        request, settlement = self._request(prompt, labels, stop), Settlement()
        decide = partial(self._decide, request, id=id, since=self._clock(), settlement=settlement)
        try:
            return await run_in_thread(decide)
        finally:
            settlement.cancel()

    def stream(
        self,
        prompt: Prompt | Request,
        *,
        labels: Labels | None = None,
        stop: Sequence[str] = (),
        id: str | None = None,  # noqa: A002 - the decision's word for it
        mode: StreamMode = "hold",
    ) -> Generator[StreamEvent, None, None]:
        """As `decide`, with the answer's text as events; the decision is always the last event.

        Closing the iterator stops the generation at its next token. Then there is no decision, and no ticket, unless
        it was committed before.

        Args:
            prompt: as of `decide`.
            labels: as of `decide`.
            stop: as of `decide`.
            id: as of `decide`.
            mode: when text is shown, and whether generations are stopped early.

        Raises:
            RequestError: as of `decide`, or there is no such mode.
            RequestConflictError: as of `decide`.
        """
        request, settlement = self._request(prompt, labels, stop), Settlement()
        return stream_events(self._streaming(request, id, mode, settlement), settlement.cancel_token)

    def astream(
        self,
        prompt: Prompt | Request,
        *,
        labels: Labels | None = None,
        stop: Sequence[str] = (),
        id: str | None = None,  # noqa: A002 - the decision's word for it
        mode: StreamMode = "hold",
        settlement: Settlement | None = None,
    ) -> AsyncGenerator[StreamEvent, None]:
        """As `stream`, for callers on an event loop. Cancelling a task that waits for an event closes the stream.

        A caller that has a time limit of its own gives a `settlement`.
        """
        request, settlement = self._request(prompt, labels, stop), settlement or Settlement()
        return astream_events(self._streaming(request, id, mode, settlement), settlement.cancel_token)

    def with_model(self, tier: str, model: Model, *, check: Check | None = None) -> Self:
        """Replace a tier's model in a copy of this guard; policies, queue and the other tiers are shared.

        Args:
            tier: name of the tier, whose prices and limits are kept, and its bundle if it was fitted to the model.
            model: its calls have a limiter and a circuit breaker of their own.
            check: checks every tier's answer before it is scored.

        Raises:
            ConfigError: there is no such tier, or it has a prompt bundle and the model can't stop at the prompt.
            BundleMismatchError: the model can be tapped, and the tier's bundle was fitted to another one.
        """
        return self._with(self._cascade.with_model(tier, model, check))

    def without_models(self, why: str) -> Self:
        """Copy this guard without its models: each attempt fails, and the policy rules on that.

        For requests that are still under way when a server stops: the policy may escalate them, and answers none. A
        decision that is kept under the request's id is found only when this one is to be kept under it: nothing is
        waited for.

        Args:
            why: the detail of each attempt's error; a sentence without prompts and answers.
        """
        other = self._with(self._cascade.without_models(why))
        other._memory = self._memory.without_reading()  # noqa: SLF001 - it is another self
        return other

    def close(self) -> None:
        """Release the queue's storage."""
        if self.review is not None:
            self.review.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _with(self, cascade: Cascade) -> Self:
        other = copy(self)
        other._cascade = cascade  # noqa: SLF001 - it is another self
        return other

    def _request(self, prompt: Prompt | Request, labels: Labels | None, stop: Sequence[str]) -> Request:
        if not isinstance(prompt, Request):
            request = Request.of(prompt, labels, stop)
        elif labels or stop:
            raise RequestError("a Request holds its own labels and stop sequences; give them to `Request.of`")
        else:
            request = prompt if prompt.is_checked else Request.of(prompt.messages, prompt.labels, prompt.stop)
        if request.stop and (unable := [tier.name for tier in self.tiers if not tier.takes_stop]):
            raise RequestError(
                f"the models of the tiers {unable!r} can't end an answer at stop sequences; leave `stop` out",
                "stop",
            )
        return request

    def _policies_now(self) -> ActivePolicies:
        return self._active if self._reloader is None else self._reloader.current

    def _bind_anew(self, policy: Policy, shadow: Policy | None) -> ActivePolicies:
        active = _bind(self._context, policy, shadow)
        if active.fingerprints != self._active.fingerprints:
            warn_of_idle_thresholds(self._context.scored_by(), active)
        self._active = active
        return active

    def _streaming(
        self,
        request: Request,
        id: str | None,  # noqa: A002 - as in `decide`
        mode: StreamMode,
        settlement: Settlement,
    ) -> Callable[[EventChannel[StreamEvent]], None]:
        """The work that begins when the stream's reader requests the first event."""
        if mode not in get_args(StreamMode):
            raise RequestError(f"there is no mode {mode!r} of a stream; there are {', '.join(get_args(StreamMode))}")
        if id is not None:
            check_id(id)

        def work(channel: EventChannel[StreamEvent]) -> None:
            writer = StreamWriter(channel, mode)
            writer.finish(self._decide(request, id=id, since=self._clock(), settlement=settlement, writer=writer))

        return work

    def _decide(
        self,
        request: Request,
        *,
        id: str | None,  # noqa: A002 - as in `decide`
        since: float,
        settlement: Settlement | None,
        writer: StreamWriter | None = None,
    ) -> Decision:
        decide = partial(
            self._cascade.decide, request, self._policies_now(), since=since, settlement=settlement, writer=writer
        )
        if id is None:
            return decide(decision=uuid.uuid4().hex)
        check_id(id)
        digest = request.digest
        with self._memory.hold(id, digest, settlement) as found:
            made = found
            if made is None:
                try:
                    made = decide(decision=id, digest=digest)
                except DecisionRecordedError:
                    made = self._memory.recorded(id, digest)
                self._memory.add(made, digest)
            if settlement is not None:
                settlement.begin(made)
                settlement.commit()
            return made


def open_queue(config: ReviewConfig) -> ReviewQueue:
    """Open the queue that guard.yaml's `review` describes.

    Raises:
        ReviewError: the storage can't be used.
        ConfigError: its URL isn't where the file says it is.
    """
    return ReviewQueue(config.storage_url, queues=config.queues, endpoints=config.endpoints)


def outbox_relay(config: ReviewConfig, queue: ReviewQueue) -> "OutboxRelay":
    """Build the relay that sends webhooks to this queue's endpoints.

    Args:
        config: guard.yaml's `review`.
        queue: from `open_queue`.

    Raises:
        ConfigError: an endpoint's template can't be used.
    """
    from ilis_guard.review.relay import OutboxRelay  # with httpx and Jinja, which only relays need

    page = None if config.page is None else config.page.url
    return OutboxRelay(queue, internal_hosts=config.internal_hosts, page=page)


def _policies(policy: str | Path, shadow: str | Path | None) -> tuple[Policy, Policy | None]:
    return Policy.load(policy), None if shadow is None else Policy.load(shadow)


def _bind(context: PolicyContext, policy: Policy, shadow: Policy | None) -> ActivePolicies:
    if shadow is not None and policy.mode == "shadow":
        raise ConfigError(
            f"{policy.key_place('mode')}: the policy's mode is `shadow`, and guard.yaml has another one in shadow "
            "(`shadow`): nothing would be decided; enforce the one, or remove the other"
        )
    bound_shadow = None if shadow is None else context.bind(shadow, is_shadow=True)
    return ActivePolicies(enforced=context.bind(policy), shadow=bound_shadow)


def _check_pin(policy: Policy, config: GuardConfig) -> None:
    if config.policy_fingerprint not in (None, policy.fingerprint):
        raise ConfigError(
            f"guard.yaml pins the policy {config.policy_fingerprint} (policy_fingerprint), and {config.policy!r} has "
            f"the fingerprint {policy.fingerprint}: it was changed; put the file back, or pin the new fingerprint"
        )
