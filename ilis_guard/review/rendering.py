"""Operators' own templates: each is rendered in a process that has little time, little memory and nothing to find.

A sandbox keeps a template from reading what it wasn't given, but not from ``{{ 'a' * 10**10 }}``, nor from loops in
loops: no thread can be stopped in them, and what one of them takes the guard itself would lack.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ilis_guard.errors import ConfigError

MAX_SOURCE: Final = 100_000
"""Bytes of a template's file."""
CPU_SECONDS: Final = 2
WALL_SECONDS: Final = 30
"""Of a process, with its start on a busy machine."""
MEMORY_BYTES: Final = 512 * 1024**2
_LIMITS: Final = (
    f"{CPU_SECONDS} s of processor time, {WALL_SECONDS} s in all or {MEMORY_BYTES // 1024**2} MiB of memory"
)

_SCRIPT: Final = Path(__file__).with_name("template_process.py")


class OwnTemplate:
    """A user's Jinja template. Reads its file once.

    Args:
        path: the file's.
        max_bytes: of what it renders.

    Raises:
        ConfigError: the file can't be read, or is no template.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        try:
            with path.open("rb") as file:
                source = file.read(MAX_SOURCE + 1)
            self._source = source.decode("utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"the template {str(path)!r} can't be read: {type(error).__name__}; check it") from None
        if len(source) > MAX_SOURCE:
            raise ConfigError(f"the template {str(path)!r} has more than {MAX_SOURCE} bytes; let it say less")
        checked = self._run(None)
        if "syntax" in checked:
            raise ConfigError(f"{path}:{checked['line']}: this is no Jinja template: {checked['syntax']}")

    def render(self, values: Mapping[str, Any], *, may_quote: bool) -> str:
        """Render the template. Blocks until its process has ended, some tenths of a second.

        Args:
            values: what it sees, as JSON values.
            may_quote: whether an error may say more than its class: not where it may repeat a prompt.

        Raises:
            ConfigError: the template fails, or takes or makes too much.
        """
        result = self._run(values)
        if "error" in result:
            reason = f"{result['error']}: {result['text']}" if may_quote else result["error"]
            raise self._failure(reason)
        if result["size"] > self._max_bytes:
            raise ConfigError(
                f"the template made {result['size']} bytes, and a webhook has at most {self._max_bytes}; let it say "
                "less"
            )
        return str(result["body"])

    def _run(self, values: Mapping[str, Any] | None) -> dict[str, Any]:
        task = {
            "source": self._source,
            "values": values,
            "max_bytes": self._max_bytes,
            "memory_bytes": MEMORY_BYTES,
            "seconds": CPU_SECONDS,
        }
        try:
            ended = subprocess.run(  # noqa: S603  # our own script
                # -P: the script's folder holds modules that are named like some of Python's own.
                [sys.executable, "-P", "-s", str(_SCRIPT)],
                input=json.dumps(task).encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # The environment holds secrets.
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                timeout=WALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise self._failure(f"it needs more than {_LIMITS}") from None
        except OSError as error:
            raise self._failure(f"its process can't be started ({type(error).__name__})") from None
        try:
            result: dict[str, Any] = json.loads(ended.stdout)
        except ValueError:  # killed, or out of memory while it wrote
            raise self._failure(f"it needs more than {_LIMITS}") from None
        return result

    def _failure(self, reason: str) -> ConfigError:
        return ConfigError(f"the template {str(self._path)!r} failed: {reason}; try it with all that it may be given")
