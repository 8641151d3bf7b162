"""Rows whose truth is known, for tests of evaluations."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ilis_guard.lab.harvest import METADATA_KEY, TOKEN_IDS, Manifest
from ilis_guard.lab.rows import Mask, Rows
from ilis_guard.types import STATISTICS, Fingerprint, Precision

LAYERS = 5


def fingerprint(precision: Precision = "full") -> Fingerprint:
    return Fingerprint(
        weights="ab",
        precision=precision,
        dtype="float32",
        layers=LAYERS,
        hidden=7,
        site="mlp",
        taps="layers.*.mlp",
        temperature=1.0,
        decoding="greedy",
        prompt="cd",
    )


def made_rows(
    sizes: dict[str, int], *, seed: int = 0, share: float = 0.5, signal: float = 0.35, unlike: Sequence[str] = ()
) -> Rows:
    """Rows of several sets, of which the maps tell whether they are wrong; those of `unlike` sets have larger maps."""
    random = np.random.default_rng(seed)
    datasets = np.repeat(list(sizes), list(sizes.values()))
    count = len(datasets)
    wrong = random.random(count) < share

    def maps(away: float) -> np.ndarray:
        far = 3.0 * np.isin(datasets, list(unlike))
        logs = random.normal(size=(count, LAYERS, LAYERS)) + (away * wrong + far)[:, None, None]
        return (np.exp(logs) * (1 - np.eye(LAYERS))).astype(np.float32)

    return Rows(
        fingerprint=fingerprint(),
        ids=np.array([f"{name}-{row}" for row, name in enumerate(datasets)]),
        datasets=datasets,
        wrong=wrong,
        signatures={"prompt": maps(0), "last": maps(signal), "mean": maps(signal)},
        # Of wrong answers less log-probability, more entropy, less margin.
        statistics=random.normal(size=(count, 4)) + 0.4 * np.outer(wrong, [-1, -1, 1, -1]),
    )


def write_harvest(rows: Rows, path: Path, precision: Precision = "full") -> Path:
    """The rows as `ilis-guard harvest` writes them."""
    manifest = Manifest(
        model="packaged:fake",
        fingerprint=replace(rows.fingerprint, precision=precision),
        prompt="{question}",
        max_new_tokens=8,
        versions={"python": "3"},
    )
    flat = {position: list(maps.reshape(len(rows), -1)) for position, maps in rows.signatures.items()}
    cells = pa.list_(pa.float32(), LAYERS * LAYERS)
    columns: dict[str, Any] = {
        "id": rows.ids.tolist(),
        "dataset": rows.datasets.tolist(),
        "text": [f"<b>answer</b> {id_}" for id_ in rows.ids.tolist()],
        "correct": (~rows.wrong).tolist(),
        "tokens": pa.array([3] * len(rows), pa.int32()),
        "prompt_tokens": pa.array([9] * len(rows), pa.int32()),
        "finish_reason": ["stop"] * len(rows),
        TOKEN_IDS: pa.array([[1, 2, 3]] * len(rows), pa.list_(pa.int32())),
        **dict(zip(STATISTICS, rows.statistics.T, strict=True)),
        **{position: pa.array(maps, cells) for position, maps in flat.items()},
    }
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: manifest.model_dump_json()}), path)
    return path


def write_questions(rows: Rows, path: Path) -> Path:
    """What was asked."""
    asked = (
        {"id": id_, "dataset": name, "question": f"<i>What</i> is {id_}?", "answers": [f"it & {id_}"]}
        for id_, name in zip(rows.ids.tolist(), rows.datasets.tolist(), strict=True)
    )
    path.write_text("".join(json.dumps(one) + "\n" for one in asked))
    return path


@dataclass(frozen=True)
class Saying:
    """A method that says what a function says, and learns nothing."""

    name: str
    says: Callable[[Rows], np.ndarray]
    kind: Literal["unsupervised"] = "unsupervised"

    def fit(self, rows: Rows, train: Mask, validation: Mask, seed: int) -> "Saying":  # noqa: ARG002
        return self

    def predict(self, rows: Rows) -> np.ndarray:
        return self.says(rows)


def noise(rows: Rows) -> np.ndarray:
    """The same for a row whenever it is asked about, and nothing to do with whether it is wrong."""
    return np.array([np.random.default_rng([*id_.encode()]).normal() for id_ in rows.ids.tolist()])
