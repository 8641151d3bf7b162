"""Observing answers whose prompts begin alike: what they share passes through the model once, and changes nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ilis_guard.lab.baselines import forward, observe as module
from ilis_guard.lab.baselines.observations import SCORES, read_observations
from ilis_guard.lab.baselines.observe import observe
from ilis_guard.lab.harvest import harvest
from ilis_guard.lab.questions import Question
from ilis_guard.models.local import LocalModel
from tests.lab.test_baselines_observe import LIMIT, QUESTIONS, SEEDS
from tests.lab.tiny_models import make

pytestmark = pytest.mark.usefixtures("real_model")

SHARED = " ".join(f"w{number}" for number in range(30))
ALIKE = [Question(id=f"again{index}", dataset="d", question="w3 w1", answers=("w1",)) for index in range(3)]
"""Asked three times over, so that rows share all of their prompt and their answer too."""


@pytest.mark.parametrize("architecture", SEEDS)
def test_what_prompts_share_passes_once_and_changes_nothing(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "model", architecture, seed=SEEDS[architecture])
    model = LocalModel.load(str(folder), prompt=f"{SHARED} {{question}} w1", max_new_tokens=LIMIT)
    asked = [*QUESTIONS, *ALIKE]
    harvest(model, asked, tmp_path / "harvest.parquet", name="tiny", batch_size=5)
    widths: list[tuple[int, int]] = []
    logits = forward.ForwardRunner._logits

    def watched(self: forward.ForwardRunner, inputs: Mapping[str, Any], kept: int) -> torch.Tensor:
        widths.append((inputs["input_ids"].shape[1], inputs["attention_mask"].shape[1]))
        return logits(self, inputs, kept)

    monkeypatch.setattr(forward.ForwardRunner, "_logits", watched)

    def observed(name: str, tokens: int) -> Any:
        monkeypatch.setattr(module, "PASS_TOKENS", tokens)
        widths.clear()
        observe(model, tmp_path / "harvest.parquet", asked, tmp_path / name)
        return read_observations(tmp_path / name)

    one_by_one = observed("one.parquet", 1)
    assert all(given == whole for given, whole in widths)
    together = observed("together.parquet", 300)
    # Gemma 3's window of 6 tokens holds no prefix.
    saved = [whole - given for given, whole in widths]
    assert (max(saved) >= 30) == (architecture != "gemma3")
    assert together.ids == one_by_one.ids
    for name in SCORES:
        np.testing.assert_allclose(together.scores[name], one_by_one.scores[name], rtol=2e-4, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(together.lens, one_by_one.lens, rtol=2e-4, atol=2e-5)
    for site, activations in one_by_one.activations.items():
        np.testing.assert_allclose(together.activations[site], activations, rtol=2e-3, atol=1e-4)


def test_rows_that_are_the_same_keep_their_newest_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LocalModel.load(
        str(make(tmp_path / "model", "llama", seed=1)), prompt=f"{SHARED} {{question}}", max_new_tokens=LIMIT
    )
    prompt = [1, *range(5, 45)]
    row = forward.TokenizedAnswer(prompt=prompt, answer=[9, 8, 7, 6], is_cut=False)
    sizes: list[int] = []
    logits = forward.ForwardRunner._logits

    def watched(self: forward.ForwardRunner, inputs: Mapping[str, Any], kept: int) -> torch.Tensor:
        sizes.append(inputs["input_ids"].shape[1])
        return logits(self, inputs, kept)

    monkeypatch.setattr(forward.ForwardRunner, "_logits", watched)
    runner = forward.ForwardRunner(model)
    alone, *three = (result for rows in ([row], [row] * 3) for result in runner.run(rows))
    assert sizes[-1] == 1 + len(row.fed)  # the prompt's last token, and the answer
    for one in three:
        np.testing.assert_allclose(one.statistics.logprobs, alone.statistics.logprobs, rtol=1e-4)
        np.testing.assert_allclose(one.statistics.attention, alone.statistics.attention, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(one.lens, alone.lens, rtol=1e-4, atol=1e-6)
