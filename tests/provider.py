"""A provider of a chat model over real HTTP, with logprobs in the format of OpenAI's chat completions."""

import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from ilis_guard.lab.attempt_schema import HarvestManifest
from ilis_guard.lab.attempts import Answers
from ilis_guard.lab.questions import Question
from ilis_guard.models.remote import statistics_of
from ilis_guard.types import RemoteFingerprint, Statistic

NUMBER = re.compile(r"\d+")


def town(number: int) -> Question:
    """Some longer and some shorter, so that asking by length isn't asking in order."""
    asked = f"Which is the code of the town number {number}" + "?" * (1 + number % 3)
    return Question(id=f"q{number}", dataset=f"towns-{number % 2}", question=asked, answers=(f"T{number}",))


def confidence(number: int) -> float:
    """How probable the model finds what it says of a town, which is also how probable it is right."""
    return float(0.05 + 0.94 * np.random.default_rng(number).random())


def is_right(number: int) -> bool:
    return bool(np.random.default_rng([number, 1]).random() < confidence(number))


def sure_and_unsure() -> tuple[int, int]:
    """Of towns that no test harvests: the one that the model is surest of, and the one that it is least sure of."""
    towns = range(10_000, 10_200)
    return max(towns, key=confidence), min(towns, key=confidence)


class Provider:
    """What it was asked, and what it does besides answering."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[dict[str, Any]] = []
        """The bodies that came, in order."""
        self.most_at_once = 0
        self.before: Callable[[str], int] = lambda _prompt: 200
        """Told the user's last turn; says the HTTP status of the reply."""
        self.is_mute = False
        """Whether it gives no logprobs, though it is asked for them."""
        self._under_way = 0
        self._counting = threading.Lock()

    @property
    def times(self) -> Counter[str]:
        """How often each prompt came."""
        return Counter(body["messages"][-1]["content"] for body in self.asked)

    def arguments(self, **changes: Any) -> dict[str, Any]:
        """Of a `ChatOpenAI` that asks here; None takes one out."""
        given = {
            "model": "town-clerk",
            "base_url": f"{self.url}/v1",
            "max_retries": 0,
            "logprobs": True,
            "top_logprobs": 2,
            "temperature": 0.0,
        }
        return {name: value for name, value in (given | changes).items() if value is not None}

    def reply(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """HTTP status and body."""
        with self._counting:
            self.asked.append(body)
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            status = self.before(body["messages"][-1]["content"])
            told = {**body, "logprobs": False} if self.is_mute else body
            return status, completion(told) if status == 200 else {"error": {"message": "no"}}
        finally:
            with self._counting:
                self._under_way -= 1


def completion(body: dict[str, Any]) -> dict[str, Any]:
    found = NUMBER.search(body["messages"][-1]["content"])
    number = int(found[0]) if found else 0
    answer = [("T" if is_right(number) else "X", confidence(number)), (str(number), 0.99)]
    told = {"content": [_token(*token, listed=body.get("top_logprobs", 0)) for token in answer], "refusal": None}
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(token for token, _ in answer), "refusal": None},
                "finish_reason": "stop",
                "logprobs": told if body.get("logprobs") else None,
            }
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14},
    }


def _token(text: str, share: float, *, listed: int) -> dict[str, Any]:
    """One token, with the two likeliest of its place; the other one has half of what is left."""
    places = [(text, share), ("?", (1 - share) / 2)]
    return {
        "token": text,
        "logprob": math.log(share),
        "bytes": list(text.encode()),
        "top_logprobs": [
            {"token": one, "logprob": math.log(of), "bytes": list(one.encode())} for one, of in places[:listed]
        ],
    }


def towns_harvest(fingerprint: RemoteFingerprint, count: int = 400) -> Answers:
    """What harvesting so many towns gives, without asking for them."""
    told = [completion({"model": "town-clerk", "logprobs": True, "top_logprobs": 2, **asked(n)}) for n in range(count)]
    known: tuple[Statistic, ...] = ("logprob_sum", "logprob_mean", "margin_min")
    statistics = [statistics_of(reply["choices"][0]["logprobs"]) for reply in told]
    return Answers(
        manifest=HarvestManifest(
            model="town-clerk",
            fingerprint=fingerprint,
            prompt="{question}",
            max_new_tokens=None,
            versions={},
            questions="",
            judge="rules",
        ),
        ids=np.array([town(number).id for number in range(count)], dtype=object),
        datasets=np.array([town(number).dataset for number in range(count)]),
        wrong=np.array([not is_right(number) for number in range(count)]),
        signatures={},
        statistics=np.array([[getattr(of, name) for name in known] for of in statistics]),
        unanswered=0,
        known=known,
    )


def asked(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": town(number).prompt()}]}


@contextmanager
def provider() -> Iterator[Provider]:
    """A provider that serves as long as this lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, told = serving.reply(body)
            text = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Tests print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    serving = Provider(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield serving
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
