"""Maps of each architecture against an independent computation: wrapped forward methods, one uncached pass, float64."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    Olmo2Config,
    OlmoeConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    StableLmConfig,
    Starcoder2Config,
    XGLMConfig,
)

from benchmarks.architectures.tiny import tiny
from ilis_guard.errors import SignatureError
from ilis_guard.signature import Recorder, Tap, TapPoint, locate, pattern, prove, replay
from ilis_guard.types import Site

pytestmark = pytest.mark.usefixtures("real_model")

LAYERS, HIDDEN, VOCABULARY, NEW = 3, 32, 99, 5
NEVER = 1000
"""A token that doesn't come: no answer ends."""
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
HEADED = {**GROUPED, "head_dim": 8}
EXPERTS = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2}
CONFIGS = [
    LlamaConfig(**HEADED),
    Qwen2Config(**GROUPED),
    Qwen3Config(**HEADED),
    MistralConfig(**HEADED),
    Gemma2Config(**HEADED),
    Gemma3TextConfig(**HEADED),
    Phi3Config(**GROUPED),
    PhiConfig(**COMMON),
    Olmo2Config(**GROUPED),
    GPT2Config(vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=4),
    GPTNeoXConfig(**COMMON),
    FalconConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4),
    StableLmConfig(**GROUPED),
    GraniteConfig(**GROUPED, residual_multiplier=0.3),
    CohereConfig(**GROUPED),
    Starcoder2Config(**GROUPED),
    MixtralConfig(**HEADED, num_local_experts=4),
    Qwen3MoeConfig(**EXPERTS, moe_intermediate_size=24, decoder_sparse_step=1),
    OlmoeConfig(**EXPERTS),
    BloomConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, n_layer=LAYERS, n_head=4),
    MptConfig(vocab_size=VOCABULARY, d_model=HIDDEN, n_layers=LAYERS, n_heads=4),
    XGLMConfig(vocab_size=VOCABULARY, d_model=HIDDEN, ffn_dim=40, num_layers=LAYERS, attention_heads=4),
    BioGptConfig(**COMMON),
]


def build(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]  # as it has it
    for parameter in model.parameters():
        if parameter.ndim > 1:  # the configured spread of .02 would make all layers alike
            nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = None  # an answer has the length that is asked for
    return model.eval()


FURTHER = """
    apertus arcee bitnet cohere2 cohere2_moe deepseek_v2 deepseek_v3 diffllama dots1 ernie4_5 ernie4_5_moe
    exaone4 gemma gemma4_text glm glm4 glm4_moe gpt_bigcode gpt_oss gptj granitemoe helium hunyuan_v1_dense
    hunyuan_v1_moe llama4_text minicpm3 minimax minimax_m2 ministral3 nanochat nemotron olmo olmo3 phimoe
    qwen2_moe seed_oss smollm3
""".split()  # noqa: SIM905 - names read best as words
HYBRID = """
    bamba falcon_h1 jamba kimi_linear lfm2 olmo_hybrid qwen3_5_text qwen3_next recurrent_gemma
""".split()  # noqa: SIM905 - as above
"""Layers whose tokens meet in a state space, a convolution or linear attention have an MLP as others do."""
MODELS = [
    *(pytest.param(partial(build, config), id=config.model_type) for config in CONFIGS),
    # Of their configurations' defaults, shrunk, in float64.
    *(pytest.param(partial(tiny, name, {}), id=name) for name in (*FURTHER, *HYBRID)),
]
ADDED_AS_THEY_ARE = {"llama", "qwen2", "qwen3", "mistral", "mixtral", "qwen3_moe", "olmoe", "gpt2", "bloom", "mpt"}
"""Architectures in which what goes into the layer, the attention's output and the tapped tensor add up to what comes
out of the layer, term by term."""
ATTENTION = ("self_attn", "attn", "self_attention", "attention")


def first(output: Any) -> torch.Tensor:
    found = output[0] if isinstance(output, tuple) else output
    assert isinstance(found, torch.Tensor)
    return found


def caught(model: Any, modules: list[nn.Module], tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """What modules return in one uncached pass, [tokens, modules, hidden] in float64: by wrapping, without hooks."""
    outputs: dict[int, torch.Tensor] = {}
    with monkeypatch.context() as patch:
        for place, module in enumerate(modules):
            own = module.forward

            def forward(*args: Any, own: Any = own, place: int = place, **kwargs: Any) -> Any:
                output = own(*args, **kwargs)
                outputs[place] = first(output).reshape(1, len(tokens), -1).clone()  # Llama 4's are flat
                return output

            patch.setattr(module, "forward", forward)
        with torch.inference_mode():
            model(input_ids=torch.tensor([tokens]), use_cache=False)
    return torch.stack([outputs[place][0] for place in range(len(modules))], dim=1).double().numpy()


def divergences(activations: np.ndarray) -> np.ndarray:
    """KL(p_i || p_j), term by term."""
    logs = []
    for row in activations:
        normaliser = row.max() + math.log(math.fsum(np.exp(row - row.max())))
        logs.append(row - normaliser)
    return np.array([[math.fsum(np.exp(p) * (p - q)) for q in logs] for p in logs])


def tapped(model: Any, site: Site) -> tuple[TapPoint, ...]:
    return locate(model, model.config.num_hidden_layers, site)


def record(model: Any, site: Site, prompt: list[int], **options: Any) -> tuple[list[int], Any]:
    with Tap(tapped(model, site)) as tap, torch.no_grad():  # as models do
        recorder = Recorder(tap, end_tokens=[NEVER], special_tokens=[], temperature=1.0)
        sequences = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            logits_processor=[recorder],
            **{"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0} | options,
        )
        return sequences[0, len(prompt) :].tolist(), recorder.finish(sequences)[0]


@pytest.mark.parametrize("site", ["mlp", "residual"])
@pytest.mark.parametrize("build_model", MODELS)
def test_maps_equal_a_float64_reference_by_another_route(
    build_model: Callable[[], Any], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model()
    prompt = [5, 17, 40, 3]
    answer, found = record(model, site, prompt)
    modules = [point.module for point in tapped(model, site)]
    activations = caught(model, modules, prompt + answer, monkeypatch)
    maps = [divergences(token) for token in activations]
    assert len(answer) == NEW
    expected = {"prompt": maps[len(prompt) - 1], "last": maps[-2], "mean": np.mean(maps[len(prompt) : -1], axis=0)}
    assert expected["mean"].max() > 1e-3, "layers that agree would prove nothing"
    for position, signature in expected.items():
        np.testing.assert_allclose(found.signatures[position], signature, rtol=1e-4, atol=1e-6, err_msg=position)


@pytest.mark.parametrize("site", ["mlp", "residual"])
@pytest.mark.parametrize("build_model", MODELS)
def test_every_tap_moves_the_logits_and_a_reading_equals_the_recording(
    build_model: Callable[[], Any], site: Site
) -> None:
    model = build_model()
    points = tapped(model, site)
    assert [proof.point for proof in prove(model, points, hidden=HIDDEN)] == list(points)
    assert [point.layer for point in points] == list(range(model.config.num_hidden_layers))
    prompt = [5, 17, 40, 3]
    answer, recorded = record(model, site, prompt)
    found = replay(model, points, prompt, answer, special_tokens=[], temperature=1.0, cut=True)
    assert set(found.signatures) == set(recorded.signatures) == {"prompt", "last", "mean"}
    for position, signature in recorded.signatures.items():
        np.testing.assert_allclose(found.signatures[position], signature, rtol=1e-4, atol=1e-6)
    assert found.statistics is not None
    assert found.statistics.logprob_sum == pytest.approx(recorded.statistics.logprob_sum, rel=1e-4)
    assert found.statistics.entropy_mean == pytest.approx(recorded.statistics.entropy_mean, rel=1e-4)


@pytest.mark.parametrize(
    "config", [config for config in CONFIGS if config.model_type in ADDED_AS_THEY_ARE], ids=lambda c: c.model_type
)
def test_tapped_tensor_equals_the_addition_to_the_residual_stream(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(config)
    layers = [point.module for point in locate(model, LAYERS, "residual")]
    mlps = [point.module for point in locate(model, LAYERS, "mlp")]
    attentions = [next(getattr(layer, name) for name in ATTENTION if hasattr(layer, name)) for layer in layers]
    if config.model_type == "bloom":  # its attention adds the residual itself
        attentions = [attention.dense for attention in attentions]
    seen = caught(model, [*layers, *mlps, *attentions], [5, 17, 40, 3], monkeypatch)
    streams, added, attended = np.split(seen, 3, axis=1)
    np.testing.assert_allclose(streams[:, 1:] - streams[:, :-1], (added + attended)[:, 1:], rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_maps_are_the_same_with_any_cache_and_without(options: dict[str, Any]) -> None:
    model = build(CONFIGS[0])
    answer, expected = record(model, "mlp", [5, 17, 40, 3])
    again, found = record(model, "mlp", [5, 17, 40, 3], disable_compile=True, **options)
    assert again == answer
    for position, signature in expected.signatures.items():
        np.testing.assert_allclose(found.signatures[position], signature, rtol=1e-4, atol=1e-6)


def test_a_sampled_answers_maps_are_those_of_its_own_tokens() -> None:
    model = build(CONFIGS[0])
    torch.manual_seed(1)
    answer, found = record(model, "mlp", [5, 17, 40, 3], do_sample=True, temperature=2.0)
    assert answer != record(model, "mlp", [5, 17, 40, 3])[0]
    expected = replay(
        model, locate(model, LAYERS), [5, 17, 40, 3], answer, special_tokens=[], temperature=1.0, cut=True
    )
    for position, signature in expected.signatures.items():
        np.testing.assert_allclose(found.signatures[position], signature, rtol=1e-4, atol=1e-6)
    assert expected.statistics is not None
    assert found.statistics.logprob_sum == pytest.approx(expected.statistics.logprob_sum, rel=1e-4)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_beams": 3, "num_return_sequences": 3}])
def test_beam_search_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SignatureError, match=r"beam search and assisted decoding can't be recorded"):
        record(build(CONFIGS[0]), "mlp", [5, 17, 40, 3], **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_give_float32_maps(dtype: torch.dtype) -> None:
    model = build(CONFIGS[0], dtype)
    _, found = record(model, "mlp", [5, 17, 40, 3])
    assert {signature.dtype for signature in found.signatures.values()} == {np.dtype("float32")}
    assert all(proof.moved > 0.01 for proof in prove(model, locate(model, LAYERS), hidden=HIDDEN))


def test_paths_in_short() -> None:
    assert pattern(locate(build(CONFIGS[0]), LAYERS)) == "model.layers.*.mlp"
    assert pattern(locate(build(GPT2Config(**COMMON)), LAYERS, "residual")) == "transformer.h.*"


def test_state_space_model_is_refused_with_the_expected_layout() -> None:
    model = build(MambaConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, state_size=4))
    with pytest.raises(SignatureError, match=r"MambaForCausalLM can't be tapped: looked for one list of 3 layers"):
        locate(model, LAYERS)
