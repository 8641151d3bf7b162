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
from ilis_guard.cascade.stream import StreamEvent, StreamWriter
from ilis_guard.cascade.tier import Check, Tier, load_tier, policy_context
from ilis_guard.concurrency.portal import run_in_thread
from ilis_guard.concurrency.threads import EventChannel, astream_events, stream_events
from ilis_guard.config.guard_yaml import GuardConfig, read_config
from ilis_guard.config.review import ReviewConfig
from ilis_guard.errors import ConfigError, RequestError
from ilis_guard.models import Model
from ilis_guard.models.weights import Progress
from ilis_guard.policy import Policy
from ilis_guard.policy.binding import ActivePolicies, PolicyContext
from ilis_guard.policy.loader import locate
from ilis_guard.policy.reload import PolicyReloader
from ilis_guard.review import ReviewQueue
from ilis_guard.types import Decision, Labels, Request, StreamMode
from ilis_guard.types.requests import Prompt

if TYPE_CHECKING:  # importing it imports httpx and Jinja
    from ilis_guard.review.relay import OutboxRelay


class Guard:
    """Decides what to do with a model's answer.

    Threads may share a guard. Between requests it keeps how its tiers stand (who waits in line for which, which are
    down), and nothing of the requests.

    Args:
        tiers: from small to large; the first one answers first.
        policy: what decides.
        shadow: a policy that looks on, and says what it would have decided.
        review: where escalated requests go; needed if the policy escalates or audits.
        log_texts: whether log events may carry prompts and answers.
        backoff: tenacity's wait between calls of a model that failed in passing.

    Raises:
        ConfigError: a policy doesn't go with the tiers or the queue, or one would look on at another that doesn't
            decide.
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
    ) -> None:
        self._context = policy_context(tiers, has_queue=review is not None)
        self._active = _bound(self._context, policy, shadow)
        self._reloader: PolicyReloader | None = None
        self._cascade = Cascade.of(tiers, review=review, log_texts=log_texts, backoff=backoff)

    @classmethod
    def from_config(cls, path: str | Path, progress: Progress | None = None) -> Self:
        """Build a guard from ``guard.yaml``: load its models and bundles, its policy and its queue.

        Unless the file pins the policy's fingerprint, the policy's file is followed from then on, see `follow`.

        Args:
            path: the file.
            progress: told of the steps where packaged weights are converted first.

        Raises:
            ConfigError: the file is wrong, or doesn't go with its policy, or pins another one.
            PolicyError: the policy is wrong.
            ModelError: a model can't be loaded.
            BundleError: a bundle can't be read, or was fitted to another model.
            ReviewError: the queue's storage can't be used.
        """
        config = read_config(path)
        # What is quick to check comes before models are loaded.
        policy, shadow = _policies(config.policy, config.shadow)
        _check_pin(policy, config)
        _bound(PolicyContext.of_config(config), policy, shadow)
        review = None if config.review is None else open_queue(config.review)
        tiers = [load_tier(tier, progress) for tier in config.tiers]
        guard = cls(tiers=tiers, policy=policy, shadow=shadow, review=review, log_texts=config.log_texts)
        if config.policy_fingerprint is None:
            guard.follow(config.policy, config.shadow)
        return guard

    @property
    def policy(self) -> Policy:
        """The one in force for a request that begins now."""
        return self._active_policies().enforced.policy

    @property
    def policy_problem(self) -> str:
        """Why the policy files, as they now stand, aren't in force; empty where they are, or aren't followed."""
        return "" if self._reloader is None else self._reloader.problem

    def follow(self, policy: str | Path, shadow: str | Path | None = None) -> None:
        """Read the policies from their files, now and whenever these have changed.

        A request keeps what was in force when it began. A file that is wrong, or doesn't go with the tiers and the
        queue, changes nothing: that is logged (`POLICY_RELOAD_FAILED`), and stands in `policy_problem` until it is
        mended.

        Args:
            policy: a file, or the name of a policy that comes with ilis_guard.
            shadow: the same of the one that looks on; None for none.

        Raises:
            PolicyError: a policy is wrong.
            ConfigError: a policy doesn't go with the tiers or the queue.
        """
        files = [locate(name) for name in (policy, shadow) if name is not None]
        self._reloader = PolicyReloader(files, lambda: _bound(self._context, *_policies(policy, shadow)))

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
    ) -> Decision:
        """Ask, score, and decide.

        Whatever goes wrong with a model, a score or the queue ends as a decision that isn't an answer, with its
        reason; an escalation is returned only after its ticket is committed.

        Args:
            prompt: a question, or a conversation that ends with the user's turn; or a request from `Request.of`, which
                isn't checked again and has labels and stop sequences of its own.
            labels: what the policy's conditions see as ``labels.NAME``.
            stop: an answer ends before the first of these, and is scored as it then is. Bundles are fitted to answers
                that end by themselves: an answer that this cuts may be unlike those, which `typicality` tells.
            id: the decision's, where the caller has one that is the same when it asks again; None for a new one. A
                decision has one ticket, so a request that is made again under its id is escalated once.

        Raises:
            RequestError: the prompt, the labels or the stop sequences can't be used.
        """
        return self._decide(self._request(prompt, labels, stop), decision=id, since=time.monotonic())

    async def adecide(
        self,
        prompt: Prompt | Request,
        *,
        labels: Labels | None = None,
        stop: Sequence[str] = (),
        id: str | None = None,  # noqa: A002 - the decision's word for it
    ) -> Decision:
        """As `decide`, in a thread, so that the event loop goes on."""
        request = self._request(prompt, labels, stop)
        return await run_in_thread(partial(self._decide, request, decision=id, since=time.monotonic()))

    def stream(
        self,
        prompt: Prompt | Request,
        *,
        labels: Labels | None = None,
        stop: Sequence[str] = (),
        mode: StreamMode = "hold",
    ) -> Generator[StreamEvent, None, None]:
        """As `decide`, and show the answer on the way; the decision is always the last event.

        Closing the iterator ends the generation at its next token. Then there is no decision, and no ticket.

        Args:
            prompt: as of `decide`.
            labels: as of `decide`.
            stop: as of `decide`.
            mode: what is shown when, and whether generations are cut.

        Raises:
            RequestError: the prompt, the labels or the stop sequences can't be used, or there is no such mode.
        """
        return stream_events(self._streaming(self._request(prompt, labels, stop), mode))

    def astream(
        self,
        prompt: Prompt | Request,
        *,
        labels: Labels | None = None,
        stop: Sequence[str] = (),
        mode: StreamMode = "hold",
    ) -> AsyncGenerator[StreamEvent, None]:
        """As `stream`, while the event loop goes on. Who is cancelled while they wait for an event has left it."""
        return astream_events(self._streaming(self._request(prompt, labels, stop), mode))

    def with_model(self, tier: str, model: Model, *, check: Check | None = None) -> Self:
        """This guard with another model in a tier's place; policies, queue, and the other tiers are shared.

        Args:
            tier: whose place it takes, with its cost, its limits and, where it can be tapped and fits, its bundle.
            model: calls of it have a line and a breaker of their own.
            check: what every tier's answer must pass before it is scored.

        Raises:
            ConfigError: there is no such tier, or it has a prompt bundle and the model can't stop at the prompt.
            BundleMismatchError: the tier's bundle was fitted to another model than this one, which can be tapped.
        """
        return self._with(self._cascade.with_model(tier, model, check))

    def without_models(self, why: str) -> Self:
        """The same guard, whose models aren't asked any more: each tier fails, and the policy says what comes of that.

        It is for requests whose time is over, such as those under way when a server stops: what the policy escalates
        is put before people, and nothing is answered.

        Args:
            why: stands in each attempt's error; a sentence without prompts and answers.
        """
        return self._with(self._cascade.without_models(why))

    def close(self) -> None:
        """Let go of the queue's storage."""
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
        request = prompt if isinstance(prompt, Request) else Request.of(prompt, labels, stop)
        if request.stop and (deaf := [tier.name for tier in self.tiers if not tier.takes_stop]):
            raise RequestError(
                f"the models of the tiers {deaf!r} can't end an answer at stop sequences; leave `stop` out",
                "stop",
            )
        return request

    def _active_policies(self) -> ActivePolicies:
        return self._active if self._reloader is None else self._reloader.current

    def _streaming(self, request: Request, mode: StreamMode) -> Callable[[EventChannel[StreamEvent]], None]:
        """What is done once the stream's reader asks for the first event."""
        if mode not in get_args(StreamMode):
            raise RequestError(f"there is no mode {mode!r} of a stream; there are {', '.join(get_args(StreamMode))}")

        def work(channel: EventChannel[StreamEvent]) -> None:
            writer = StreamWriter(channel, mode)
            writer.finish(self._decide(request, since=time.monotonic(), writer=writer))

        return work

    def _decide(
        self, request: Request, *, since: float, decision: str | None = None, writer: StreamWriter | None = None
    ) -> Decision:
        return self._cascade.decide(
            request, self._active_policies(), decision=decision or uuid.uuid4().hex, since=since, writer=writer
        )


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


def _bound(context: PolicyContext, policy: Policy, shadow: Policy | None) -> ActivePolicies:
    if shadow is not None and policy.mode == "shadow":
        raise ConfigError(
            f"{policy.key_place('mode')}: the policy's mode is `shadow`, and guard.yaml has another one look on "
            "(`shadow`): nothing would be decided; enforce the one, or take the other out"
        )
    in_shadow = None if shadow is None else context.bind(shadow, is_shadow=True)
    return ActivePolicies(enforced=context.bind(policy), shadow=in_shadow)


def _check_pin(policy: Policy, config: GuardConfig) -> None:
    if config.policy_fingerprint not in (None, policy.fingerprint):
        raise ConfigError(
            f"guard.yaml pins the policy {config.policy_fingerprint} (policy_fingerprint), and {config.policy!r} has "
            f"the fingerprint {policy.fingerprint}: it was changed; put the file back, or pin the new fingerprint"
        )
