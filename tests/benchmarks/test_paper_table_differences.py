"""The paper's table: differences by hand, and what stands beside the paper's figures."""

import csv
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from benchmarks.paper_table.differences import (
    MeanDifference,
    cell_differences,
    format_points,
    matrix_cells,
    mean_differences,
)
from benchmarks.paper_table.matrix import PROBES, SCORERS, read_trials, write_trials
from benchmarks.paper_table.page import heat_maps, page
from benchmarks.paper_table.published import HEADINGS, MODELS, SUMMARY, overview
from benchmarks.paper_table.tables import (
    CELLS_FILE,
    CONVENTION,
    DIFFERENCES,
    PaperTable,
    write_table_files,
)
from ilis_guard.lab.attempt_schema import HarvestManifest
from ilis_guard.lab.evaluation.trials import ProtocolName, Trial
from tests.fingerprints import fingerprint

WRONG = (True, False, True, False)
APART = (0.9, 0.1, 0.8, 0.2)
"""AUPRC 1, Brier (.01 + .01 + .04 + .04) / 4 = .025."""
MIXED = (0.9, 0.8, 0.2, 0.1)
"""AUPRC (1 + 2/3) / 2 either way, Brier (.01 + .64 + .64 + .01) / 4 = .325."""
SURE = (1.0, 0.0, 1.0, 0.0)
"""Brier 0."""
UNSURE = (0.5, 0.5, 0.5, 0.5)
"""Brier .25."""


def trial(
    method: str,
    trained_on: str,
    tested_on: str,
    raw: tuple[float, ...],
    probability: tuple[float, ...] = UNSURE,
    *,
    protocol: ProtocolName | None = None,
    seed: int = 0,
) -> Trial:
    own: ProtocolName = "in-distribution" if trained_on == tested_on else "one-to-one"
    return Trial(
        protocol=protocol or own,
        method=method,
        trained_on=trained_on,
        tested_on=tested_on,
        seed=seed,
        of=4,
        places=np.arange(4),
        groups=np.arange(4),
        wrong=np.array(WRONG),
        raw=np.array(raw),
        probability=np.array(probability),
    )


def made_trials() -> list[Trial]:
    """On the diagonal both rank alike; elsewhere scorers are apart and probes are mixed. Scorers are surer."""
    return [
        trial(
            method,
            one,
            other,
            APART if method in SCORERS or one == other else MIXED,
            SURE if method in SCORERS else UNSURE,
            protocol=protocol,
        )
        for method in (*SCORERS, *PROBES)
        for one, other in product("ab", repeat=2)
        for protocol in (
            ("in-distribution", "applied", "refitted")
            if one == other
            else ("one-to-one", "applied-one-to-one", "refitted-one-to-one")
        )
    ]


def table(trials: list[Trial]) -> PaperTable:
    cells = matrix_cells(trials)
    differences = cell_differences(cells)
    manifest = HarvestManifest(
        model="made",
        fingerprint=fingerprint(),
        prompt="{question}",
        max_new_tokens=7,
        versions={},
        questions="0" * 64,
        judge="rules",
    )
    return PaperTable(
        model="made-up",
        seeds=1,
        manifests=(manifest,),
        sets=(),
        other_sets=(),
        cells=tuple(cells),
        differences=tuple(differences),
        means=tuple(mean_differences(differences)),
    )


def mean(found: PaperTable, setting: str, cells: str, metric: str) -> MeanDifference:
    (one,) = (
        one
        for one in found.means
        if (one.setting, one.cells, one.scorer, one.probe, one.metric)
        == (setting, cells, "signature", "probe-mlp", metric)
    )
    return one


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_cells_difference_is_the_scorers_metric_less_the_probes_in_points() -> None:
    made = [trial(method, "a", "b", APART, SURE) for method in SCORERS]
    made += [trial(method, "a", "b", MIXED, UNSURE) for method in PROBES]
    found = {one.metric: one.points for one in cell_differences(matrix_cells(made)) if one.scorer == "signature"}
    assert found == pytest.approx(
        {
            "auprc_correct": 100 * (1 - 5 / 6),
            "auprc_wrong": 100 * (1 - 5 / 6),
            "auroc": 100 * (1 - 3 / 4),
            "brier_as_fitted": 100 * (0.325 - 0.025),
            "brier": 100 * (0.25 - 0),
        }
    )


def test_a_probe_with_the_smaller_brier_score_makes_the_points_negative() -> None:
    made = [trial(method, "a", "a", MIXED) for method in SCORERS] + [
        trial(method, "a", "a", APART) for method in PROBES
    ]
    found = {one.metric: one.points for one in cell_differences(matrix_cells(made))}
    assert found["brier_as_fitted"] == pytest.approx(-30)
    assert found["auprc_wrong"] == pytest.approx(-100 / 6)
    assert found["brier"] == 0


def test_a_cells_figure_is_the_mean_over_its_seeds() -> None:
    made = [trial(method, "a", "a", APART, seed=seed) for method in SCORERS for seed in range(2)]
    made += [
        trial(method, "a", "a", scores, seed=seed) for method in PROBES for seed, scores in enumerate((APART, MIXED))
    ]
    found = {one.metric: one.points for one in cell_differences(matrix_cells(made))}
    assert found["auprc_wrong"] == pytest.approx(100 / 12)
    assert found["brier_as_fitted"] == pytest.approx(15)


def test_the_diagonal_and_the_other_cells_are_averaged_apart_in_each_setting() -> None:
    made = made_trials()
    # One cell where the probe is better by as much.
    made = [
        one
        if (one.protocol, one.trained_on) != ("refitted-one-to-one", "b")
        else trial(
            one.method,
            "b",
            "a",
            MIXED if one.method in SCORERS else APART,
            tuple(one.probability),
            protocol=one.protocol,
        )
        for one in made
    ]
    found = table(made)
    for setting in ("full", "applied", "refitted"):
        own = mean(found, setting, "in-distribution", "auprc_correct")
        assert (own.points, own.low, own.high, own.ahead, own.of) == (0, 0, 0, 0, 2)
        assert mean(found, setting, "in-distribution", "brier").points == pytest.approx(25)
    for setting in ("full", "applied"):
        off = mean(found, setting, "off-diagonal", "auprc_correct")
        assert [off.points, off.worst] == pytest.approx([100 / 6, 100 / 6])
        assert (off.ahead, off.of) == (2, 2)
        assert off.low < off.points < off.high
    off = mean(found, "refitted", "off-diagonal", "auprc_correct")
    assert [off.points, off.worst, off.ahead] == pytest.approx([0, -100 / 6, 1])


def test_files_hold_scores_as_they_are_and_points_with_their_sign(tmp_path: Path) -> None:
    write_table_files(table(made_trials()), tmp_path)
    cells = {
        (one["setting"], one["method"], one["trained_on"], one["tested_on"]): one
        for one in lines(tmp_path / CELLS_FILE)
    }
    assert len(cells) == 3 * 4 * 4
    assert cells["full", "probe-mlp", "a", "b"]["brier_as_fitted"] == "0.3250"
    assert cells["full", "signature", "a", "b"]["brier_as_fitted"] == "0.0250"
    (one,) = (
        one
        for one in lines(tmp_path / DIFFERENCES)
        if list(one.values())[:6] == ["full", "signature", "probe-mlp", "a", "b", "brier_as_fitted"]
    )
    assert one["points"] == "+30.00"


def test_what_nobody_measured_is_empty_beside_the_papers_figures(tmp_path: Path) -> None:
    rows = [dict(zip(HEADINGS, row.values(), strict=True)) for row in overview(tmp_path)]
    published = {(row["model"], row["cells"]): (row["AUPRC, paper"], row["Brier, paper"]) for row in rows[:3]}
    assert published == {
        ("all three", "in-distribution"): ("within -1.8", "+4.9"),
        ("all three", "off-diagonal"): ("up to +2.86", "up to +21.02"),
        ("Qwen/Qwen3-14B", "on average"): ("+1.94", "+5.33"),
    }
    assert {row["model"] for row in rows[3:]} == set(MODELS)
    assert all(value == "" for row in rows[3:] for value in list(row.values())[3:])
    assert all(value == "" for row in rows for name, value in row.items() if name.endswith("here"))


def test_a_model_of_the_paper_that_was_measured_stands_in_its_own_rows(tmp_path: Path) -> None:
    found = table(made_trials())
    for name in ("Qwen3-14B", "another"):
        write_table_files(found, tmp_path / name)
    assert (tmp_path / "another" / SUMMARY).exists()
    rows = [dict(zip(HEADINGS, row.values(), strict=True)) for row in overview(tmp_path)]
    measured = {row["model"] for row in rows if row["Brier calibrated, here"]}
    assert measured == {"Qwen/Qwen3-14B", "another"}
    assert len(rows) == 3 + 6 * 4
    (row,) = (row for row in rows if list(row.values())[:3] == ["Qwen/Qwen3-14B", "4 bits, refitted", "off-diagonal"])
    one = mean(found, "refitted", "off-diagonal", "auprc_correct")
    assert row["AUPRC right, here"] == format_points(one.points, one.low, one.high) == "+16.7 (+0.0 to +50.0)"
    assert format_points(1.25, float("nan"), float("nan")) == "+1.2"


def test_the_page_shows_the_matrix_the_convention_and_the_paper(tmp_path: Path) -> None:
    found = table(made_trials())
    maps = heat_maps(found)
    assert [one.title for one in maps][:2] == ["full precision: AUPRC, right", "full precision: AUPRC, wrong"]
    assert len(maps) == 3 * 4
    assert [[cell.text for cell in row] for row in maps[0].rows] == [["+0.0", "+16.7"], ["+16.7", "+0.0"]]
    assert [cell.colour for cell in maps[0].rows[0]] == ["", "p4"]
    shown = page(found, overview(tmp_path), command="made by hand")
    assert "<script" not in shown
    assert "up to +21.02" in shown
    assert CONVENTION[:60].replace("'", "&#39;") in shown
    assert shown.count('class="p4"') >= 2


def test_kept_trials_are_read_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "trials.parquet"
    write_trials(made_trials(), path)
    for known, read in zip(made_trials(), read_trials(path), strict=True):
        for name in ("places", "groups", "wrong", "raw", "probability"):
            np.testing.assert_array_equal(getattr(known, name), getattr(read, name))
            assert getattr(known, name).dtype == getattr(read, name).dtype
        assert (known.protocol, known.method, known.seed, known.of) == (read.protocol, read.method, read.seed, read.of)
