import csv
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ilis_guard.lab.evaluation import bootstrap
from tests.lab.synthetic import synthetic_answers, write_harvest, write_questions

pytestmark = pytest.mark.usefixtures("fitted_model")

SIZES = {"capital": 150, "city": 150}
ROWS = synthetic_answers(SIZES, signal=0.6)
WITHOUT_OBSERVATIONS = {"output-statistics", "sequence-probability", "signature", "trees", "fused"}
TABLES = {"sets.csv", "metrics.csv", "differences.csv", "typicality.csv", "importance.csv"}


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 50)


class Page(HTMLParser):
    """What stands in a page, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"src", "href", "xlink:href", "srcset", "data", "action"}:
                self.links.append(value or "")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("few_resamples")
def test_evaluating_writes_tables_and_a_page_and_shows_the_headline(run: Callable[..., Any], tmp_path: Path) -> None:
    first = write_harvest(ROWS.take(ROWS.datasets == "capital"), tmp_path / "capital.parquet")
    second = write_harvest(ROWS.take(ROWS.datasets == "city"), tmp_path / "city.parquet")
    other = write_harvest(synthetic_answers(SIZES, seed=3, signal=0.2), tmp_path / "nf4.parquet", "nf4")
    to = tmp_path / "new" / "evaluation"
    done = run("evaluate", str(first), str(second), "--to", str(to), "--applied-to", str(other), "--seeds", "2")
    assert done.status == 0, done.err
    assert "AUROC, mean over sets" in done.flat
    assert "leave-one-set-out" in done.flat
    assert "weren't observed" in done.flat
    assert {path.name for path in to.iterdir()} == TABLES | {"report.html"}

    figures = table(to / "metrics.csv")
    assert {row["protocol"] for row in figures} == {
        *("in-distribution", "one-to-one", "leave-one-set-out", "refitted", "applied")
    }
    assert {row["method"] for row in figures} == WITHOUT_OBSERVATIONS
    assert {row["metric"] for row in figures} == {
        *("auroc", "auprc_wrong", "auprc_correct", "aurc", "e_aurc", "prr", "accuracy_at_80"),
        *("brier", "brier_skill", "ece", "ece_if_exact"),
    }
    for row in figures:
        if row["low"]:
            assert float(row["low"]) <= float(row["high"])
    (fused,) = (
        float(row["value"])
        for row in figures
        if (row["protocol"], row["method"], row["tested_on"], row["metric"])
        == ("in-distribution", "fused", "mean over sets", "auroc")
    )
    assert fused > 0.75
    assert f"{fused:.3f}".lstrip("0") in done.out
    assert {row["method"] for row in table(to / "differences.csv")} == WITHOUT_OBSERVATIONS - {"fused"}
    assert [row["dataset"] for row in table(to / "sets.csv")] == ["capital", "city"]
    gain = sum(float(row["share_of_gain"]) for row in table(to / "importance.csv"))
    assert gain == pytest.approx(1, abs=1e-3)


@pytest.mark.usefixtures("few_resamples")
def test_the_page_loads_nothing_and_holds_no_texts_by_default(run: Callable[..., Any], tmp_path: Path) -> None:
    harvest = write_harvest(ROWS, tmp_path / "rows.parquet")
    questions = write_questions(ROWS, tmp_path / "asked.jsonl")
    common = ("evaluate", str(harvest), "--seeds", "1", "--questions", str(questions), "--to", str(tmp_path))
    assert run(*common).status == 0
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert not re.search(r"https?:|@import", text)
    assert "script" not in page.tags
    assert all(link.startswith(("#", "data:image/png")) for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert {*re.findall(r"url\(#([^)]*)\)", text)} <= set(page.ids)
    assert page.tags.count("svg") >= 10
    assert "answer" in text
    assert "capital-0?" not in text
    assert "it &amp; " not in text
    assert str(tmp_path) not in text

    assert run(*common, "--show-texts").status == 0
    text = (tmp_path / "report.html").read_text()
    assert "&lt;i&gt;What&lt;/i&gt; is" in text
    assert "&lt;b&gt;answer&lt;/b&gt;" in text
    assert "<i>What" not in text


def test_too_few_rows_are_one_message(run: Callable[..., Any], tmp_path: Path) -> None:
    harvest = write_harvest(ROWS.take(np.arange(60)), tmp_path / "rows.parquet")
    done = run("evaluate", str(harvest), "--to", str(tmp_path / "to"))
    assert (done.status, done.out) == (2, "")
    assert "no set counts, so that there is nothing to evaluate: 'capital': " in " ".join(done.err.split())


def test_ids_that_come_twice_are_one_message(run: Callable[..., Any], tmp_path: Path) -> None:
    harvest = str(write_harvest(ROWS, tmp_path / "rows.parquet"))
    done = run("evaluate", harvest, harvest, "--to", str(tmp_path / "to"))
    assert (done.status, done.out) == (2, "")
    assert "300 ids come twice" in " ".join(done.err.split())


def test_harvests_of_different_models_are_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    full = write_harvest(ROWS.take(ROWS.datasets == "capital"), tmp_path / "full.parquet")
    nf4 = write_harvest(ROWS.take(ROWS.datasets == "city"), tmp_path / "nf4.parquet", "nf4")
    done = run("evaluate", str(full), str(nf4), "--to", str(tmp_path / "to"))
    assert done.status == 2
    assert "harvests of different models: they differ in precision" in " ".join(done.err.split())


def test_texts_need_the_questions(run: Callable[..., Any], tmp_path: Path) -> None:
    harvest = write_harvest(ROWS, tmp_path / "rows.parquet")
    done = run("evaluate", str(harvest), "--to", str(tmp_path / "to"), "--show-texts")
    assert done.status == 2
    assert "without the questions" in done.err
