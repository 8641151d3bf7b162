import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.architectures.tiny import tiny
from ilis_guard.errors import SignatureError
from ilis_guard.signature import Recorder, Recording, Tap, locate, recorder, replay

pytestmark = pytest.mark.usefixtures("real_model")

LAYERS, PROMPT = 3, [5, 17, 40, 3]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        initializer_range=0.3,
        eos_token_id=None,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()  # type: ignore[no-untyped-call]  # transformers types it partly


def recorded(model: Any, count: int, end: tuple[int, ...] = (), special: Any = ()) -> tuple[list[int], Recording]:
    with Tap(locate(model, model.config.num_hidden_layers)) as tap, torch.inference_mode():
        recorder = Recorder(tap, end_tokens=end, special_tokens=special, temperature=1.0, every_token=True)
        sequences = model.generate(
            input_ids=torch.tensor([PROMPT]),
            attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
            logits_processor=[recorder],
            do_sample=False,
            max_new_tokens=count,
            pad_token_id=0,
        )
        return sequences[0, len(PROMPT) :].tolist(), recorder.finish(sequences)[0]


def assert_equal(found: Recording, expected: Recording) -> None:
    assert found.signatures.keys() == expected.signatures.keys()
    for position, signature in expected.signatures.items():
        np.testing.assert_allclose(found.signatures[position], signature, rtol=1e-4, atol=1e-6, err_msg=position)
    assert found.statistics is not None
    assert expected.statistics is not None
    assert found.statistics.to_dict() == pytest.approx(expected.statistics.to_dict(), rel=1e-4, abs=1e-6)
    assert (found.tokens, found.ended) == (expected.tokens, expected.ended)


@pytest.mark.parametrize("piece", [1, 3, 64])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 7, 10])
def test_replay_of_a_cut_answer_equals_its_generation(
    model: Any, count: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "REPLAY_LENGTH", piece)
    answer, expected = recorded(model, count)
    found = replay(
        model, locate(model, LAYERS), PROMPT, answer, special_tokens=[], temperature=1.0, cut=True, every_token=True
    )
    assert_equal(found, expected)
    assert found.token_maps is not None
    assert expected.token_maps is not None
    np.testing.assert_allclose(found.token_maps, expected.token_maps, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("piece", [1, 3, 64])
def test_replay_of_an_ended_answer_equals_its_generation(
    model: Any, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "REPLAY_LENGTH", piece)
    answer, _ = recorded(model, 10)
    at = max(place for place, token in enumerate(answer) if answer.index(token) == place)
    assert at >= 2
    _, expected = recorded(model, at + 1, end=(answer[at],))
    found = replay(model, locate(model, LAYERS), PROMPT, answer[:at], special_tokens=[], temperature=1.0)
    assert_equal(found, expected)


@pytest.mark.parametrize("piece", [2, 64])
def test_replay_leaves_out_special_tokens(model: Any, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "REPLAY_LENGTH", piece)
    answer, _ = recorded(model, 7)
    _, expected = recorded(model, 7, special=[answer[2]])
    found = replay(model, locate(model, LAYERS), PROMPT, answer, special_tokens=[answer[2]], temperature=1.0, cut=True)
    assert found.tokens < 7
    assert_equal(found, expected)


class Plain(nn.Module):
    """A model that gives the logits of all positions, whatever is asked for."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.device = inner, inner.device

    def forward(self, input_ids: Tensor, past_key_values: Any = None, *, use_cache: bool = True) -> Any:
        return self.inner(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)


@pytest.mark.parametrize("piece", [3, 64])
def test_a_model_that_cant_keep_few_logits_reads_the_same(
    model: Any, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "REPLAY_LENGTH", piece)
    assert "logits_to_keep" in inspect.signature(model.forward).parameters
    answer, expected = recorded(model, 7)
    found = replay(Plain(model), locate(model, LAYERS), PROMPT, answer, special_tokens=[], temperature=1.0, cut=True)
    assert_equal(found, expected)


@pytest.mark.parametrize(("prompt", "answer", "got"), [([], [1], "0 and 1"), ([1, 2], [], "2 and 0")])
def test_without_a_prompt_or_an_answer_there_is_nothing_to_read(
    model: Any, prompt: list[int], answer: list[int], got: str
) -> None:
    with pytest.raises(SignatureError, match=f"got {got} tokens"):
        replay(model, locate(model, LAYERS), prompt, answer, special_tokens=[], temperature=1.0)


@pytest.mark.parametrize("architecture", ["llama", "bamba", "jamba", "qwen3_next", "lfm2", "falcon_h1"])
def test_layers_that_carry_a_state_read_on_as_they_generate(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "REPLAY_LENGTH", 3)
    model = tiny(architecture, {})
    answer, expected = recorded(model, 10)
    points = locate(model, model.config.num_hidden_layers)
    assert_equal(replay(model, points, PROMPT, answer, special_tokens=[], temperature=1.0, cut=True), expected)


@pytest.mark.parametrize("architecture", ["recurrent_gemma", "rwkv"])
def test_a_long_answer_of_a_model_that_gives_no_cache_back_is_refused(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(architecture, {})
    points = locate(model, model.config.num_hidden_layers)
    answer, expected = recorded(model, 7)
    assert_equal(replay(model, points, PROMPT, answer, special_tokens=[], temperature=1.0, cut=True), expected)
    monkeypatch.setattr(recorder, "REPLAY_LENGTH", 3)
    with pytest.raises(SignatureError, match=r"7 tokens can't be replayed: .* answers of up to 3 tokens can"):
        replay(model, points, PROMPT, answer, special_tokens=[], temperature=1.0, cut=True)
