"""The reviewers' page as a browser or a tool sees it, for tests of it."""

import re
from collections.abc import Callable
from typing import Any, Final

import httpx2
import numpy as np

from ilis_guard.types import Signature

TOKENS: Final = {"ana": "ana's token", "ben": "ben's token", "vera": "vera's token"}
SECRET: Final = "whsec_" + "c2VjcmV0" * 5 + "c2U="
LAYERS: Final = 30


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


class Site:
    """A running server.

    Args:
        url: its address.
        connect: makes a client, with these changes to its arguments.
    """

    def __init__(self, url: str, connect: Callable[..., httpx2.Client]) -> None:
        self.url = url
        self._connect = connect
        self._clients: list[httpx2.Client] = []

    def close(self) -> None:
        """Close all clients."""
        for client in self._clients:
            client.close()

    def client(self, **changes: Any) -> httpx2.Client:
        """A browser in which nobody is signed in."""
        client = self._connect(**changes)
        self._clients.append(client)
        return client

    def signed_in(self, name: str) -> "SignedIn":
        """A user's browser."""
        client = self.client()
        response = sign_in(client, TOKENS[name])
        assert response.status_code == 303, response.text
        return SignedIn(client)


class SignedIn:
    """A user's browser: it sends what our forms send."""

    def __init__(self, client: httpx2.Client) -> None:
        self.client = client

    def get(self, path: str, **changes: Any) -> httpx2.Response:
        return self.client.get(path, headers={"accept": "text/html"} | changes.pop("headers", {}), **changes)

    def post(self, path: str, **fields: Any) -> httpx2.Response:
        return self.client.post(path, data={"csrf": self.csrf} | fields, headers={"accept": "text/html"})

    @property
    def csrf(self) -> str:
        return field_of(self.get("/tickets").text, "csrf")


def field_of(html: str, name: str) -> str:
    """The value of a form's hidden field."""
    found = re.search(rf'name="{name}" value="([^"]*)"', html)
    assert found is not None, f"no field {name!r}"
    return found[1]


def sign_in(client: httpx2.Client, token: str, **fields: str) -> httpx2.Response:
    """Fill the form in and send it."""
    form = field_of(client.get("/sign-in").text, "form")
    return client.post("/sign-in", data={"token": token, "form": form} | fields, headers={"accept": "text/html"})


def lifelike(seed: int) -> Signature:
    """A map with the structure of real ones: blocks of like layers, and last layers that differ from all others."""
    noise = np.random.default_rng(seed)
    depth = np.arange(LAYERS) / LAYERS
    apart = np.abs(depth[:, None] - depth[None, :])
    towards_the_end = np.exp(5.5 * np.clip(depth - 0.6, 0, None))[None, :]
    signature = (3.0 + 6.0 * apart) * towards_the_end * noise.uniform(0.7, 1.3, (LAYERS, LAYERS))
    np.fill_diagonal(signature, 0.0)
    return signature.astype(np.float32)
