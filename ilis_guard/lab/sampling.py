"""Sampling of rows to label: plain random choice, of which every beginning is one, too.

Samples that are spread along (kind, uncertainty) or over clusters of features, and samples with more rows of middling
uncertainty and weights, were measured beside it at 25, 50 and 100 labels (docs/fitting.md): none taught a bundle more,
and spread ones rather less. A certificate's proof (docs/risk-control.md) is of rows that are drawn independently, as
these are; on spread ones it isn't proven. So rows are drawn as the proof has them.
"""

from typing import Final

import numpy as np
from jaxtyping import Int64

SEED: Final = 0
"""Of all draws. It can't be chosen: the best of several samples is none of the traffic."""


def draw_rows(rows: int, count: int) -> Int64[np.ndarray, " drawn"]:
    """Draw so many of all rows, each with the same chance; a larger draw begins with a smaller one."""
    return np.random.default_rng(SEED).permutation(rows)[:count]
