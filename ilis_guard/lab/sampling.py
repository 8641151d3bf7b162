"""Sampling of rows to label: all have the same chance, and what is drawn is spread over kinds and uncertainties.

Rows are put in order, by their kind and then by their uncertainty. The order is halved again and again, and rows are
taken from both halves in turn, which comes first being drawn anew at each halving: a generalised random tessellation
stratified sample (Stevens and Olsen, 2004) in one dimension. The order starts at a row that is drawn, so by symmetry
every row is among the first n of N with probability n / N, whatever n is. So what is drawn is a random sample to every
reader that weighs rows by 1 / probability, and a larger sample holds a smaller one.

A certificate's proof (docs/risk-control.md) is of rows that are drawn independently. These aren't: of 2^k drawn rows
one lies in each of 2^k equal parts of the order. Given their uncertainties their outcomes are still independent, and
their number of wrong answers varies less than a binomial one of the same mean (Hoeffding, 1956), so that a test of it
fails less often; what isn't bounded is by how much a threshold inside such a part is off, one row in rank at most. On
simulated traffic of nine kinds a certificate is broken no more often than on independent rows and than it may be
(``benchmarks/learning_curve``, tests/benchmarks/test_certified_samples.py).
"""

from typing import Final

import numpy as np
from jaxtyping import Float64, Int64

Rows = Int64[np.ndarray, " drawn"]
SEED: Final = 0
"""Of all draws. It can't be chosen: the best of several samples is none of the traffic."""


def draw_rows(kinds: Int64[np.ndarray, " rows"], uncertainty: Float64[np.ndarray, " rows"], count: int) -> Rows:
    """Draw rows of which each has the same chance, in an order of which every beginning is such a sample.

    Args:
        kinds: a number of each row; rows with the same one are of one kind.
        uncertainty: of each row.
        count: so many rows, 1 to all.
    """
    random = np.random.default_rng(SEED)
    order = np.lexsort((random.random(len(kinds)), uncertainty, kinds))
    return _in_turn(np.roll(order, random.integers(len(order))), random)[:count]


def _in_turn(order: Rows, random: np.random.Generator) -> Rows:
    """Take rows from both halves of an order in turn, and so within each."""
    if len(order) <= 1:
        return order
    # An odd row is in either half with the same chance, and the larger half comes first.
    middle = (len(order) + int(random.integers(2)) * (len(order) % 2)) // 2
    halves = [_in_turn(order[:middle], random), _in_turn(order[middle:], random)]
    first = random.integers(2) if len(order) % 2 == 0 else int(len(halves[1]) > len(halves[0]))
    taken = np.empty_like(order)
    taken[0::2], taken[1::2] = halves[first], halves[1 - first]
    return taken
