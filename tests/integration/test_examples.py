"""The examples run as a user would run them."""

import subprocess
import sys
from pathlib import Path

from ilis_guard.lab.demo import prepare

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_wrap_a_runnable(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, EXAMPLES / "wrap_a_runnable.py", prepare(tmp_path), "Norway"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Oslo" in run.stdout
