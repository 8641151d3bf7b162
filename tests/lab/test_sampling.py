"""Rows to label: all have the same chance, in every beginning of a draw."""

import numpy as np
import pytest

from ilis_guard.lab import sampling
from ilis_guard.lab.sampling import draw_rows

DRAWS = 2000


def test_each_row_has_the_same_chance_in_every_beginning_of_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, sizes = 23, (1, 5, 16, 22)
    times = {size: np.zeros(rows) for size in sizes}
    for seed in range(DRAWS):
        monkeypatch.setattr(sampling, "SEED", seed)
        drawn = draw_rows(rows, rows)
        assert sorted(drawn.tolist()) == list(range(rows))
        for size in sizes:
            times[size][drawn[:size]] += 1
    for size in sizes:
        chance = size / rows
        assert np.abs(times[size] / DRAWS - chance).max() < 5 * np.sqrt(chance * (1 - chance) / DRAWS), size


def test_a_larger_draw_begins_with_the_smaller_one() -> None:
    np.testing.assert_array_equal(draw_rows(200, 25), draw_rows(200, 100)[:25])
