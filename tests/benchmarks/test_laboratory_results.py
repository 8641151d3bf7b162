"""What is committed of the laboratory belongs to the questions and the tiers as they are now."""

import csv
from pathlib import Path

import pytest

from benchmarks.laboratory.__main__ import CONFIG, RESULTS
from benchmarks.laboratory.sets import family_of, question_sets
from benchmarks.laboratory.tables import MANIFESTS
from ilis_guard.config.guard_yaml import read_config
from ilis_guard.lab.evaluation.tables import SETS
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
    configs = (CONFIG, CONFIG.with_name("laboratory.yaml"))
    assert {folder.name for folder in folders} <= {
        tier.name for config in configs for tier in read_config(config).tiers
    }


def test_they_came_of_the_sets_that_are_made_now(folders: list[Path]) -> None:
    for folder in folders:
        family = family_of(folder.name)
        sets = question_sets(family, None)
        digests = {questions_digest(questions) for questions in sets.values()}
        harvested = {row["questions_sha256"] for row in table(folder / MANIFESTS)}
        assert digests <= harvested, folder.name
        assert len(harvested - digests) <= len(family.from_folder), folder.name
        assert sets.keys() <= {row["dataset"] for row in table(folder / SETS)} <= {*sets, *family.from_folder}, (
            folder.name
        )


def test_they_are_small(folders: list[Path]) -> None:
    for folder in folders:
        assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES, folder.name
