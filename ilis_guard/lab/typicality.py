"""Fit what answers are typical: the location and spread of training rows, and calibration rows' distances from them."""

import numpy as np
from jaxtyping import Float64
from sklearn.covariance import LedoitWolf

from ilis_guard.lab.attempts import Mask
from ilis_guard.scoring.typicality import TypicalityReference, squared_distances


def typicality_reference(
    columns: Float64[np.ndarray, "rows columns"], train: Mask, calibration: Mask
) -> TypicalityReference:
    """Fit the location and spread of training columns, and measure the calibration rows' distances from them."""
    spread = LedoitWolf().fit(columns[train])
    distances = squared_distances(columns[calibration], spread.location_, spread.precision_)
    return TypicalityReference(
        mean=tuple(spread.location_.tolist()),
        precision=tuple(map(tuple, spread.precision_.tolist())),
        distances=tuple(sorted(distances.tolist())),
    )
