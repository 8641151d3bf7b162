"""What is committed of the laboratory belongs to the questions and the tiers as they are now."""

import csv
from itertools import dropwhile, takewhile
from pathlib import Path

import pytest

from benchmarks.laboratory.__main__ import CONFIG, RESULTS
from benchmarks.laboratory.sets import FROM_FOLDER, question_sets
from benchmarks.laboratory.tables import MANIFESTS, TARGETS
from ilis_guard.config.guard_yaml import read_config
from ilis_guard.lab.evaluation.bootstrap import MEAN
from ilis_guard.lab.evaluation.tables import METRICS, SETS
from ilis_guard.lab.harvest import questions_digest

MOST_BYTES = 300_000


@pytest.fixture
def folders() -> list[Path]:
    """One for each tier that was evaluated."""
    return sorted(path for path in RESULTS.glob("*") if path.is_dir())


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_results_are_those_of_tiers(folders: list[Path]) -> None:
    assert {folder.name for folder in folders} <= {tier.name for tier in read_config(CONFIG).tiers}


def test_they_came_of_the_sets_that_are_made_now(folders: list[Path]) -> None:
    sets = question_sets(None)
    digests = {questions_digest(questions) for questions in sets.values()}
    for folder in folders:
        harvested = {row["questions_sha256"] for row in table(folder / MANIFESTS)}
        assert digests <= harvested, folder.name
        assert len(harvested - digests) <= len(FROM_FOLDER), folder.name
        assert sets.keys() <= {row["dataset"] for row in table(folder / SETS)} <= {*sets, *FROM_FOLDER}, folder.name


def test_they_are_small(folders: list[Path]) -> None:
    for folder in folders:
        assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES, folder.name


TITLES = {
    "smollm2-135m-instruct-full": "SmolLM2, full precision",
    "smollm2-135m-instruct-nf4": "SmolLM2, NF4",
    "gemma-3-270m-full": "Gemma 3 270M",
}
SAID = {"in-distribution": "trained on the set itself", "leave-one-set-out": "trained on all other sets"}
VERDICTS = {"True": ", reached", "False": ", missed", "": ""}


def documented(document: str, heading: str) -> dict[str, dict[str, str]]:
    """The rows of the first table after a line, by their first cell: what stands under each column's title."""
    below = Path(document).read_text().partition(heading)[2].splitlines()
    lines = takewhile(bool, dropwhile(lambda line: not line.startswith("|"), below))
    titles, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
    return {row[0]: dict(zip(titles[1:], row[1:], strict=True)) for row in rows}


def short(number: str) -> str:
    return f"{float(number):.3f}".removeprefix("0")


def test_the_documentation_says_what_was_expected_and_what_was_found(folders: list[Path]) -> None:
    said = documented("docs/laboratory.md", "### What was expected, and what was found")
    for folder in folders:
        found = {row["what"]: (row["found"] + VERDICTS[row["is_reached"]]) or "-" for row in table(folder / TARGETS)}
        assert {what: row[TITLES[folder.name]] for what, row in said.items()} == found


@pytest.mark.parametrize(
    ("protocol", "heading"),
    [
        ("in-distribution", "Trained on a set, tested on its other rows:"),
        ("leave-one-set-out", "Trained on all other sets, tested on one:"),
    ],
)
def test_the_documentation_says_how_every_method_fared(protocol: str, heading: str, folders: list[Path]) -> None:
    said = documented("docs/laboratory.md", heading)
    for folder in folders:
        found = {
            f"`{row['method']}`": f"{short(row['value'])} ({short(row['low'])} to {short(row['high'])})"
            for row in table(folder / METRICS)
            if (row["protocol"], row["metric"], row["tested_on"]) == (protocol, "auroc", MEAN)
        }
        assert {method: row[TITLES[folder.name]] for method, row in said.items()} == found


def test_the_readme_quotes_them(folders: list[Path]) -> None:
    said = documented("README.md", "Beside other methods")
    for folder in folders:
        for row in table(folder / METRICS):
            if (row["metric"], row["tested_on"]) == ("auroc", MEAN) and row["protocol"] in SAID:
                line = said[f"{TITLES[folder.name]}, {SAID[row['protocol']]}"]
                method = f"`{row['method']}`"
                assert line.get(method, short(row["value"])) == short(row["value"])
