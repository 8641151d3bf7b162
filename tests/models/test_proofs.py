"""Tap proofs are cached per weights, taps and versions; a failed proof is repeated."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from ilis_guard.errors import SignatureError
from ilis_guard.models import checkpoint as checkpoints
from ilis_guard.models.checkpoint import Checkpoint
from ilis_guard.signature import Layout, TapPoint, layout, locate, prove

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = pytest.mark.usefixtures("real_model")


@pytest.fixture
def proven(private_cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """First tap of each proof that was really given."""
    del private_cache
    given: list[str] = []

    def counted(model: Any, points: Sequence[TapPoint], **options: Any) -> Any:
        given.append(points[0].path)
        return prove(model, points, **options)

    monkeypatch.setattr(checkpoints, "prove", counted)
    return given


def test_the_same_taps_are_proven_once_and_others_anew(tiny_folder: "TinyFolder", proven: list[str]) -> None:
    for options in ({}, {}, {"site": "residual"}, {"dtype": "bfloat16"}, {}):
        tiny_folder.load(**options)
    assert proven == ["model.layers.0.mlp", "model.layers.0", "model.layers.0.mlp"]


def test_a_proof_that_failed_is_given_again(make_tiny: Callable[..., "TinyFolder"], proven: list[str]) -> None:
    deaf = make_tiny(change=lambda model: torch.nn.init.zeros_(model.lm_head.weight))
    for _ in range(2):
        with pytest.raises(SignatureError, match=r"layer 0, 1, 2 .* was disturbed and the logits didn't move"):
            deaf.load()
    assert len(proven) == 2


def test_a_proof_can_be_left_out(tiny_folder: "TinyFolder", proven: list[str]) -> None:
    tiny_folder.load(proof=False)
    assert proven == []


def test_proof_runs_at_each_load_without_a_writable_cache(
    tiny_folder: "TinyFolder", proven: list[str], private_cache: Path
) -> None:
    private_cache.write_text("no folder")
    for _ in range(2):
        tiny_folder.load()
    assert len(proven) == 2


class Dropping(nn.Module):
    """An MLP that ends with a dropout, as GPT-2's."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.dropout = inner, nn.Dropout(0.0)

    def forward(self, inputs: Tensor) -> Tensor:
        dropped: Tensor = self.dropout(self.inner(inputs))
        return dropped


def test_a_tapped_module_needs_no_weights(
    tiny_folder: "TinyFolder", proven: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.load(str(tiny_folder.path))
    for layer in checkpoint.model.model.layers:
        layer.mlp = Dropping(layer.mlp)
    monkeypatch.setitem(layout._REGISTERED, "LlamaForCausalLM", Layout("model.layers", "mlp.dropout"))
    checkpoint.prove_taps(locate(checkpoint.model, checkpoint.layers))
    assert proven == ["model.layers.0.mlp.dropout"]
