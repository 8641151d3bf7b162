"""Who asks the guard: whoever has an API key, or, on a server without keys, a program on this machine."""

from typing import Annotated, Final

from fastapi import Depends, Request

from ilis_guard import events
from ilis_guard.config.addresses import is_loopback
from ilis_guard_server.problems import RefusedError
from ilis_guard_server.service import TheService

NOBODY: Final = ""
"""The client of a server without keys."""


def client_of(request: Request, service: TheService) -> str:
    """The dependency of what only clients see: the name of the key that a request came with."""
    if not service.keys:
        _check_on_this_machine(request)
        return NOBODY
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    owner = service.keys.owner(key.strip()) if scheme.lower() == "bearer" and key.strip() else None
    if owner is None:
        _log_refused(request)
        raise RefusedError(
            401,
            "This needs an API key that the server knows: Authorization: Bearer KEY.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
    return owner


Client = Annotated[str, Depends(client_of)]


def _check_on_this_machine(request: Request) -> None:
    """Without keys, not even a web page that a browser on this machine shows may ask, by whatever name it found us."""
    # Where the header is no host's name, the URL has the server's own address instead.
    is_as_said = request.url.netloc == request.headers.get("host")
    if not is_as_said or not is_loopback(request.url.hostname or "") or "origin" in request.headers:
        _log_refused(request)
        raise RefusedError(
            403, "Without API keys, only programs on this machine may ask, at a loopback address.", code="no_api_keys"
        )


def _log_refused(request: Request) -> None:
    address = "" if request.client is None else request.client.host
    events.log().warning(events.AUTH_FAILED, request=request.state.request_id, address=address)
