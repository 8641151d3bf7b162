"""guard.yaml, `server`: the guard over HTTP, its API keys and its limits."""

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from ilis_guard.config.base import Name, StrictModel
from ilis_guard.config.secrets import SecretReference, is_reference, is_token_hash
from ilis_guard.config.strict_yaml import Document
from ilis_guard.config.validation import duplicate_names
from ilis_guard.types import StreamMode

LabelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]


class KeySettings(StrictModel):
    """An API key."""

    name: Name
    """The client's name in logs and, where `client_label` is set, in the policy's labels."""
    key: SecretReference
    """The key's hash, as ``ilis-guard api-key`` prints it, or a reference to it: ``${NAME}`` or ``file:PATH``."""


class ServerSettings(StrictModel):
    """The guard over HTTP."""

    model: str = Field(default="ilis-guard", pattern=r"^\S{1,100}$")
    """The guard's model name: clients ask for this model."""
    api_keys: tuple[KeySettings, ...] = ()
    """Without any, the server takes requests from this machine only."""
    client_label: LabelName | None = None
    """The label, ``labels.NAME``, that tells the policy the name of the request's API key."""
    labels: tuple[LabelName, ...] = ()
    """The labels that clients may set; others are refused."""
    stream_mode: StreamMode = "hold"
    """The mode of requests that don't choose one."""
    modes: tuple[StreamMode, ...] = ()
    """Further modes that clients may choose."""
    max_body_bytes: int = Field(default=1_048_576, ge=1024, le=104_857_600)
    """A larger request is refused unread."""
    max_connections: int = Field(default=1000, ge=1, le=100_000)
    """The number of connections that may be open; fewer where the process has too few file descriptors."""
    max_concurrent: int = Field(default=8, ge=1, le=10_000)
    """The number of requests that are decided at once; the others wait."""
    max_waiting: int = Field(default=64, ge=0, le=100_000)
    """The number of requests that may wait; further ones get 429 and retry later."""
    timeout_seconds: float = Field(default=120.0, gt=0, le=86_400)
    """The longest time that a request waits, and then the longest time that its decision takes."""
    shutdown_seconds: float = Field(default=8.0, gt=0, le=3600)
    """The time that running requests have once the server begins to stop."""

    @model_validator(mode="after")
    def _check_client_label(self) -> Self:
        if self.client_label in self.labels:
            raise ValueError(f"clients may not say who they are: take {self.client_label!r} out of `labels`")
        if self.client_label is not None and not self.api_keys:
            raise ValueError("`client_label` holds the name of the client's key, and there are no `api_keys`")
        return self

    def may_choose(self, mode: StreamMode) -> bool:
        """Whether a client may choose this mode."""
        return mode == self.stream_mode or mode in self.modes


def server_problems(document: Document, server: ServerSettings) -> Iterator[str]:
    """Describe what the types can't exclude. No key is shown."""
    yield from duplicate_names(document, ("server", "api_keys"), [one.name for one in server.api_keys])
    for index, one in enumerate(server.api_keys):
        if not (is_reference(one.key) or is_token_hash(one.key)):
            message = "not a key's hash (sha256:...), nor a reference to one; make one with `ilis-guard api-key`"
            yield document.problem(("server", "api_keys", index, "key"), message)
