"""A decision to escalate is returned only once its ticket is on disk."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ilis_guard.review import ReviewQueue
from ilis_guard.testing import fake_guard

DIES = """
import os, signal, sys
from ilis_guard.review import ReviewQueue
from ilis_guard.testing import fake_guard

guard = fake_guard(sys.argv[1], {"small": 0.9}, review=ReviewQueue(sys.argv[2]))
decision = guard.decide("What is the boiling point of gallium?", labels={"topic": "chemistry"})
os.write(1, decision.ticket.id.encode())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_ticket_is_committed_before_decide_returns(fixture: Callable[[str], Path], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tickets.db"
    with fake_guard(fixture("escalate"), {"small": 0.9}, review=ReviewQueue(url)) as guard:
        made = guard.decide("What is the boiling point of gallium?")
        with ReviewQueue(url) as elsewhere:
            assert elsewhere.list() == [made.ticket]


@pytest.mark.usefixtures("process")
def test_the_ticket_survives_a_kill_right_after_decide_returned(fixture: Callable[[str], Path], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tickets.db"
    child = subprocess.run(
        [sys.executable, "-c", DIES, str(fixture("escalate")), url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    with ReviewQueue(url) as queue:
        (ticket,) = queue.list()
        record = queue.get(ticket.id)
    assert ticket.id == child.stdout
    assert (ticket.queue, record.rule, record.proposed) == ("chemists", "person", "answer of small")
    assert record.request["labels"] == {"topic": "chemistry"}
    assert set(record.attempts[0]["signatures"]) == {"prompt", "last", "mean"}
