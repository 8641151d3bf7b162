"""API keys: whose they are."""

from collections.abc import Sequence

from ilis_guard import events
from ilis_guard.config.secrets import hash_token, matches_token_hash, read_token_hashes
from ilis_guard.config.server import KeySettings
from ilis_guard.errors import ConfigError


class Keys:
    """Everybody's key in guard.yaml. Hashes that it refers to are read anew each time, so keys change under way.

    Args:
        settings: a key each.

    Raises:
        ConfigError: a key's hash isn't where guard.yaml says it is.
    """

    def __init__(self, settings: Sequence[KeySettings]) -> None:
        self._settings = tuple(settings)
        for one in self._settings:
            read_token_hashes(one.key)

    def __bool__(self) -> bool:
        """Whether a key is needed."""
        return bool(self._settings)

    def owner(self, key: str) -> str | None:
        """The name of whose key this is; None where it is nobody's."""
        given = hash_token(key)
        found = None
        for one in self._settings:  # all of them, so that the time taken tells nothing
            if self._has(one, given):
                found = one.name
        return found

    def _has(self, one: KeySettings, given: str) -> bool:
        try:
            return matches_token_hash(given, read_token_hashes(one.key))
        except ConfigError as error:
            # Whose hash can't be read can't ask; everybody else still can.
            events.log().error(events.API_KEY_UNREADABLE, name=one.name, error=str(error))
            return False
