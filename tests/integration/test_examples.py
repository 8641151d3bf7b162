"""The examples run as a user would run them: each by its own command, on real models, queues and servers."""

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ilis_guard.review import ReviewQueue

pytestmark = pytest.mark.usefixtures("process", "real_model")

EXAMPLES = Path(__file__).parents[2] / "examples"


def said(name: str, *arguments: object) -> list[str]:
    """The lines that an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout.splitlines()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The examples' guard.yaml, in a folder where its queue may be made."""
    return Path(shutil.copy(EXAMPLES / "guard.yaml", tmp_path))


def queue_beside(config: Path) -> ReviewQueue:
    return ReviewQueue(f"sqlite:///{config.parent}/tickets.db")


def free_ports(number: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(example: Path) -> None:
    assert len(example.read_text().splitlines()) < 40


def test_wrap_a_runnable_returns_the_chains_own_type(config: Path) -> None:
    assert said("wrap_a_runnable.py", config, "Norway", "Kenya", "Cuba") == [
        "Norway: The capital of Norway is Oslo.",
        "Kenya: I can't answer this reliably.",
        "Cuba: The answer to this question is uncertain. A person will look at it.",
    ]
    with queue_beside(config) as queue:
        (ticket,) = queue.list()
        assert queue.get(ticket.id).request["messages"][-1]["content"] == "What is the capital of Cuba?"


def test_stop_early_ends_only_blocked_answers(config: Path) -> None:
    lines = said("stop_early.py", config, "What is the capital of Norway?", "What is 981 plus 276?")
    sure, whole, unsure, cut = lines
    assert sure == "answer: The capital of Norway is Oslo."
    assert whole == "    small said 'The capital of Norway is Oslo.', whole"
    assert unsure == "abstain: I can't answer this reliably."
    assert re.fullmatch(r"    small said '.+', cut after \d+ tokens", cut)


def test_edited_thresholds_take_effect_in_a_running_guard() -> None:
    before, why, stricter, _, mistyped, problem, risk, certified = said("thresholds_in_yaml.py")
    assert before == "as it was: answer, The capital of Norway is Oslo."
    assert "`uncertainty < 0.25` is true" in why
    assert stricter == "stricter: abstain, I'd rather not guess."
    # The file that is wrong changes nothing, and says where it is wrong.
    assert mistyped == "with a typing error: abstain, I'd rather not guess."
    assert "policy.yaml:5:22: rule 'sure': unknown name 'uncertianty'; did you mean 'uncertainty'?" in problem
    assert risk == "a risk, not a number: answer, The capital of Norway is Oslo."
    assert "`certified` is true" in certified


def test_review_webhook_takes_a_signed_verdict_back(config: Path) -> None:
    page, desk = free_ports(2)
    config.write_text(config.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{page}"))
    lines = said("review_webhook.py", config, page, desk)
    assert lines == [
        "escalate: The answer to this question is uncertain. A person will look at it.",
        "the desk sees: The chemical element with the symbol He is hydrogen.",
        "correct: Helium",
    ]
    with queue_beside(config) as queue:
        (ticket,) = queue.list()
        assert (ticket.state, ticket.text, queue.get(ticket.id).reviewer) == ("resolved", "Helium", "zoe")


def test_langgraph_review_takes_a_verdict_on_either_side(config: Path) -> None:
    meanwhile = "The answer to this question is uncertain. A person will look at it."
    assert said("langgraph_review.py", config) == [
        "The capital of Norway is Oslo.",
        f"{meanwhile} (proposed: The chemical element with the symbol He is hydrogen.)",
        f"{meanwhile} (proposed: Cuba's capital is Havana.)",
        "Helium.",
        "Cuba's capital is Havana.",
    ]
    with queue_beside(config) as queue:
        records = [queue.get(ticket.id) for ticket in queue.list()]
        verdicts = {
            record.request["labels"]["thread_id"]: (record.ticket.verdict, record.reviewer) for record in records
        }
        assert verdicts == {"helium": ("correct", "ana"), "cuba": ("accept", "ben")}
