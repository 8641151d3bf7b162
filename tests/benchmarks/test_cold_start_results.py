"""The committed figures of the score without a bundle stand in the docs, and speak for the statistic that is used."""

import csv
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cold_start import FOLDER, HEADINGS, REQUEST_HEADINGS, first_rows, requests_table, statistics_table
from ilis_guard.scoring.unsupervised import STATISTIC
from ilis_guard.types import STATISTICS
from tests.lab.synthetic import synthetic_answers

PAGE = (Path(__file__).parents[2] / "docs" / "cold-start.md").read_text("utf-8")


def rows_of(name: str) -> tuple[list[str], list[list[str]]]:
    with (FOLDER / f"{name}.csv").open(encoding="utf-8") as file:
        headings, *rows = csv.reader(file)
    return headings, rows


@pytest.mark.parametrize(("name", "headings"), [("cold_start", HEADINGS), ("cold_start_requests", REQUEST_HEADINGS)])
def test_the_documented_figures_are_the_measured_ones(name: str, headings: tuple[str, ...]) -> None:
    found, rows = rows_of(name)
    assert tuple(found) == headings
    for row in rows:
        cells = [cell.removeprefix("0") if cell.startswith("0.") else cell.replace("%", " %") for cell in row]
        assert f"| {' | '.join(cells)} |" in PAGE


def test_on_mixed_traffic_the_statistic_that_is_used_is_the_best() -> None:
    (mixed,) = (row for row in rows_of("cold_start")[1] if row[0] == "mixed")
    figures = dict(zip(STATISTICS, map(float, mixed[3:]), strict=True))
    assert max(figures, key=figures.__getitem__) == STATISTIC


def test_of_answers_that_are_wrong_where_they_are_improbable_fewer_are_wrong() -> None:
    rows = first_rows(synthetic_answers({"a": 400, "b": 400, "c": 300}))
    assert len(rows) == 900
    table = list(statistics_table(rows))
    assert [row[0] for row in table[-2:]] == ["mean", "mixed"]
    spans = list(requests_table(rows, orders=2))
    shares = np.array([[float(cell.rstrip("%")) for cell in row[1:]] for row in spans])
    assert shares[0, 0] == 100, "unguarded"
    assert (shares[1:, 0] < 75).all()
    assert (shares[2:, 1] < shares[2:, 2] - 3).all()
