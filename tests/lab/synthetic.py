"""Synthetic answers of which it is known what tells whether they are wrong."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ilis_guard.lab.attempt_schema import AttemptManifest, AttemptTier, HarvestManifest
from ilis_guard.lab.attempts import Answers, AttemptTable, Mask, write_attempts
from ilis_guard.lab.baselines.observations import (
    LENS,
    LENS_SITES,
    SCORES,
    SITES,
    ObservationManifest,
    file_digest,
    observation_table,
)
from ilis_guard.lab.storage import write_table
from ilis_guard.types import STATISTICS, Fingerprint, Precision, RemoteFingerprint, Site

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


def harvest_manifest(fingerprint: Fingerprint | RemoteFingerprint, **changes: Any) -> HarvestManifest:
    known = {"model": "packaged:fake", "prompt": "{question}", "max_new_tokens": 8, "versions": {"python": "3"}}
    return HarvestManifest(fingerprint=fingerprint, **known | {"questions": "", "judge": "rules"} | changes)


def synthetic_answers(
    sizes: dict[str, int], *, seed: int = 0, share: float = 0.5, signal: float = 0.35, unlike: Sequence[str] = ()
) -> Answers:
    """Answers of several sets whose maps tell whether they are wrong; those of `unlike` sets have larger maps."""
    random = np.random.default_rng(seed)
    datasets = np.repeat(list(sizes), list(sizes.values()))
    count = len(datasets)
    wrong = random.random(count) < share

    def maps(away: float) -> np.ndarray:
        far = 3.0 * np.isin(datasets, list(unlike))
        logs = random.normal(size=(count, LAYERS, LAYERS)) + (away * wrong + far)[:, None, None]
        return (np.exp(logs) * (1 - np.eye(LAYERS))).astype(np.float32)

    return Answers(
        manifest=harvest_manifest(fingerprint()),
        ids=np.array([f"{name}-{row}" for row, name in enumerate(datasets)], dtype=object),
        datasets=datasets,
        wrong=wrong,
        signatures={"prompt": maps(0), "last": maps(signal), "mean": maps(signal)},
        # Of wrong answers less log-probability, more entropy, less margin.
        statistics=random.normal(size=(count, 4)) + 0.4 * np.outer(wrong, [-1, -1, 1, -1]),
    )


def write_harvest(rows: Answers, path: Path, precision: Precision = "full") -> Path:
    """The rows as `ilis-guard harvest` writes them."""
    manifest = harvest_manifest(replace(rows.manifest.tapped(), precision=precision))
    table = AttemptManifest(origin="harvest", tiers=(AttemptTier(name="tiny"),), harvest=manifest)
    wordings = rows.row_wordings()
    written = [
        {
            "id": id_,
            "tier": "tiny",
            "dataset": str(rows.datasets[row]),
            "split": "unseen",
            "stage": "answer",
            "text": f"<b>answer</b> {id_}",
            "wrong": bool(rows.wrong[row]),
            "tokens": 3,
            "prompt_tokens": 9,
            "finish_reason": "stop",
            "error": "",
            "labels": "{}",
            "token_ids": [1, 2, 3],
            "system": wordings[row].system,
            "history": wordings[row].history,
            **dict(zip(STATISTICS, rows.statistics[row].tolist(), strict=True)),
            **{position: maps[row].ravel() for position, maps in rows.signatures.items()},
        }
        for row, id_ in enumerate(rows.ids.tolist())
    ]
    write_attempts(path, AttemptTable.of_rows(table, written))
    return path


def observed_answers(rows: Answers, *, seed: int = 0, signal: float = 1.0, away: float = 0.0) -> Answers:
    """The rows as if they had been observed: all of it tells whether they are wrong, and lies so far from 0."""
    random = np.random.default_rng(seed)
    told = signal * (2.0 * rows.wrong - 1)

    def noise(*shape: int) -> np.ndarray:
        return random.normal(size=(len(rows), *shape))

    activations: dict[Site, np.ndarray] = {}
    for site in SITES:
        layers = noise(LAYERS, rows.manifest.tapped().hidden)
        layers[:, 2] += told[:, None]
        activations[site] = (layers + away).astype(np.float16)
    lens = noise(len(LENS_SITES), LAYERS)
    lens[:, :, 2] += told[:, None]
    return replace(
        rows,
        unsupervised={name: told + noise() for name in SCORES},
        activations=activations,
        lens=(lens + away).astype(np.float32),
    )


def write_observations(rows: Answers, harvest: Path, path: Path) -> Path:
    """What was observed of a harvest of these rows, as `ilis-guard observe` writes it."""
    assert rows.unsupervised is not None
    assert rows.activations is not None
    assert rows.lens is not None
    manifest = ObservationManifest(
        harvest=rows.manifest, harvest_sha256=file_digest(harvest), rauq_alpha=0.5, p_true_prompt="", versions={}
    )
    written = [
        {
            "id": id_,
            **{name: float(scores[row]) for name, scores in rows.unsupervised.items()},
            **{site: layers[row] for site, layers in rows.activations.items()},
            LENS: rows.lens[row],
        }
        for row, id_ in enumerate(rows.ids.tolist())
    ]
    write_table(observation_table(written, manifest), path)
    return path


def write_questions(rows: Answers, path: Path) -> Path:
    """What was asked."""
    asked = (
        {"id": id_, "dataset": name, "question": f"<i>What</i> is {id_}?", "answers": [f"it & {id_}"]}
        for id_, name in zip(rows.ids.tolist(), rows.datasets.tolist(), strict=True)
    )
    path.write_text("".join(json.dumps(one) + "\n" for one in asked))
    return path


@dataclass(frozen=True)
class FixedRanker:
    """A method that scores rows by a function, and isn't fitted."""

    name: str
    scores: Callable[[Answers], np.ndarray]
    kind: Literal["unsupervised"] = "unsupervised"

    def fit(self, rows: Answers, train: Mask, validation: Mask, seed: int) -> "FixedRanker":  # noqa: ARG002
        return self

    def decision_function(self, rows: Answers) -> np.ndarray:
        return self.scores(rows)


def noise(rows: Answers) -> np.ndarray:
    """The same for a row on every call, and independent of whether it is wrong."""
    return np.array([np.random.default_rng([*id_.encode()]).normal() for id_ in rows.ids.tolist()])
