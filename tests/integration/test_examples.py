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


def test_stop_early_stops_where_the_policy_would_abstain_and_answers_only_where_it_would(tmp_path: Path) -> None:
    config = prepare(tmp_path)

    def said(question: str) -> str:
        command = [sys.executable, str(EXAMPLES / "stop_early.py"), str(config), "small", question]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        return ran.stdout.splitlines()[-1]

    assert said("What is 48 times 67?").startswith("stopped after ")
    assert "Oslo" in said("What is the capital of Norway?")
    assert said("Which chemical element has the symbol He?").startswith("no answer: ")
