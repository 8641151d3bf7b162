"""What guard.yaml says of the HTTP server: who may ask the guard, what they may say, and how many at once."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from ilis_guard.config.queues import Name
from ilis_guard.types import StreamMode

LabelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class KeySettings(_Section):
    """Who may ask."""

    name: Name
    """As logs show it, and the policy where there is a `client_label`."""
    key: str = Field(min_length=1)
    """The hash of an API key, as ``ilis-guard api-key`` prints it, or where it stands: ``${NAME}`` in the environment,
    or ``file:PATH``."""


class ServerSettings(_Section):
    """The guard over HTTP."""

    model: str = Field(default="ilis-guard", pattern=r"^\S{1,100}$")
    """The name that the guard goes by: clients ask for this model."""
    api_keys: tuple[KeySettings, ...] = ()
    """Without any, everybody on this machine may ask, and nobody else."""
    client_label: LabelName | None = None
    """The policy sees the name of the caller's key as ``labels.`` and this name."""
    labels: tuple[LabelName, ...] = ()
    """Those that callers may give to a request; others are refused."""
    stream_mode: StreamMode = "hold"
    """Of requests that don't choose one."""
    modes: tuple[StreamMode, ...] = ()
    """Those that callers may choose beside it."""
    max_body_bytes: int = Field(default=1_048_576, ge=1024, le=104_857_600)
    """A larger request is refused before it is read."""
    max_concurrent: int = Field(default=8, ge=1, le=10_000)
    """So many requests are worked on at once, and the others wait in line."""
    max_waiting: int = Field(default=64, ge=0, le=100_000)
    """So many wait in line; who comes then is told to come again."""
    timeout_seconds: float = Field(default=120.0, gt=0, le=86_400)
    """How long a request may wait, and then how long it may be worked on, before it is given up."""
    shutdown_seconds: float = Field(default=8.0, gt=0, le=3600)
    """How long, once the server is told to stop, requests under way may take before they are given up."""

    @model_validator(mode="after")
    def _has_one_who_says_the_client(self) -> Self:
        if self.client_label in self.labels:
            raise ValueError(f"callers may not say who they are: take {self.client_label!r} out of `labels`")
        if self.client_label is not None and not self.api_keys:
            raise ValueError("`client_label` is the name of the caller's key, and there are no `api_keys`")
        return self

    def may_choose(self, mode: StreamMode) -> bool:
        """Whether a caller may have this mode."""
        return mode == self.stream_mode or mode in self.modes
