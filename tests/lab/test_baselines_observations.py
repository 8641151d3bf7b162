"""Rows, read from harvests and observations that were made of them."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ilis_guard.errors import FitError
from ilis_guard.lab.attempt_schema import METADATA_KEY
from ilis_guard.lab.attempts import Answers, read_answers, read_attempts
from ilis_guard.lab.baselines.observations import (
    LENS,
    LENS_SITES,
    SCORES,
    SITES,
    ObservationManifest,
    file_digest,
    observation_table,
    with_observations,
)
from ilis_guard.lab.harvest import harvest
from ilis_guard.lab.storage import write_table
from tests.lab.test_harvest import LAYERS, SILENT, FakeTapped, question

HIDDEN = FakeTapped.fingerprint.hidden


def harvested(path: Path, first: int, *, silent: bool = True) -> Path:
    """A harvest of five questions, the second of which may have got no answer."""
    asked = [question(first + number, SILENT if number == 1 and silent else "") for number in range(5)]
    harvest(FakeTapped(), asked, path, name="fake")
    return path


def number_of(id_: str) -> int:
    return int(id_.removeprefix("q"))


def observed(path: Path, of: Path, *, order: int = 1, ids: list[str] | None = None) -> Path:
    """Observations whose numbers are those in the rows' ids."""
    known = read_attempts(of).answers()
    manifest = ObservationManifest(
        harvest=known.manifest, harvest_sha256=file_digest(of), rauq_alpha=0.5, p_true_prompt="{question}", versions={}
    )
    rows = [
        {
            "id": id_,
            **{score: number_of(id_) + place / 10 for place, score in enumerate(SCORES)},
            **{site: np.full((LAYERS, HIDDEN), number_of(id_) + len(site), np.float16) for site in SITES},
            LENS: np.arange(len(LENS_SITES) * LAYERS, dtype=np.float32).reshape(-1, LAYERS) + number_of(id_),
        }
        for id_ in (ids or list(known.ids))[::order]
    ]
    write_table(observation_table(rows, manifest), path)
    return path


def check(rows: Answers, ids: list[str]) -> None:
    assert rows.ids.tolist() == ids
    assert rows.datasets.tolist() == [f"d{number_of(id_) % 3}" for id_ in ids]
    assert rows.unsupervised is not None
    assert rows.activations is not None
    numbers = np.array([number_of(id_) for id_ in ids], dtype=np.float64)
    for place, score in enumerate(SCORES):
        np.testing.assert_allclose(rows.unsupervised[score], numbers + place / 10)
    for site in SITES:
        assert rows.activations[site].shape == (len(ids), LAYERS, HIDDEN)
        assert rows.activations[site].dtype == np.float16
        np.testing.assert_array_equal(rows.activations[site][:, 1, 2], (numbers + len(site)).astype(np.float16))
    assert rows.lens is not None
    assert rows.lens.shape == (len(ids), len(LENS_SITES), LAYERS)
    assert rows.lens.dtype == np.float32
    np.testing.assert_array_equal(rows.lens[:, 2, 1], numbers + 2 * LAYERS + 1)


@pytest.mark.parametrize("order", [1, -1])
def test_rows_of_several_harvests_get_their_own_observations(tmp_path: Path, order: int) -> None:
    one, two = harvested(tmp_path / "one.parquet", 0), harvested(tmp_path / "two.parquet", 10)
    of_one, of_two = observed(tmp_path / "a", one, order=order), observed(tmp_path / "b", two, order=order)
    rows = with_observations(read_answers([two, one]), [two, one], [of_one, of_two])
    ids = ["q10", "q12", "q13", "q14", "q0", "q2", "q3", "q4"]
    check(rows, ids)
    expected = {id_: known for path in (one, two) for id_, known in zip(*named(path), strict=True)}
    for row, id_ in enumerate(ids):
        wrong, statistics, last = expected[id_]
        assert rows.wrong[row] == wrong
        np.testing.assert_array_equal(rows.statistics[row], statistics)
        np.testing.assert_array_equal(rows.signatures["last"][row], last)


def named(path: Path) -> tuple[tuple[str, ...], list[tuple[bool, np.ndarray, np.ndarray]]]:
    known = read_attempts(path).answers()
    return tuple(known.ids.tolist()), list(
        zip(known.wrong.tolist(), known.statistics, known.signatures["last"], strict=True)
    )


def test_some_of_them_are_taken_by_a_mask_or_by_numbers(tmp_path: Path) -> None:
    path = harvested(tmp_path / "one.parquet", 0)
    rows = with_observations(read_answers([path]), [path], [observed(tmp_path / "a", path)])
    check(rows.take(np.array([True, False, True, False])), ["q0", "q3"])
    taken = rows.take(np.array([3, 0, 0]))
    check(taken, ["q4", "q0", "q0"])
    np.testing.assert_array_equal(taken.signatures["mean"], rows.signatures["mean"][[3, 0, 0]])
    np.testing.assert_array_equal(taken.statistics, rows.statistics[[3, 0, 0]])
    np.testing.assert_array_equal(taken.wrong, rows.wrong[[3, 0, 0]])
    assert len(taken) == 3


def test_a_harvest_may_be_read_without_observations(tmp_path: Path) -> None:
    rows = read_answers([harvested(tmp_path / "one.parquet", 0)])
    assert rows.unsupervised is None
    assert rows.activations is None
    assert rows.lens is None
    assert rows.take(np.array([0])).ids.tolist() == ["q0"]


def test_only_the_rows_need_observations(tmp_path: Path) -> None:
    one, two = harvested(tmp_path / "one.parquet", 0), harvested(tmp_path / "two.parquet", 10)
    some = read_answers([one, two]).take(np.array([2, 0]))
    of_one, of_two = observed(tmp_path / "a", one), observed(tmp_path / "b", two)
    check(with_observations(some, [one, two], [of_one]), ["q3", "q0"])
    check(with_observations(some, [one, two], [of_two, of_one]), ["q3", "q0"])
    with pytest.raises(FitError, match=r"2 answers weren't observed, such as 'q3': observe each harvest that counts"):
        with_observations(some, [one, two], [of_two])


def test_observations_of_another_harvest_are_refused(tmp_path: Path) -> None:
    one, two = harvested(tmp_path / "one.parquet", 0), harvested(tmp_path / "two.parquet", 10)
    rows = read_answers([one])
    of_one = observed(tmp_path / "a", one)
    with pytest.raises(FitError, match=r"^'.*b' aren't the observations of '.*one\.parquet' as they are now"):
        with_observations(rows, [one], [of_one, observed(tmp_path / "b", two)])
    with pytest.raises(FitError, match=r"4 ids come twice in .*: name each file once"):
        with_observations(rows, [one], [of_one, of_one])
    harvested(one, 0, silent=False)  # the same name, another content
    with pytest.raises(FitError, match="as they are now: observe these anew"):
        with_observations(rows, [one], [of_one])


def test_rows_that_were_not_observed_or_twice_are_refused(tmp_path: Path) -> None:
    path = harvested(tmp_path / "one.parquet", 0)
    rows = read_answers([path])
    for ids, refused in (
        (["q0", "q2", "q3"], "1 answers weren't observed, such as 'q4'"),
        (["q0", "q2", "q3", "q7"], "1 answers weren't observed, such as 'q4'"),
        (["q0", "q0", "q2", "q3", "q4"], "1 ids come twice"),
    ):
        with pytest.raises(FitError, match=refused):
            with_observations(rows, [path], [observed(tmp_path / "a", path, ids=ids)])


def test_harvests_of_different_models_are_refused(tmp_path: Path) -> None:
    one, two = harvested(tmp_path / "one.parquet", 0), harvested(tmp_path / "two.parquet", 10)
    table = pq.read_table(two)
    manifest = json.loads(table.schema.metadata[METADATA_KEY])
    manifest["harvest"]["fingerprint"]["precision"] = "full"
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(manifest)}), two)
    with pytest.raises(FitError, match="harvests of different models: they differ in precision"):
        read_answers([one, two])


def test_an_id_that_comes_twice_is_refused(tmp_path: Path) -> None:
    one, two = harvested(tmp_path / "one.parquet", 0), harvested(tmp_path / "two.parquet", 3)
    with pytest.raises(FitError, match=r"1 ids come twice in .*, such as 'q3'"):
        read_answers([one, two])
    with pytest.raises(FitError, match="name at least one"):
        read_answers([])
