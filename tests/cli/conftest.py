import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ilis_guard.cli import main
from ilis_guard.guard import Guard
from ilis_guard.review import ReviewQueue
from ilis_guard.types import Action, Attempt, ErrorInfo, Request, RuleOutcome, Ruling

PROMPT = "[red]Is[/red] 1:100:2 [/] safe? \\[bold]"
ANSWER = "[blink]yes[/blink] :smile: \x1b]0;owned\x07\u202egnp"


@dataclass(frozen=True)
class Result:
    """What a command left."""

    status: int
    out: str
    err: str

    @property
    def flat(self) -> str:
        """Standard output without the wrapping of tables."""
        return " ".join(self.out.split())

    @property
    def json(self) -> Any:
        """Standard output as the one JSON document that it is."""
        return json.loads(self.out)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs the real `main` with these arguments."""
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def run_one(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["ilis-guard", *arguments])
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        return Result(status, *capsys.readouterr())

    return run_one


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A guard.yaml in the working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "guard.yaml"
    path.write_text(
        "version: 1\npolicy: default\ntiers: [{name: small, model: m}]\nreview: {storage: 'sqlite:///tickets.db'}\n"
    )
    return path


@pytest.fixture
def ticket(config: Path) -> str:
    """The id of an open ticket in its queue, about hostile texts."""
    with ReviewQueue(f"sqlite:///{config.parent}/tickets.db") as queue:
        return queue.escalate(
            decision="d1",
            request=Request.of(PROMPT, {"topic": "[i]chemistry[/i]"}),
            attempts=[
                Attempt(tier="small", text=ANSWER, uncertainty=0.6, typicality=0.2),
                Attempt(tier="large", error=ErrorInfo(kind="ModelError", message="", detail="[/]")),
            ],
            queue="chemists",
            policy="ff",
            rule="[u]person",
            rulings=[
                Ruling(action=Action.RETRY, rule=None),
                Ruling(
                    action=Action.ESCALATE,
                    rule="[u]person",
                    outcomes=(RuleOutcome(rule="[u]person", stage="answer", outcome="decided"),),
                ),
            ],
            say="A [b]chemist[/b] will write to you.",
        ).id


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Guard], None]:
    """Makes commands build this guard instead of the one in guard.yaml."""

    def use_one(guard: Guard) -> None:
        monkeypatch.setattr(Guard, "from_config", lambda *_: guard)

    return use_one
