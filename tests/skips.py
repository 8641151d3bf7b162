"""Why tests are skipped for want of something on this machine. In continuous integration nothing may be missing."""

import os
from typing import Final, NoReturn

import pytest

NO_POSTGRESQL: Final = (
    "PostgreSQL isn't installed: no initdb in /usr/lib/postgresql/*/bin or the PATH; on Debian, "
    "apt-get install postgresql"
)
NO_PGBOUNCER: Final = "PgBouncer isn't installed: no pgbouncer in the PATH; on Debian, apt-get install pgbouncer"
NO_CHROMIUM: Final = "Chromium isn't installed: no chromium in the PATH; on Debian, apt-get install chromium"


def skip(reason: str) -> NoReturn:
    """Skip the test for a registered reason, or fail it where CI=true."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
