"""Layers that accelerate moves in for each pass, as with `device_map`, on a machine without GPUs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from transformers import LlamaConfig, LlamaForCausalLM

from ilis_guard.signature import Tap
from ilis_guard.signature.layout import locate
from ilis_guard.signature.recorder import Recorder, Recording

pytestmark = pytest.mark.usefixtures("real_model")

LAYERS = 4


def tiny() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()  # type: ignore[no-untyped-call]  # transformers types it partly


def recorded(model: Any) -> Recording:
    ids = torch.tensor([[5, 17, 3, 8]])
    with Tap(locate(model, LAYERS)) as tap, torch.no_grad():
        recorder = Recorder(tap, end_tokens=(), special_tokens=(), temperature=1.0)
        sequences = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            logits_processor=[recorder],
            do_sample=False,
            max_new_tokens=6,
            pad_token_id=0,
        )
        return recorder.finish(sequences)[0]


@pytest.mark.parametrize("last", [1, 2])
def test_layers_that_lie_on_disk_show_the_same_signatures(tmp_path: Path, last: int) -> None:
    expected = recorded(tiny())
    places = {f"model.layers.{layer}": "cpu" if layer <= last else "disk" for layer in range(LAYERS)}
    places |= {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    model = dispatch_model(tiny(), places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert str(model.model.layers[LAYERS - 1].mlp.down_proj.weight.device) == "meta"
    found = recorded(model)
    assert found.statistics == expected.statistics
    for position, signature in expected.signatures.items():
        np.testing.assert_array_equal(found.signatures[position], signature, err_msg=position)
