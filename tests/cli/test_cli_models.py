from collections.abc import Callable
from typing import Any

import pytest

SMOLLM2 = "packaged:smollm2-135m-instruct"


@pytest.mark.usefixtures("real_model")
def test_inspecting_a_model_shows_where_each_layer_is_tapped_and_its_proof(run: Callable[..., Any]) -> None:
    done = run("models", "inspect", SMOLLM2)
    assert done.status == 0
    assert "LlamaForCausalLM, full, site mlp" in done.flat
    rows = [line for line in done.out.splitlines() if "model.layers." in line]
    assert len(rows) == 30
    assert all("[*, *, 576]" in row and "float32" in row and "cpu" in row for row in rows)
    assert all(float(row.split("│")[6].split()[0]) > 0 for row in rows)


@pytest.mark.usefixtures("real_model")
def test_the_residual_stream_is_tapped_at_the_layers(run: Callable[..., Any]) -> None:
    done = run("models", "inspect", SMOLLM2, "--site", "residual", "--precision", "nf4")
    assert "model.layers.29 " in done.out
    assert "mlp" not in done.out


def test_a_model_that_isnt_there_is_one_message(run: Callable[..., Any]) -> None:
    done = run("models", "inspect", "packaged:nothing")
    assert (done.status, done.out) == (2, "")
    assert "'nothing'" in done.err
