"""The trials behind the table: methods fitted to each set and tested on every set. What was computed is kept."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import ilis_guard
from ilis_guard.lab.attempts import Answers
from ilis_guard.lab.baselines.estimator import Method
from ilis_guard.lab.baselines.methods import methods
from ilis_guard.lab.baselines.observations import file_digest
from ilis_guard.lab.evaluation.evaluate import Source
from ilis_guard.lab.evaluation.trials import Transfers, Trial
from ilis_guard.lab.storage import write_table

SCORERS: Final = ("signature", "fused")
"""Trees on maps alone, as the paper's; and with output statistics and blending, as `ilis-guard fit` makes them."""
PROBES: Final = ("probe-mlp", "probe-residual")
"""A logistic regression on one layer at the last answer token, the layer chosen on validation rows: the MLP's output,
which the maps are of too, and the residual stream."""
PACKAGES: Final = ("numpy", "scipy", "scikit-learn", "lightgbm")
SCHEMA: Final = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("protocol", "method", "trained_on", "tested_on")),
        *(pa.field(name, pa.int64()) for name in ("seed", "of")),
        *(pa.field(name, pa.list_(pa.int64())) for name in ("places", "groups")),
        pa.field("wrong", pa.list_(pa.bool_())),
        *(pa.field(name, pa.list_(pa.float64())) for name in ("raw", "probability")),
    ]
)
DTYPES: Final = {
    "places": np.int64,
    "groups": np.int64,
    "wrong": np.bool_,
    "raw": np.float64,
    "probability": np.float64,
}


def compared_methods() -> tuple[Method, ...]:
    """The scorers and the probes."""
    return tuple(method for method in methods() if method.name in (*SCORERS, *PROBES))


class Matrix:
    """The sets that count, trained on and tested on at two precisions.

    Args:
        full: answers at full precision.
        rows: of the sets that count there, without observations.
        other: answers at 4 bits.
        other_rows: of the sets that count at both precisions; None where there are none.
        seeds: how often rows are split and methods fitted again.
        folder: keeps what was computed: a run that was killed continues.
    """

    def __init__(
        self, full: Source, rows: Answers, other: Source, other_rows: Answers | None, *, seeds: int, folder: Path
    ) -> None:
        self._full, self._rows = full, rows
        self._other, self._other_rows = other, other_rows
        self._seeds = seeds
        self._names = sorted(set(rows.datasets.tolist()))
        self._other_names = [] if other_rows is None else sorted(set(other_rows.datasets.tolist()))
        self._folder = folder / self._digest()

    @property
    def fits(self) -> int:
        """The number of fits."""
        return self._seeds * len(compared_methods()) * (len(self._names) + len(self._other_names))

    def trials(self, progress: Callable[[int, int], None]) -> list[Trial]:
        """Run all trials.

        Args:
            progress: called with fits done, and fits in all.

        Raises:
            FitError: the observations aren't of these answers, or a method can't be fitted.
            OSError: a file can't be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        observed = cache(self._observed)
        compared = compared_methods()
        found: list[Trial] = []
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            progress(done, self.fits)

        progress(0, self.fits)
        for seed in range(self._seeds):
            transfers = cache(lambda seed=seed: Transfers(observed()[0], seed=seed, applied=observed()[1]))
            for name in self._names:
                path = self._folder / f"{seed}-{name}.parquet"
                if path.exists():
                    for _ in range(len(compared) * (1 + (name in self._other_names))):
                        advance()
                else:
                    write_trials(list(transfers().trained_on(name, compared, advance)), path)
                found += read_trials(path)
        return found

    def _observed(self) -> tuple[Answers, Answers | None]:
        other = None if self._other_rows is None else self._other.observed(self._other_rows)
        return self._full.observed(self._rows), other

    def _digest(self) -> str:
        """Of all that trials depend on: answers, sets, and the code that is fitted."""
        files = [*self._full.harvests, *self._full.observations, *self._other.harvests, *self._other.observations]
        root = Path(ilis_guard.__file__).parent
        parts = [
            *map(file_digest, files),
            *self._names,
            "/",
            *self._other_names,
            *(method.name for method in compared_methods()),
            *(f"{package} {metadata.version(package)}" for package in PACKAGES),
            *(file_digest(path) for path in sorted(root.rglob("*.py"))),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def write_trials(trials: Sequence[Trial], path: Path) -> None:
    """Keep trials; the file appears when it is complete."""
    rows = [
        {
            field.name: value.tolist() if isinstance(value := getattr(one, field.name), np.ndarray) else value
            for field in fields(Trial)
        }
        for one in trials
    ]
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def read_trials(path: Path) -> Iterator[Trial]:
    """Read trials."""
    for row in pq.read_table(path).to_pylist():
        yield Trial(**{name: np.array(value, DTYPES[name]) if name in DTYPES else value for name, value in row.items()})
