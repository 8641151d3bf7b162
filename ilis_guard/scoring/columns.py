"""Columns: every number that a scorer looks at, in a row for each generation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ilis_guard.scoring.features import FeatureGroup, Maps, feature_matrix
from ilis_guard.scoring.typicality import statistics_columns, typicality_columns
from ilis_guard.types import Stage, Statistic

Block = Literal["features", "typicality", "logprobs"]
"""Columns of one use: the trees' features, what typicality compares, and the answer's log-probabilities."""
BLOCKS: Final[tuple[Block, ...]] = ("features", "typicality", "logprobs")
LOGPROBS: Final[tuple[Statistic, ...]] = ("logprob_sum", "logprob_mean")
"""The columns of the block `logprobs`, nats: of the whole answer, and of a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What a scorer looks at."""

    blocks: Mapping[Block, Float64[np.ndarray, "rows columns"]]
    """Without `logprobs` where these aren't known, as they aren't at the prompt."""
    prompt: Float64[np.ndarray, "rows summary"]
    """Summaries of the prompts' maps, which tell kinds of requests apart; no columns where there are no maps."""

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def normalised_features(self) -> Float64[np.ndarray, "rows features"]:
        """The trees' features in units of their traffic, of normalised columns: the second half (`Normaliser`)."""
        features = self.blocks["features"]
        return features[:, features.shape[1] // 2 :]

    @classmethod
    def concatenated(cls, parts: "Sequence[Columns]") -> "Columns":
        """Put rows of the same columns below one another."""
        blocks = {name: np.concatenate([part.blocks[name] for part in parts]) for name in parts[0].blocks}
        return cls(blocks=blocks, prompt=np.concatenate([part.prompt for part in parts]))

    def take(self, which: Bool[np.ndarray, " rows"] | Int64[np.ndarray, " taken"]) -> "Columns":
        """Select rows by a mask or by their indices."""
        blocks = {name: block[which] for name, block in self.blocks.items()}
        return replace(self, blocks=blocks, prompt=self.prompt[which])


def knows_logprobs(stage: Stage, known: Sequence[Statistic]) -> bool:
    """Tell whether there is a block `logprobs`.

    Args:
        stage: what is scored.
        known: the output statistics that there are.
    """
    return stage == "answer" and set(LOGPROBS) <= set(known)


def columns_of(
    features: Sequence[FeatureGroup],
    stage: Stage,
    maps: Maps,
    statistics: Float64[np.ndarray, "rows statistics"],
    known: Sequence[Statistic],
) -> Columns:
    """Compute the columns of generations.

    Args:
        features: what the trees look at.
        stage: what is scored.
        maps: signatures by position, nats; none where the model can't be tapped.
        statistics: columns in the order of `known`.
        known: the output statistics that there are.
    """
    blocks: dict[Block, Float64[np.ndarray, "rows columns"]] = {
        "features": feature_matrix(features, maps, statistics),
        "typicality": typicality_columns(maps, stage) if maps else statistics_columns(statistics),
    }
    if knows_logprobs(stage, known):
        blocks["logprobs"] = statistics[:, [known.index(name) for name in LOGPROBS]]
    prompt = feature_matrix(["prompt-summary"], maps, statistics) if maps else np.zeros((len(statistics), 0))
    return Columns(blocks=blocks, prompt=prompt)
