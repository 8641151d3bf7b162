"""guard.yaml, `review`: where tickets are stored, how they wait, and who hears of them."""

from pydantic import BaseModel, ConfigDict

from ilis_guard.config import secrets
from ilis_guard.config.page import PageSettings
from ilis_guard.config.queues import EndpointSettings, QueueSettings


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ReviewConfig(_Section):
    """The human queue."""

    storage: str
    """A database URL, such as ``sqlite:///tickets.db``, or where one stands that holds a password: ``${NAME}`` in the
    environment, or ``file:PATH``."""
    queues: tuple[QueueSettings, ...] = ()
    """How tickets of these queues wait."""
    endpoints: tuple[EndpointSettings, ...] = ()
    """Who hears of what happens to tickets."""
    internal_hosts: tuple[str, ...] = ()
    """Hosts in the operator's own network that endpoints may be on; all others are public, and reached by https."""
    page: PageSettings | None = None
    """Where people look at tickets and give verdicts."""

    @property
    def storage_url(self) -> str:
        """The database URL, wherever it stands.

        Raises:
            ConfigError: it isn't where the file says it is.
        """
        return secrets.resolve_secret(self.storage) if secrets.is_reference(self.storage) else self.storage
