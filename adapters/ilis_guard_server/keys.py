"""API keys: whose they are."""

import hmac
from collections.abc import Sequence

from ilis_guard import events
from ilis_guard.config import secrets
from ilis_guard.config.page import are_token_hashes, token_hash
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
            _hashes(one)

    def __bool__(self) -> bool:
        """Whether a key is needed."""
        return bool(self._settings)

    def owner(self, key: str) -> str | None:
        """The name of whose key this is; None where it is nobody's."""
        given = token_hash(key)
        found = None
        for one in self._settings:  # all of them, so that the time taken tells nothing
            if self._has(one, given):
                found = one.name
        return found

    def _has(self, one: KeySettings, given: str) -> bool:
        try:
            known = _hashes(one)
        except ConfigError as error:
            # Whose hash can't be read can't ask; everybody else still can.
            events.log().error(events.API_KEY_SHUT_OUT, name=one.name, error=str(error))
            return False
        matches = [hmac.compare_digest(given, hash_) for hash_ in known]
        return any(matches)


def _hashes(one: KeySettings) -> Sequence[str]:
    """The hashes of the keys that somebody may ask with: one, or two while they are changed."""
    text = secrets.resolve_secret(one.key) if secrets.is_reference(one.key) else one.key
    if not are_token_hashes(text):
        raise ConfigError(
            f"what stands at {one.key!r} is no key's hash (sha256:...); make one with `ilis-guard api-key`"
        )
    return text.split()
