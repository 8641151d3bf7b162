"""Guards behind a server, in process or on a real socket, for tests of what clients see."""

import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import httpx2
import openai
import tenacity
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from ilis_guard import Guard, Policy, Tier
from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.config.secrets import hash_token
from ilis_guard.config.server import KeySettings, ServerSettings
from ilis_guard.models import Model
from ilis_guard.review import ReviewQueue
from ilis_guard.scoring import Scorer
from ilis_guard.testing import FakeModel, FixedScorer
from ilis_guard.types import Fingerprint, Generation, Message, Step
from ilis_guard_server import create_app
from ilis_guard_server.run import uvicorn_config

Connect = Callable[..., httpx2.Client]
"""Makes a client, with these changes to its arguments."""
KEY: Final = "ilis-the-key-of-the-shop"
CLIENT: Final = "shop"
RULES: Final = """
version: 1
name: shop
rules:
  - {id: silent, when: has(labels.topic) && labels.topic == "silent", do: abstain}
  - {id: broken, when: error != "", do: escalate, to: support, say: A person will look at it.}
  - {id: sure, when: uncertainty < 0.25, do: answer}
  - {id: larger, when: uncertainty < 0.5, do: retry}
  - {id: person, when: uncertainty < 0.75, do: escalate, to: support, say: A person will look at it.}
  - {id: hopeless, do: abstain, say: I can't answer this reliably.}
"""


class InProcessClient(TestClient):
    """A client that calls the application in the event loop that `in_process` runs."""

    def __enter__(self) -> Self:
        return self  # the application is started already

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def in_process(app: FastAPI) -> Iterator[Connect]:
    """Run an application in an event loop of its own, without a socket."""
    options: dict[str, Any] = {
        "base_url": "http://127.0.0.1:8000",
        "client": ("127.0.0.1", 50000),
        "follow_redirects": False,
        "raise_server_exceptions": False,
    }
    with TestClient(app, **options) as running:

        def connect(**changes: Any) -> httpx2.Client:
            client = InProcessClient(app, **options | changes)
            client.portal = running.portal
            return client

        yield connect


@contextmanager
def on_socket(app: FastAPI, *, max_connections: int = 1000) -> Iterator[tuple[str, Connect]]:
    """Serve an application on a free port; its address and clients of it."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # clients that come before the server accepts requests wait
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn_config(app, host="127.0.0.1", port=0, max_connections=max_connections))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            options: dict[str, Any] = {"base_url": url, "trust_env": False, "timeout": 60}
            yield url, lambda **changes: httpx2.Client(**options | changes)
        finally:
            server.should_exit = True
            thread.join()


@dataclass(frozen=True, kw_only=True)
class ServedGuard:
    """A running server."""

    url: str
    app: FastAPI
    connect: Connect

    def client(self) -> openai.OpenAI:
        """OpenAI's client, without retries of its own."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=60, http_client=self.connect()
        )

    def async_client(self) -> openai.AsyncOpenAI:
        """OpenAI's asynchronous client; it needs a socket."""
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=60)

    def http(self, *, key: str | None = KEY) -> httpx2.Client:
        return self.connect(headers={} if key is None else {"authorization": f"Bearer {key}"})


def until(happened: Callable[[], bool]) -> None:
    """Wait for something that must happen."""
    for _ in range(2000):
        if happened():
            return
        time.sleep(0.01)
    raise AssertionError("it never happened")


def settings_with(**changes: Any) -> ServerSettings:
    """Those of a server with one client, of which a test changes what it is about."""
    keys = (KeySettings(name=CLIENT, key=hash_token(KEY)),)
    return ServerSettings(**{"api_keys": keys, "labels": ("topic",)} | changes)


def guard_of(
    tiers: dict[str, tuple[Model, Scorer | None]], review: ReviewQueue, policy: str = RULES, **changes: Any
) -> Guard:
    """A guard that doesn't wait between calls."""
    return Guard(
        tiers=[Tier(name=name, model=model, scorer=scorer) for name, (model, scorer) in tiers.items()],
        policy=Policy.parse(policy),
        review=review,
        backoff=tenacity.wait_none(),
        **changes,
    )


@contextmanager
def serve(guard: Guard, *, review: ReviewQueue | None = None, **settings: Any) -> Iterator[ServedGuard]:
    """Serve a guard in process."""
    app = create_app(policy=guard.policy, guard=guard, review=review, server=settings_with(**settings))
    with in_process(app) as connect:
        yield ServedGuard(url="http://127.0.0.1:8000", app=app, connect=connect)


@contextmanager
def serve_on_socket(guard: Guard, *, review: ReviewQueue | None = None, **settings: Any) -> Iterator[ServedGuard]:
    """Serve a guard on a real socket, for tests of connections and of clients that need one."""
    server = settings_with(**settings)
    app = create_app(policy=guard.policy, guard=guard, review=review, server=server)
    with on_socket(app, max_connections=server.max_connections) as (url, connect):
        yield ServedGuard(url=url, app=app, connect=connect)


WORDS: Final = "The capital of Norway is certainly Bergen my friend"
OTHER_WORDS: Final = "In Norway it is surely Bergen again"


def shop(review: ReviewQueue) -> Guard:
    """A guard of two tiers, with an outcome for each question."""
    small = FakeModel(
        {
            "sure?": "Oslo it is.",
            "larger?": "Bergen perhaps.",
            "person?": "Trondheim perhaps.",
            "hopeless?": "Tromsø perhaps.",
            "withdrawn?": WORDS,
            "replaced?": OTHER_WORDS,
            "broken?": RuntimeError("the prompt was broken?"),
        }
    )
    unsure = _by_words(WORDS, [0.1, 0.1, 0.1, *[0.97] * 6])
    replaced = _by_words(OTHER_WORDS, [0.1, 0.1, *[0.3] * 5])
    # On its way one is as good as certainly wrong, and is cut; at its end, the other is another tier's turn.
    scores = {"Oslo it is.": 0.1, "Oslo": 0.1, "Oslo it": 0.1, "Bergen perhaps.": 0.4, "Bergen": 0.4}
    scores |= {"Trondheim perhaps.": 0.6, "Trondheim": 0.6, "Tromsø perhaps.": 0.9, "Tromsø": 0.9} | unsure | replaced
    large = FakeModel({"larger?": "Oslo, says the larger.", "replaced?": "Oslo, after all."})
    return guard_of({"small": (small, FixedScorer(scores)), "large": (large, FixedScorer(0.05))}, review)


def _by_words(text: str, scores: list[float]) -> dict[str, float]:
    """A score for each length that a text has on its way."""
    words = text.split()
    return dict(zip([" ".join(words[:count]) for count in range(1, len(words) + 1)], scores, strict=True))


class Endless(FakeModel):
    """Says words until it is stopped, and knows that it was."""

    def __init__(self) -> None:
        super().__init__("")
        self.seconds, self.word = 0.005, "word"
        self.began = threading.Event()
        self.stopped = threading.Event()
        self.words = 0
        self.is_tired = False
        """Set at a test's end, so that no thread outlives one that failed."""

    @property
    def fingerprint(self) -> Fingerprint | None:
        return None

    def generate(self, messages: Sequence[Message], *, deadline: Deadline | None = None, **_: Any) -> Generation:
        del messages
        try:
            while not self.is_tired:
                self._say_one()
                if deadline is not None:
                    deadline.check()
            raise RuntimeError("the test is over")
        finally:
            self.stopped.set()

    def stream(self, messages: Sequence[Message], **_: Any) -> Generator[Step, None, None]:
        try:
            while not self.is_tired:
                self._say_one()
                so_far = self._generation(" ".join([self.word] * self.words), messages)
                yield Step(token=" word", generation=replace(so_far, finish_reason=None))
        finally:
            self.stopped.set()

    def _say_one(self) -> None:
        self.words += 1
        self.began.set()
        time.sleep(self.seconds)
