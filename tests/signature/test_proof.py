from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.architectures.tiny import tiny
from ilis_guard.errors import SignatureError
from ilis_guard.signature import TapPoint, layout, locate, prove, register_layout

pytestmark = pytest.mark.usefixtures("real_model")

HIDDEN = 8


class Layer(nn.Module):
    """A residual layer; `how` says what becomes of its MLP."""

    def __init__(self, how: Callable[[nn.Module, Tensor], Tensor], width: int = HIDDEN) -> None:
        super().__init__()
        self.mlp: nn.Module = nn.Linear(HIDDEN, width)
        self.how = how

    def forward(self, stream: Tensor) -> Tensor:
        return stream + self.how(self.mlp, stream)


class Whole(nn.Linear):
    """An MLP that adds the residual itself."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        return input + super().forward(input)


class Toy(nn.Module):
    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, HIDDEN), nn.Linear(HIDDEN, 20)
        self.layers = nn.ModuleList(layers)
        self.device = torch.device("cpu")
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=20))

    def forward(self, input_ids: Tensor, *, use_cache: bool) -> Any:
        assert not use_cache
        stream = self.embed(input_ids)
        for layer in self.layers:
            stream = layer(stream)
        return SimpleNamespace(logits=self.head(stream))


def used(mlp: nn.Module, stream: Tensor) -> Tensor:
    output: Tensor = mlp(stream)
    return output


def nullified(mlp: nn.Module, stream: Tensor) -> Tensor:
    return used(mlp, stream) * 0


def aside(mlp: nn.Module, stream: Tensor) -> Tensor:
    mlp(stream)
    return stream.tanh()


def idle(_mlp: nn.Module, stream: Tensor) -> Tensor:
    return stream.tanh()


def twice(mlp: nn.Module, stream: Tensor) -> Tensor:
    return used(mlp, used(mlp, stream))


def past_the_hooks(mlp: nn.Module, stream: Tensor) -> Tensor:
    output: Tensor = mlp.forward(stream)
    return output


def narrowed(mlp: nn.Module, stream: Tensor) -> Tensor:
    return used(mlp, stream)[..., :HIDDEN]


def of_experts(mlp: nn.Module, stream: Tensor) -> Tensor:
    output, router = mlp(stream)
    assert router is None
    first: Tensor = output
    return first


class Experts(nn.Linear):
    def forward(self, input: Tensor) -> Any:  # noqa: A002  # torch's name
        return super().forward(input), None


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def toy(how: Callable[[nn.Module, Tensor], Tensor], width: int = HIDDEN) -> tuple[Toy, tuple[TapPoint, ...]]:
    model = Toy(Layer(used), Layer(how, width), Layer(used))
    return model, locate(model, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("site", ["mlp", "residual"])
def test_every_tap_of_a_llama_moves_the_logits(site: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4
    )
    model: Any = LlamaForCausalLM(config)
    model = model.to(dtype).eval()
    points = locate(model, 3, site)
    proofs = prove(model, points, hidden=32)
    assert [proof.point for proof in proofs] == list(points)
    assert all(proof.moved > 0.01 for proof in proofs)
    assert {(proof.shape, proof.dtype, proof.device) for proof in proofs} == {
        ((32,), str(dtype).removeprefix("torch."), "cpu")
    }
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("how", "width", "message"),
    [
        (nullified, HIDDEN, r"output of layer 1 \(of 3, counted from 0\), such as 'layers.1.mlp', .* didn't move"),
        (aside, HIDDEN, r"output of layer 1 \(of 3.*the logits didn't move"),
        (idle, HIDDEN, r"no activation came from layer 1 \(of 3.*'layers.1.mlp'"),
        (past_the_hooks, HIDDEN, r"layer 1 \(of 3.*compiled into a graph that skips hooks"),
        (twice, HIDDEN, r"'layers.1.mlp' ran 2 times in one pass"),
        (narrowed, HIDDEN + 2, r"'layers.1.mlp' gave \[5, 1, 10\], and before it was \[5, 1, 8\]"),
    ],
)
def test_tap_outside_the_path_names_its_layer_and_leaves_no_hook(
    how: Callable[[nn.Module, Tensor], Tensor], width: int, message: str
) -> None:
    model, points = toy(how, width)
    with pytest.raises(SignatureError, match=message):
        prove(model, points, hidden=HIDDEN)
    assert hooks(model) == 0


def test_experts_that_return_a_tuple_are_disturbed_in_its_first() -> None:
    model, _ = toy(of_experts)
    layer = model.layers[1]
    assert isinstance(layer, Layer)
    layer.mlp = Experts(HIDDEN, HIDDEN)
    assert all(proof.moved > 0.01 for proof in prove(model, locate(model, 3), hidden=HIDDEN))


def test_a_model_of_another_width_than_configured_is_refused() -> None:
    model, points = toy(used)
    with pytest.raises(SignatureError, match=r"'layers.0.mlp' gave \[5, 4, 8\], expected \[5, 4, 16\]"):
        prove(model, points, hidden=16)


def test_logits_that_arent_numbers_prove_nothing() -> None:
    model, points = toy(used)
    nn.init.constant_(model.head.weight, torch.nan)
    with pytest.raises(SignatureError, match=r"layer 0, 1, 2 \(of 3"):
        prove(model, points, hidden=HIDDEN)


def test_tap_on_the_residual_stream_itself_is_an_error() -> None:
    model, _ = toy(used)
    layer = model.layers[1]
    assert isinstance(layer, Layer)
    layer.mlp, layer.how = Whole(HIDDEN, HIDDEN), lambda mlp, stream: used(mlp, stream) - stream
    with pytest.raises(
        SignatureError,
        match=r"with the output of layer 1 \(of 3, counted from 0\), such as 'layers.1.mlp', zeroed, nothing of",
    ):
        prove(model, locate(model, 3), hidden=HIDDEN)
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("architecture", "layers", "mlp"),
    [("bloom", "transformer.h", "mlp"), ("mpt", "transformer.blocks", "ffn"), ("bert", "bert.encoder.layer", "output")],
)
def test_registered_mlps_that_add_the_residual_themselves_are_refused(
    architecture: str, layers: str, mlp: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_REGISTERED", dict(layout._REGISTERED))
    model = tiny(architecture, {})
    register_layout(type(model).__name__, layers=layers, mlp=mlp)
    points = locate(model, model.config.num_hidden_layers)
    with pytest.raises(SignatureError, match="holds the residual stream instead of what is added to it"):
        prove(model, points, hidden=model.config.hidden_size)
