"""A separate process that loads bundles and scores with them, so that a crash does not end the fuzzer.

``python -m tests.scoring.loading`` reads the path of a bundle's folder from each line and answers with a line of JSON.
"""

import json
import os
import resource
import sys
import warnings
from collections.abc import Iterator

import numpy as np

from ilis_guard.errors import BundleError, ScoringError
from ilis_guard.scoring import LightGBMScorer, read_bundle
from ilis_guard.types import POSITIONS, Generation, Statistics

LAYERS = 18
"""Of the model that the fuzzed bundle was fitted to."""
SECONDS = 30
"""Of a processor, not of the clock: a bundle that takes as many hangs. They take a twentieth of one."""
MEMORY = 3 * 2**30
"""Bytes of address space. Importing NumPy and LightGBM takes a third of it; a bundle mustn't take the rest."""


def generations() -> Iterator[Generation]:
    """Maps that are all zero, like a model's, and as large as numbers get."""
    random = np.random.default_rng(0)
    plain = random.lognormal(size=(LAYERS, LAYERS)).astype(np.float32)
    for scale, statistic in ((0.0, 0.0), (1.0, -1.5), (1e37, -1e300)):
        yield Generation(
            text="Oslo",
            tokens=2,
            prompt_tokens=9,
            finish_reason="stop",
            seconds=0.1,
            signatures={position: (plain * scale).astype(np.float32) for position in POSITIONS},
            statistics=Statistics(logprob_sum=statistic, logprob_mean=statistic, entropy_mean=-statistic, margin_min=0),
        )


def outcome(folder: str) -> dict[str, object]:
    try:
        scorer = LightGBMScorer(read_bundle(folder))
    except BundleError as error:
        return {"refused": str(error)}
    scores: list[object] = []
    for generation in generations():
        try:
            score = scorer.score(generation)
            scores.append([score.uncertainty, score.typicality])
        except ScoringError as error:
            scores.append(str(error))
    return {"scores": scores}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("error")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # where LightGBM complains
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        print(json.dumps(outcome(line.removesuffix("\n"))), file=answers, flush=True)
