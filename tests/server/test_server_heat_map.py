"""The picture of a map, and what it says to those who don't see it."""

import re

import numpy as np
import pytest
from hypothesis import given, strategies as st

from ilis_guard_server.pages.heat_map import STEPS, heat_map, marks, top_of


def drawn(areas: object, layers: int) -> np.ndarray:
    """The colour of each cell, from the paths; -1 where nothing is drawn."""
    cells = np.full((layers, layers), -1)
    for area in areas:  # type: ignore[attr-defined]  # a tuple of areas
        for x, y, width in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\3z", area.path):
            row = cells[int(y), int(x) : int(x) + int(width)]
            assert (row == -1).all(), "a cell is drawn twice"
            row[:] = area.step
    return cells


@given(layers=st.integers(1, 40), seed=st.integers(0, 9))
def test_every_cell_is_drawn_once_and_more_is_never_paler(layers: int, seed: int) -> None:
    values = np.random.default_rng(seed).exponential(5.0, (layers, layers))
    cells = drawn(heat_map("m", values.tolist(), top=float(values.max())).areas, layers)
    assert cells.min() >= 0
    assert cells.max() == STEPS - 1
    order = np.argsort(values, axis=None)
    assert (np.diff(cells.ravel()[order]) >= 0).all()


def test_maps_side_by_side_share_a_scale() -> None:
    small, large = [[0.0, 1.0], [1.0, 0.0]], [[0.0, 100.0], [1.0, 0.0]]
    top = top_of([small, large])
    assert top == 100.0
    assert (
        drawn(heat_map("small", small, top=top).areas, 2)[0, 1] == drawn(heat_map("l", large, top=top).areas, 2)[1, 0]
    )
    assert marks(top) == pytest.approx((0.0, np.sqrt(101.0) - 1, 100.0))


def test_the_picture_is_described_in_words_and_numbers() -> None:
    values = np.full((12, 12), 2.0)
    np.fill_diagonal(values, 0.0)
    values[3, 11] = 34.0
    shown = heat_map("m", values.tolist(), top=34.0)
    assert shown.words == ("12 layers, 2.24 nats apart on average. Furthest apart: layer 3 from layer 11, 34.00 nats.")
    assert [name for name, _ in shown.table] == ["0-1", "2-3", "4-5", "6-7", "8-9", "10-11"]
    assert shown.table[1][1] == pytest.approx((2.0, 1.0, 2.0, 2.0, 2.0, 10.0))


@pytest.mark.parametrize(
    ("layers", "labelled"),
    [(1, (0,)), (4, (0, 1, 2, 3)), (18, (0, 5, 10, 17)), (30, (0, 5, 10, 15, 20, 25, 29)), (80, (0, 20, 40, 60, 79))],
)
def test_axes_name_round_layers_and_the_last(layers: int, labelled: tuple[int, ...]) -> None:
    assert heat_map("m", np.zeros((layers, layers)).tolist(), top=0.0).labelled == labelled


def test_values_that_are_not_finite_are_drawn_as_zero() -> None:
    values = [[0.0, float("nan")], [float("inf"), 0.0]]
    assert top_of([values]) == 0.0
    assert (drawn(heat_map("m", values, top=0.0).areas, 2) == 0).all()
