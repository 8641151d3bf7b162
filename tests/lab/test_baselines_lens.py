"""The logit lens, against transformers' own logits."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.architectures.tiny import tiny
from ilis_guard.errors import SignatureError
from ilis_guard.lab.baselines import forward, lens
from ilis_guard.lab.baselines.lens import LogitLens, final_norm
from ilis_guard.lab.baselines.scores import TokenStatistics, layer_information
from ilis_guard.signature import Tap, TapPoint, locate
from ilis_guard.types import Site
from tests.lab.test_baselines_observe import softmax

TEXT = torch.tensor([[5, 6, 7, 8, 9]])


def points(network: Any, site: Site = "residual") -> tuple[TapPoint, ...]:
    return locate(network, network.config.num_hidden_layers, site)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "cohere", "granite", "gpt_neox", "bloom", "mpt", "lfm2"])
def test_the_last_layer_reads_as_the_models_own_logits(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny(model_type, {"logits_scaling": 3.0} if model_type == "granite" else {})
    with torch.inference_mode(), Tap(points(network), newest=3) as tap:
        logits = network(TEXT, use_cache=False).logits[0, -3:]
        last = tap.take()[0][0, :, -1]
    read = LogitLens(network, points(network))
    monkeypatch.setattr(lens, "PASS_LOGITS", 2 * read.vocabulary)  # of three rows
    expected = [softmax(row) for row in logits.tolist()]
    with torch.inference_mode():
        read.check(last, logits)
        entropies = read.entropies(last)
        said = read.logprobs(last, torch.tensor([3, 1, 4]))
    assert entropies.tolist() == pytest.approx(
        [-math.fsum(p * math.log(p) for p in row if p) for row in expected], rel=1e-4, abs=1e-6
    )
    assert said.tolist() == pytest.approx(
        [math.log(row[token]) for row, token in zip(expected, [3, 1, 4], strict=True)], rel=1e-4
    )


def test_layer_information_is_what_the_question_adds_at_all_layers() -> None:
    tokens = torch.zeros(1).numpy()
    given = TokenStatistics(
        logprobs=tokens.astype("float64"),
        entropies=tokens.astype("float64"),
        margins=tokens.astype("float64"),
        from_uniform=tokens.astype("float64"),
        attention=torch.zeros(1, 1, 0).numpy(),
        # Of three layers: ln 1/2 with and ln 1/8 without the question; 1/4 and 1/4; 1/16 and 1/8.
        information=torch.tensor([2.0, 0.0, -1.0]).mul(math.log(2)).numpy(),
    )
    assert layer_information(given) == pytest.approx(-math.log(2))


@pytest.mark.parametrize("norms", [0, 2])
def test_without_one_final_norm_there_is_no_logit_lens(norms: int) -> None:
    network = tiny("llama", {})
    assert final_norm(network, points(network)) is network.model.norm
    if norms:
        network.model.ln_f = nn.Identity()
    else:
        del network.model.norm
    with pytest.raises(SignatureError, match=rf"LlamaForCausalLM has {norms} final norms \[.*no logit lens"):
        LogitLens(network, points(network))


def test_without_an_unembedding_there_is_no_logit_lens(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny("llama", {})
    monkeypatch.setattr(network, "get_output_embeddings", lambda: None)
    with pytest.raises(SignatureError, match="LlamaForCausalLM has no output embeddings"):
        LogitLens(network, points(network))


@pytest.mark.parametrize("off", [1e-2, math.nan])
def test_logits_that_are_not_the_models_own_are_refused(off: float) -> None:
    network = tiny("llama", {})
    with torch.inference_mode(), Tap(points(network)) as tap:
        logits = network(TEXT, use_cache=False).logits[0, -1:]
        last = tap.take()[0][0, :, -1]
        read = LogitLens(network, points(network))
        read.check(last, logits)
        with pytest.raises(SignatureError, match=r"the logit lens can't read this model: .* LlamaRMSNorm"):
            read.check(last, logits + off)


@pytest.mark.parametrize("model_type", ["llama", "bloom"])
def test_what_attention_adds_is_read_without_the_stream_that_it_is_added_to(model_type: str) -> None:
    network = tiny(model_type, {})
    before: list[torch.Tensor] = []
    for point in points(network):
        point.module.register_forward_pre_hook(lambda _module, inputs: before.append(inputs[0][0, -2]))
    with (
        torch.inference_mode(),
        Tap(points(network, "mlp"), newest=2) as mlp,
        Tap(points(network), newest=2) as residual,
        forward._outputs(forward.attention_outputs(network, points(network)), [1]) as attention,
    ):
        network(TEXT, use_cache=False)
        added, behind = mlp.take()[0][0, 0], residual.take()[0][0, 0]
    for layer in range(len(before)):
        torch.testing.assert_close(before[layer] + attention[layer][0] + added[layer], behind[layer])


def test_attention_without_an_output_is_an_error() -> None:
    class Silent(nn.Module):
        def forward(self, _hidden: torch.Tensor) -> None:
            return None

    silent = Silent()
    with forward._outputs([silent], [0]), pytest.raises(SignatureError, match="Silent returned no output"):
        silent(TEXT)
