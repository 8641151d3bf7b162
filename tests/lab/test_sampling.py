"""Rows to label: all have the same chance, each beginning of a draw is such a sample, and it is spread."""

from collections import Counter

import numpy as np
import pytest

from benchmarks.certify.populations import POPULATIONS, Population
from ilis_guard.lab import sampling
from ilis_guard.lab.sampling import draw_rows
from ilis_guard.scoring import certify

DRAWS = 4000


def one_kind(rows: int) -> np.ndarray:
    return np.zeros(rows, dtype=np.int64)


def test_each_row_has_the_same_chance_in_every_beginning_of_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, sizes = 23, (1, 5, 16, 22)
    kinds, uncertainty = np.repeat([0, 1], [8, 15]), np.linspace(0, 1, rows) ** 2
    times = {size: np.zeros(rows) for size in sizes}
    for seed in range(DRAWS):
        monkeypatch.setattr(sampling, "SEED", seed)
        drawn = draw_rows(kinds, uncertainty, rows)
        assert sorted(drawn.tolist()) == list(range(rows))
        for size in sizes:
            times[size][drawn[:size]] += 1
    for size in sizes:
        chance = size / rows
        assert np.abs(times[size] / DRAWS - chance).max() < 5 * np.sqrt(chance * (1 - chance) / DRAWS), size


@pytest.mark.parametrize("rows", [64, 1000, 1024])
def test_of_32_rows_one_is_in_each_part_of_the_uncertainties(rows: int) -> None:
    uncertainty = np.random.default_rng(1).permutation(rows) / rows
    drawn = draw_rows(one_kind(rows), uncertainty, 32)
    # The parts start at a row that is drawn, and those of 1,000 rows have 31 or 32 rows: gaps are below two parts.
    gaps = np.diff(np.sort(uncertainty[drawn]))
    assert gaps.max() * rows < 2 * np.ceil(rows / 32)
    assert abs(uncertainty[drawn].mean() - 0.5) < 0.03


def test_every_kind_has_its_share() -> None:
    random = np.random.default_rng(0)
    kinds = random.permutation(np.repeat([0, 1, 2], [500, 300, 200]))
    drawn = draw_rows(kinds, random.random(1000), 100)
    counts = Counter(kinds[drawn].tolist())
    assert [abs(counts[kind] - wanted) <= 3 for kind, wanted in enumerate((50, 30, 20))] == [True] * 3


def test_a_larger_draw_begins_with_the_smaller_one() -> None:
    uncertainty = np.random.default_rng(0).random(200)
    more = draw_rows(one_kind(200), uncertainty, 100)
    assert len(set(more.tolist())) == 100
    np.testing.assert_array_equal(draw_rows(one_kind(200), uncertainty, 25), more[:25])


@pytest.mark.parametrize(
    "population",
    [
        *(one for one in POPULATIONS if one.name in {"all wrong beyond 0.4", "a little too wrong everywhere"}),
        Population(name="better where less sure", rows=0, rate=lambda u: 0.15 - 0.1 * u),
        Population(name="up and down", rows=0, rate=lambda u: 0.21 * (np.floor(50 * u) % 2)),
    ],
    ids=lambda population: population.name,
)
def test_a_certificate_on_chosen_rows_keeps_its_promise(population: Population) -> None:
    random, draws, broken = np.random.default_rng(0), 300, 0
    for _ in range(draws):
        uncertainty = random.random(300)
        wrong = random.random(300) < population.rate(uncertainty)
        chosen = draw_rows(one_kind(300), uncertainty, 100)
        threshold = certify(uncertainty[chosen], wrong[chosen], max_error=0.1, confidence=0.9).threshold
        broken += population.truth(threshold)[1] > 0.1
    # One time in ten it may be broken; by chance, of 300 certificates 47 are one time in 5,000.
    assert broken <= 46
