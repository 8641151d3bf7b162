"""Which rows a fit saw, of rows without an answer too."""

from collections import Counter

from ilis_guard.lab.score import most_flattering, random_split
from ilis_guard.lab.splits import SHARES


def test_rows_without_an_answer_are_dealt_out_in_the_fits_shares() -> None:
    dealt = Counter(random_split(f"q{number}") for number in range(20_000))
    assert set(dealt) == set(SHARES)
    assert all(abs(dealt[split] / 20_000 - share) < 0.02 for split, share in SHARES.items())
    assert random_split("q1") == random_split("q1")


def test_of_several_bundles_the_one_that_saw_most_counts() -> None:
    assert most_flattering(["test", "train"]) == "train"
    assert most_flattering(["calibration", "unseen"]) == "calibration"
    assert most_flattering(["train", "unknown"]) == "unknown"
    assert most_flattering([]) == "unseen"
