"""Measure the time of scoring and ruling on one answer, after the model has answered.

python -m benchmarks.latency [--calls 1000]
"""

import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import typer

from benchmarks.common import show
from ilis_guard.cascade.loading import load_local_model
from ilis_guard.config.guard_yaml import read_config
from ilis_guard.policy import Facts, Policy
from ilis_guard.scoring import LightGBMScorer, read_bundle
from ilis_guard.scoring.typicality import TypicalityEstimator, typicality_columns
from ilis_guard.types import Message

BUNDLE = "smollm2-135m-instruct-nf4"


def milliseconds(call: Callable[[], object], calls: int) -> tuple[float, float]:
    """Median and 99th percentile."""
    taken = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        taken.append((time.perf_counter() - started) * 1000)
    median, worst = np.percentile(taken, (50, 99))
    return float(median), float(worst)


def twenty_rules() -> Policy:
    """One whose last rule decides on facts with an uncertainty of 0.4, after 19 conditions of two parts each."""
    conditions = [f"uncertainty < 0.{number} && typicality >= 0.{number}" for number in range(11, 30)]
    actions = ["answer" if number % 2 else "escalate" for number in range(len(conditions))]
    rules = [
        f"  - {{id: r{number}, when: {when}, do: {do}}}\n"
        for number, (when, do) in enumerate(zip(conditions, actions, strict=True))
    ]
    last = "  - {id: last, when: uncertainty < 0.5 || typicality < 0.1, do: abstain}\n"
    return Policy.parse(f"version: 1\nname: twenty\nrules:\n{''.join(rules)}{last}")


def main(calls: Annotated[int, typer.Option(min=100)] = 1000) -> None:
    """Print milliseconds for the score, the policy and both."""
    model = load_local_model(read_config("benchmarks/bundles.yaml").tier(BUNDLE))
    generation = model.generate([Message(role="user", content="What is the capital of Norway?")])
    scorer = LightGBMScorer(read_bundle(f"packaged:{BUNDLE}"))
    scorer.check_fits(model.fingerprint)
    policy = Policy.load("default")

    twenty = twenty_rules()

    def rule() -> object:
        return policy.evaluate(Facts(uncertainty=0.4, typicality=0.5, tier="small", last_tier=False))

    def both() -> object:
        score = scorer.score(generation)
        return policy.evaluate(
            Facts(uncertainty=score.uncertainty, typicality=score.typicality, tier="small", last_tier=False)
        )

    detector = TypicalityEstimator(scorer.bundle.calibration_set.typicality)
    maps = {position: signature[None] for position, signature in generation.signatures.items()}
    measured = {
        "score": lambda: scorer.score(generation),
        "of which typicality": lambda: detector.typicality(typicality_columns(maps, scorer.bundle.metadata.stage)),
        "policy": rule,
        "policy with 20 rules": lambda: twenty.evaluate(Facts(uncertainty=0.4, typicality=0.5, tier="small")),
        "policy with 20 rules, typicality missing": lambda: twenty.evaluate(Facts(uncertainty=0.4, tier="small")),
        "score and policy": both,
    }
    rows = [[name, *(f"{value:.3f}" for value in milliseconds(call, calls))] for name, call in measured.items()]
    show(f"milliseconds for one answer, {calls} calls", ("what", "median", "99th percentile"), rows)


if __name__ == "__main__":
    typer.run(main)
