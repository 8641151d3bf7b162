"""Secrets: guard.yaml says where they stand, and they are read anew each time they are needed.

So a secret can be changed under a running process: a file is written by whoever mounts it, an environment stays what
it was when the process started.
"""

import os
import re
from pathlib import Path
from typing import Final

from ilis_guard.errors import ConfigError

_ENVIRONMENT: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_FILE: Final = "file:"


def is_reference(text: str) -> bool:
    """Whether a text says where a secret stands: ``${NAME}`` in the environment, or ``file:PATH``."""
    return _ENVIRONMENT.fullmatch(text) is not None or (text.startswith(_FILE) and len(text) > len(_FILE))


def resolve_secret(reference: str) -> str:
    """What stands there, without the white space around it.

    Raises:
        ConfigError: the variable isn't set, or the file can't be read, or it is empty.
    """
    if match := _ENVIRONMENT.fullmatch(reference):
        secret = os.environ.get(match[1], "").strip()
    else:
        try:
            secret = Path(reference.removeprefix(_FILE)).read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(f"the secret {reference!r} can't be read: {type(error).__name__}; check it") from None
    if not secret:
        raise ConfigError(f"the secret {reference!r} is empty or isn't there; set it, then try again")
    return secret


def with_absolute_path(text: str, folder: Path) -> str:
    """A reference to a file, relative to a folder, made absolute; anything else as it is."""
    if not is_reference(text) or not text.startswith(_FILE):
        return text
    name = text.removeprefix(_FILE)
    return f"{_FILE}{Path.home() / name[2:] if name.startswith('~/') else folder / name}"
