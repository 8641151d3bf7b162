from collections.abc import Callable
from pathlib import Path

import lightgbm
import numpy as np
import pytest

from ilis_guard.scoring import Bundle, BundleMetadata, read_bundle, write_bundle
from ilis_guard.scoring.bundle import CalibrationSet, DatasetRows, HeldOut
from ilis_guard.scoring.calibration import BetaCalibration
from ilis_guard.scoring.columns import Columns, columns_of
from ilis_guard.scoring.features import FeatureGroup, Maps
from ilis_guard.scoring.figures import Figure
from ilis_guard.scoring.traffic import Normaliser, TrafficProfile
from ilis_guard.scoring.typicality import TypicalityReference
from ilis_guard.types import STATISTICS, Fingerprint, Generation, Position, Statistics, Wording
from tests.scoring.by_hand import traffic_of, trees_alone

LAYERS = 4
FEATURES: tuple[FeatureGroup, ...] = ("mean-prompt", "last-prompt", "statistics")
POSITIONS: tuple[Position, ...] = ("prompt", "last", "mean")


@pytest.fixture(scope="session")
def wrong() -> np.ndarray:
    return np.random.default_rng(0).random(300) < 0.5


@pytest.fixture(scope="session")
def maps(wrong: np.ndarray) -> Maps:
    """Where the answer is wrong, the answer's maps move away from the prompt's."""
    random = np.random.default_rng(1)
    made: dict[Position, np.ndarray] = {
        position: random.lognormal(size=(len(wrong), LAYERS, LAYERS)).astype(np.float32) for position in POSITIONS
    }
    made["mean"] += 2 * wrong[:, None, None].astype(np.float32)
    for each in made.values():
        each[:, range(LAYERS), range(LAYERS)] = 0
    return made


@pytest.fixture(scope="session")
def statistics(wrong: np.ndarray) -> np.ndarray:
    """Output statistics, which say nothing of right or wrong."""
    return np.random.default_rng(2).random((len(wrong), 4)) - [2, 1, 0, 0]


@pytest.fixture(scope="session")
def generation(maps: Maps, statistics: np.ndarray) -> Callable[[int], Generation]:
    """One row as a model returns it."""

    def row(index: int) -> Generation:
        total, mean, entropy, margin = statistics[index].tolist()
        return Generation(
            text="Oslo",
            tokens=2,
            prompt_tokens=9,
            finish_reason="stop",
            seconds=0.1,
            signatures={position: each[index] for position, each in maps.items()},
            statistics=Statistics(logprob_sum=total, logprob_mean=mean, entropy_mean=entropy, margin_min=margin),
        )

    return row


@pytest.fixture(scope="session")
def columns(maps: Maps, statistics: np.ndarray) -> Columns:
    return columns_of(FEATURES, "answer", maps, statistics, STATISTICS)


@pytest.fixture(scope="session")
def traffic(columns: Columns) -> TrafficProfile:
    """Of one kind."""
    return traffic_of(columns)


@pytest.fixture(scope="session")
def normal(columns: Columns, traffic: TrafficProfile) -> Columns:
    """All rows in units of their traffic."""
    return Normaliser(traffic).normalise(columns, np.zeros(len(columns), dtype=np.int64))


@pytest.fixture(scope="session")
def trees(normal: Columns, wrong: np.ndarray) -> str:
    booster = lightgbm.train(
        {"objective": "binary", "num_leaves": 7, "num_threads": 1, "verbosity": -1, "seed": 0},
        lightgbm.Dataset(normal.blocks["features"], label=wrong),
        num_boost_round=20,
    )
    text: str = booster.model_to_string()
    return text


@pytest.fixture(scope="session")
def metadata() -> BundleMetadata:
    figure = Figure(value=0.7, low=0.6, high=0.8)
    held_out = HeldOut(
        rows=60,
        groups=60,
        wrong=31,
        auroc=figure,
        auroc_within=figure,
        auprc_wrong=figure,
        auprc_correct=figure,
        brier=figure,
        brier_skill=figure,
    )
    return BundleMetadata(
        model="packaged:toy",
        fingerprint=Fingerprint(
            weights="ab" * 16,
            precision="nf4",
            dtype="float32",
            layers=LAYERS,
            hidden=64,
            site="mlp",
            taps="model.layers.*.mlp",
            temperature=0.1 + 0.2,  # all digits must come back
            decoding="greedy",
            prompt="cd" * 16,
        ),
        prompt="{question} Antworte in drei Wörtern. \N{WAVING HAND SIGN}",
        wordings=(Wording(prompt="cd" * 16),),
        max_new_tokens=16,
        features=FEATURES,
        blending=trees_alone(2 * LAYERS * (LAYERS - 1) + 4),
        calibration=BetaCalibration(a=0.7, b=1.3, c=-0.2),
        rows={"train": 150, "test": 60, "unanswered": 3},
        groups={"train": 150, "test": 60},
        datasets={
            "capital": DatasetRows(rows=200, right=90, counted=True),
            "Städte": DatasetRows(rows=100, right=1, counted=False),
        },
        held_out=held_out,
        baseline=held_out,
        versions={"lightgbm": lightgbm.__version__},
    )


@pytest.fixture(scope="session")
def calibration_set() -> CalibrationSet:
    width = 2 * (LAYERS - 1)
    return CalibrationSet(
        uncertainty=(1 / 3, 0.0, 1.0, 1e-17),
        wrong=(False, False, True, True),
        typicality=TypicalityReference(
            mean=tuple(0.5 + 0.1 * index for index in range(width)),
            precision=tuple(map(tuple, (np.eye(width) + 0.1).tolist())),
            distances=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
        ),
    )


@pytest.fixture
def folder(
    metadata: BundleMetadata, trees: str, calibration_set: CalibrationSet, traffic: TrafficProfile, tmp_path: Path
) -> Path:
    """A written bundle, the test's own to damage."""
    path = tmp_path / "bundles" / "toy"
    write_bundle(metadata, trees, calibration_set, traffic, path)
    return path


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    return read_bundle(str(folder))
