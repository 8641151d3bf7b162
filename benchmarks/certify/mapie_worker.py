"""Compute MAPIE's thresholds for draws in a file, in a separate environment.

python -m benchmarks.certify.mapie_worker METHOD DRAWS.npz THRESHOLDS.npy MAX_ERROR CONFIDENCE
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from mapie.risk_control import BinaryClassificationController
from mapie.risk_control.fwer_control import FWERFixedSequenceTesting

SUREST_FIRST: Final = np.linspace(0.99, 0, 100)
METHODS: Final[Mapping[str, Callable[[], dict[str, Any]]]] = {
    "default": dict,
    "default, up to 0.89": lambda: {"list_predict_params": np.linspace(0, 0.89, 90)},
    "fixed sequence, 5 starts": lambda: {
        "fwer_method": FWERFixedSequenceTesting(n_starts=5),
        "list_predict_params": SUREST_FIRST,
    },
}


def threshold(uncertainty: np.ndarray, wrong: np.ndarray, max_error: float, confidence: float, method: str) -> float:
    """The uncertainty up to which MAPIE would answer; not a number where it controls nothing."""

    def probabilities(rows: Any) -> np.ndarray:
        right = 1 - np.asarray(rows).reshape(-1)
        return np.column_stack([1 - right, right])

    controller = BinaryClassificationController(
        predict_function=probabilities,
        risk="precision",
        target_level=1 - max_error,
        confidence_level=confidence,
        **METHODS[method](),
    )
    controller.calibrate(uncertainty.reshape(-1, 1), (~wrong).astype(int))
    best = controller.best_predict_param
    return float("nan") if best is None else 1 - float(best)


def main(method: str, draws: str, thresholds: str, max_error: str, confidence: str) -> None:
    """Write one threshold a draw."""
    import warnings

    warnings.simplefilter("ignore")  # it warns of every draw in which nothing can be controlled
    with np.load(draws) as drawn:
        rows = zip(drawn["uncertainty"], drawn["wrong"], strict=True)
        found = [threshold(*row, float(max_error), float(confidence), method) for row in rows]
    np.save(thresholds, np.array(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
