"""For users' own tests: a fake model, a fixed scorer and a temporary queue, without weights and torch.

A policy's test takes three lines: `fake_guard` takes the uncertainty of each tier's answers, from small to large.

    >>> guard = fake_guard("default", {"small": 0.9, "large": 0.1})
    >>> decision = guard.decide("What is the capital of Norway?", labels={"topic": "geography"})
    >>> decision.action.value, decision.rules
    ('answer', ('unsure-so-try-larger', 'sure'))

The parts also build a `Guard`, where a test needs more control:

    >>> from ilis_guard import Guard, Policy, Tier
    >>> model = FakeModel({"What is 7 times 8?": "56", "And 9 times 8?": TimeoutError("too slow")})
    >>> with InMemoryQueue() as queue:
    ...     tier = Tier(name="only", model=model, scorer=FixedScorer(0.5, typicality=0.2))
    ...     guard = Guard(tiers=[tier], policy=Policy.load("default"), review=queue)
    ...     decision = guard.decide("What is 7 times 8?")
    ...     queue.get(decision.ticket.id).proposed
    '56'
    >>> [messages[-1].content for messages in model.calls]
    ['What is 7 times 8?']

`prompts` gives the scores that rules of stage ``prompt`` read:

    >>> guard = fake_guard("cost-first", {"small": 0.1, "large": 0.1}, prompts={"small": 0.95})
    >>> guard.decide("Prove Fermat's last theorem.").rules
    ('too-hard-for-this-tier', 'sure-enough')

Streams show a fake model's reply word by word:

    >>> events = fake_guard("default", {"small": 0.1}).stream("What is 7 times 8?", mode="optimistic")
    >>> [event.text for event in events]
    ['answer', ' of', ' small', 'answer of small']

`thresholds` gives the uncertainty up to which a tier's answers are certified; without one, nothing is certified there:

    >>> guard = fake_guard("customer-support", {"small": 0.2, "large": 0.2}, thresholds={"small": 0.1, "large": 0.3})
    >>> guard.decide("Where is my parcel?").rules
    ('try-larger', 'sure-enough')
"""

import re
import shutil
import tempfile
import time
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import tenacity

from ilis_guard.cascade.escalation import Review
from ilis_guard.cascade.tier import Tier
from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.config.review import EndpointSettings, QueueSettings
from ilis_guard.config.tiers import TierCost
from ilis_guard.errors import ConfigError
from ilis_guard.guard import Guard
from ilis_guard.models.answer_text import before_stop
from ilis_guard.models.base import Proceed
from ilis_guard.policy import Policy
from ilis_guard.review import ReviewQueue
from ilis_guard.types import (
    POSITIONS,
    Fingerprint,
    Generation,
    Message,
    Position,
    RemoteFingerprint,
    Score,
    Signature,
    Statistics,
    Step,
)
from ilis_guard.types.thinking import find_answer

__all__ = ["FakeModel", "FixedScorer", "InMemoryQueue", "fake_guard"]

T = TypeVar("T")
Scripted: TypeAlias = T | BaseException | Sequence[T | BaseException] | Mapping[str, T | BaseException]
"""One item for all calls, one after the other, or by key. What is an exception is raised."""


Reply = str | Generation
"""A text, or a whole generation where its tokens, signatures or statistics matter."""


class FakeModel:
    """A model with scripted replies.

    Args:
        replies: one for all calls, a sequence with one a call, or a mapping by prompt (the user's last turn). An
            exception among them is raised. A call without a reply raises LookupError.
        layers: of the signatures. They depend on nothing but the text; an empty one has only that of the prompt.
        fingerprint: None for a model that no bundle can be fitted to.
        max_new_tokens: the length limit that it says it has.
    """

    takes_stop = True

    def __init__(
        self,
        replies: Scripted[Reply],
        *,
        layers: int = 4,
        fingerprint: Fingerprint | RemoteFingerprint | None = None,
        max_new_tokens: int | None = None,
    ) -> None:
        self.calls: list[tuple[Message, ...]] = []
        """The conversations it was given, in order."""
        self.max_new_tokens = max_new_tokens
        """As given."""
        self._fingerprint = fingerprint
        self._layers = layers
        self._script: Callable[[str], Reply] = _script(replies)

    @property
    def fingerprint(self) -> Fingerprint | RemoteFingerprint | None:
        """As given."""
        return self._fingerprint

    def generate(
        self,
        messages: Sequence[Message],
        *,
        proceed: Proceed | None = None,
        deadline: Deadline | None = None,
        stop: Sequence[str] = (),
    ) -> Generation:
        """The next reply, or the one to this prompt; a reply that `proceed` declines isn't used up."""
        self.calls.append(tuple(messages))
        if deadline is not None:
            deadline.check()
        if proceed is not None:
            so_far = replace(self._generation("", messages), finish_reason=None)
            if not proceed(so_far):
                return so_far
        return self._reply(messages, stop)

    def stream(self, messages: Sequence[Message], *, stop: Sequence[str] = ()) -> Generator[Step, None, None]:
        """The next reply, a word a step."""
        self.calls.append(tuple(messages))
        yield Step(token="", generation=replace(self._generation("", messages), finish_reason=None))
        whole = self._reply(messages, stop)
        text = ""
        for word in re.findall(r"\s*\S+", whole.text):
            text += word
            yield Step(token=word, generation=replace(self._generation(text, messages), finish_reason=None))
        yield Step(token="", generation=whole)

    def _reply(self, messages: Sequence[Message], stop: Sequence[str]) -> Generation:
        reply = self._script(messages[-1].content)
        text = reply.text if isinstance(reply, Generation) else reply
        # What a model thinks ends no answer.
        answer = find_answer(text).start
        cut = before_stop(text[answer:], stop)
        if cut is not None:
            text = (text[:answer] + cut).strip()
        whole = reply if isinstance(reply, Generation) else self._generation(text, messages)
        return whole if cut is None else replace(whole, text=text, finish_reason="stop", departures=("decoding",))

    def _generation(self, text: str, messages: Sequence[Message]) -> Generation:
        tokens = len(text.split())
        return Generation(
            text=text,
            tokens=tokens,
            prompt_tokens=sum(len(turn.content.split()) for turn in messages),
            finish_reason="stop",
            seconds=0.0,
            signatures={position: self._signature(text, position) for position in POSITIONS[: None if tokens else 1]},
            statistics=Statistics(logprob_sum=-0.1 * tokens, logprob_mean=-0.1, entropy_mean=0.2, margin_min=0.5)
            if tokens
            else None,
        )

    def _signature(self, text: str, position: Position) -> Signature:
        numbers = np.random.default_rng(zlib.crc32(f"{position} {text}".encode(errors="replace")))
        signature = numbers.random((self._layers, self._layers), dtype=np.float32)
        np.fill_diagonal(signature, 0.0)
        return signature


class FixedScorer:
    """A scorer with scripted scores.

    Args:
        scores: one for all generations, a sequence with one a generation, or a mapping by the generation's text (a
            stream scores after each word: then a mapping by the text so far). A number is an
            uncertainty; a `Score` brings its own typicality; an exception is raised. A generation without a
            score raises LookupError.
        typicality: beside an uncertainty; 1 is like the calibration rows.
    """

    def __init__(
        self,
        scores: Scripted[float | Score],
        *,
        typicality: float = 1.0,
    ) -> None:
        self._script: Callable[[str], float | Score] = _script(scores)
        self._typicality = typicality

    def score(self, generation: Generation) -> Score:
        """The next score, or the one for this text."""
        score = self._script(generation.text)
        return score if isinstance(score, Score) else Score(uncertainty=score, typicality=self._typicality)


class InMemoryQueue(ReviewQueue):
    """A review queue that is gone when it is closed, or no longer used.

    It keeps every rule of a real one because it is one: on a SQLite file in a temporary folder of its own. With a
    clock of the test's own, leases and due times end without anybody waiting for them.

    Args:
        queues: as of `ReviewQueue`.
        endpoints: as of `ReviewQueue`.
        clock: as of `ReviewQueue`.
    """

    def __init__(
        self,
        *,
        queues: Sequence[QueueSettings] = (),
        endpoints: Sequence[EndpointSettings] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        folder = tempfile.mkdtemp(prefix="ilis_guard-testing-")
        self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        super().__init__(f"sqlite:///{folder}/tickets.db", queues=queues, endpoints=endpoints, clock=clock)

    def close(self) -> None:
        """Delete the tickets."""
        super().close()
        self._remove()


def _script(given: Any) -> Callable[[str], Any]:
    """The item for a key. `given` is a `Scripted`; Any because a string is also a sequence of strings."""
    if isinstance(given, Mapping):
        return lambda key: _returned(given[key])
    if isinstance(given, Sequence) and not isinstance(given, str):
        left = deque(given)
        return lambda _: _returned(left.popleft() if left else LookupError("the script ended; give it an item a call"))
    return lambda _: _returned(given)


def _returned(item: Any) -> Any:
    if isinstance(item, BaseException):
        raise item
    return item


def fake_guard(
    policy: str | Path | Policy,
    tiers: Mapping[str, float | Score | Exception | None],
    *,
    prompts: Mapping[str, float | Score] | None = None,
    thresholds: Mapping[str, float] | None = None,
    costs: Mapping[str, float] | None = None,
    review: Review | None = None,
) -> Guard:
    """A guard with a real policy and everything else fake.

    Args:
        policy: a policy, its file, or the name of one that comes with ilis_guard.
        tiers: by name, from small to large: the uncertainty (or the whole score) of the tier's answers, the error
            that its model raises, or None for a tier without a bundle. Tier ``small`` answers "answer of small".
        prompts: by name: the uncertainty (or the whole score) of the tier's prompts. The other tiers have no prompt
            bundle.
        thresholds: by name: the uncertainty up to which the policy's guarantee holds on a tier, as if it had been
            certified on a bundle. On the other tiers nothing is certified.
        costs: by name: what each call of a tier costs. The other tiers are free.
        review: where escalated requests go; an `InMemoryQueue` unless given. Closing the guard closes it.

    Raises:
        PolicyError: the policy is wrong.
        ConfigError: the policy retries on a tier that doesn't exist, or looks at the score of prompts and none has one,
            or `prompts`, `thresholds` or `costs` names a tier that doesn't exist, or there are `thresholds` and the
            policy guarantees nothing.
    """
    scored, certified, charged = prompts or {}, thresholds or {}, costs or {}
    for what, named in (("prompts", scored), ("thresholds", certified), ("costs", charged)):
        if unknown := sorted(set(named) - set(tiers)):
            raise ConfigError(f"{what} names the tiers {unknown!r}, which don't exist; there are {list(tiers)!r}")
    loaded = policy if isinstance(policy, Policy) else Policy.load(policy)
    if certified and loaded.guarantee is None:
        raise ConfigError(f"there are thresholds, and the policy {loaded.name!r} guarantees nothing; leave them out")
    return _FakeGuard(
        tiers=[_tier(name, scripted, scored.get(name), charged.get(name, 0.0)) for name, scripted in tiers.items()],
        policy=loaded,
        review=InMemoryQueue() if review is None else review,
        thresholds=certified,
    )


class _FakeGuard(Guard):
    """A guard with given thresholds instead of certified ones, and without waits between calls."""

    def __init__(
        self, *, tiers: Sequence[Tier], policy: Policy, review: Review, thresholds: Mapping[str, float]
    ) -> None:
        super().__init__(tiers=tiers, policy=policy, review=review, backoff=tenacity.wait_none())
        enforced = self._active.enforced
        changed = replace(enforced, thresholds={**enforced.thresholds, **thresholds})
        self._active = replace(self._active, enforced=changed)


def _tier(name: str, scripted: float | Score | Exception | None, prompt: float | Score | None, cost: float) -> Tier:
    return Tier(
        name=name,
        model=FakeModel(scripted if isinstance(scripted, Exception) else f"answer of {name}"),
        scorer=None if scripted is None or isinstance(scripted, Exception) else FixedScorer(scripted),
        prompt_scorer=None if prompt is None else FixedScorer(prompt),
        cost=TierCost(per_request=cost),
    )
