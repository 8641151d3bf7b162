import csv
import io
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.neighbours.report import FIELDS, WIDTH, processor_name, table, write_csv
from benchmarks.neighbours.roster import Neighbour
from benchmarks.neighbours.rounds import Outcome
from benchmarks.neighbours.worker import About, Measured


def about(attention: str, *runs: str) -> About:
    return About(
        version="0.7.0", transformers="5.0.0", torch="2.13.0+cpu", packages=147, attention=attention, runs=list(runs)
    )


def measured(wall: float, processor: float = 1.0) -> Measured:
    return Measured(wall_seconds=wall, processor_seconds=processor, token_ids=[1, 2])


@pytest.fixture
def outcomes(made_up: Callable[[str], Neighbour]) -> list[Outcome]:
    """One that runs with sdpa, one that needs eager attention, one that was given up halfway, one that never ran."""
    return [
        Outcome(
            neighbour=made_up("plain"),
            about=about("sdpa", "scored", "bare"),
            pairs=[
                {"scored": measured(2.2, 4.0), "bare": measured(2.0, 2.0)},
                {"bare": measured(1.0), "scored": measured(1.5, 1.5)},
                {"scored": measured(9.0, 1.1), "bare": measured(3.0)},
            ],
        ),
        Outcome(
            neighbour=made_up("needs-eager"),
            about=about("eager", "scored", "bare", "bare_sdpa"),
            pairs=[{"scored": measured(3.0), "bare": measured(2.0), "bare_sdpa": measured(1.0)}],
        ),
        Outcome(
            neighbour=made_up("halfway"),
            about=about("sdpa", "scored", "bare"),
            pairs=[{"scored": measured(2.0), "bare": measured(2.0)}],
            error="RuntimeError: later",
        ),
        Outcome(neighbour=made_up("never"), error="ERROR: no such package"),
    ]


def printed(outcomes: list[Outcome]) -> list[list[str]]:
    """The cells of each line of the table's body."""
    output = io.StringIO()
    Console(width=WIDTH, file=output).print(table(outcomes, "title"))
    lines = [line for line in output.getvalue().splitlines() if "│" in line]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def test_the_table_shows_medians_and_the_price_of_another_attention(outcomes: list[Outcome]) -> None:
    plain, eager, *_ = printed(outcomes)
    versions = ["0.7.0", "5.0.0, 2.13.0+cpu"]
    assert plain == ["PLAIN", *versions, "sdpa", "147", "2.00", "1.500", "1.100 to 3.000", "1.500", "1.500"]
    assert eager == ["NEEDS-EAGER", *versions, "eager", "147", "2.00", "1.500", "1.500 to 1.500", "1.000", "3.000"]


def test_the_table_names_failures_with_their_reasons(outcomes: list[Outcome]) -> None:
    body = [row[0] for row in printed(outcomes)]
    text = " ".join(body[2:])
    assert text == "HALFWAY failed: RuntimeError: later NEVER failed: ERROR: no such package"


def test_the_file_has_a_line_for_each_run_and_names_the_machine(outcomes: list[Outcome], tmp_path: Path) -> None:
    file = tmp_path / "results" / "neighbours.csv"
    write_csv(outcomes, 48, file)
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert tuple(rows[0]) == FIELDS
    assert len(rows) == 2 * 3 + 3 + 1 + 1
    assert rows[3] == {
        "neighbour": "plain",
        "version": "0.7.0",
        "transformers": "5.0.0",
        "torch": "2.13.0+cpu",
        "python": platform.python_version(),
        "processor": processor_name(),
        "packages": "147",
        "attention": "sdpa",
        "tokens": "48",
        "pairs": "3",
        "pair": "2",
        "run": "scored",
        "wall_seconds": "1.5",
        "processor_seconds": "1.5",
        "error": "",
    }
    assert [(row["neighbour"], row["pair"], row["run"], row["error"]) for row in rows[9:]] == [
        ("halfway", "", "", "RuntimeError: later"),
        ("never", "", "", "ERROR: no such package"),
    ]


def test_the_processor_has_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr("benchmarks.neighbours.report.CPU_INFO", info)
    assert processor_name() == platform.machine()
    info.write_text("processor\t: 0\nmodel name\t: Made Up 9000: the second\nprocessor\t: 1\nmodel name\t: Other\n")
    assert processor_name() == "Made Up 9000: the second"
