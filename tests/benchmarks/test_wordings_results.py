"""What `benchmarks.wordings` measures on: questions that no bundle was fitted to."""

import csv

import pytest

from benchmarks.wordings import HEADINGS, RESULTS, TIER, sample
from ilis_guard.scoring import read_bundle
from ilis_guard.scoring.bundle import row_digest


@pytest.mark.usefixtures("fitted_model")
def test_no_bundle_is_fitted_to_a_tested_question() -> None:
    bundle = read_bundle(f"packaged:{TIER}")
    tested, fitted = sample(bundle, 160, 640)
    assert (len(tested), len(fitted)) == (160, 640)
    assert not {one.question for one in tested} & {one.question for one in fitted}
    splits = bundle.calibration_set.splits
    assert splits is not None
    known = {digest for name in ("train", "validation", "calibration") for digest in splits[name]}
    assert not known & {row_digest(one.id) for one in tested}
    assert {row_digest(one.id) for one in fitted} <= known


def test_the_committed_table_has_every_bundle_in_every_wording() -> None:
    with RESULTS.open(encoding="utf-8") as file:
        headings, *rows = csv.reader(file)
    assert tuple(headings) == HEADINGS
    cells = {(row[0], row[1]): row[4] for row in rows}
    assert len(cells) == len(rows) == 12
    for (bundle, wording), listed in cells.items():
        assert listed == ("yes" if wording == "as fitted" or bundle.startswith("all") else "no")
