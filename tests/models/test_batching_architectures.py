"""Padded batches on many architectures: each row equals a single run."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models as tokenizer_models, pre_tokenizers
from transformers import (
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from benchmarks.architectures.tiny import tiny
from ilis_guard.models.checkpoint import Checkpoint
from ilis_guard.models.forward_batch import BatchObserver, GenerationRequest
from ilis_guard.models.local import LocalModel
from ilis_guard.models.prompts import PromptTemplate
from ilis_guard.models.snapshot import ModelSnapshot
from ilis_guard.signature import locate, pattern
from ilis_guard.types import Fingerprint, Generation
from tests.signature.test_architectures import COMMON, EXPERTS, HEADED, HIDDEN, LAYERS, VOCABULARY, build
from tests.watching import watch

pytestmark = pytest.mark.usefixtures("real_model")

END, NEW = 1, 6
CONFIGS = [
    LlamaConfig(**HEADED),
    Qwen3Config(**HEADED),
    # A window that both prompts and answers are longer than.
    MistralConfig(**HEADED, sliding_window=4),
    Gemma2Config(**HEADED, sliding_window=4),
    Gemma3TextConfig(**HEADED, sliding_window=4),
    PhiConfig(**COMMON),
    GPT2Config(vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=4),
    GPTNeoXConfig(**COMMON),
    FalconConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4),
    MixtralConfig(**HEADED, num_local_experts=4),
    OlmoeConfig(**EXPERTS),
]
NAMES = "bamba cohere2 deepseek_v3 falcon_h1 gemma4_text gpt_oss jamba kimi_linear lfm2 llama4_text qwen3_next".split()  # noqa: SIM905 - names read best as words
MODELS = [
    *(pytest.param(partial(build, config), id=config.model_type) for config in CONFIGS),
    *(pytest.param(partial(tiny, name, {}), id=name) for name in NAMES),
]


def local(network: Any) -> LocalModel:
    network.generation_config.eos_token_id = END
    config = network.config.get_text_config()
    words = Tokenizer(
        tokenizer_models.WordLevel({f"w{number}": number for number in range(config.vocab_size)}, unk_token="w0")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"w{END}")  # type: ignore[no-untyped-call]  # transformers types it partly
    points = locate(network, config.num_hidden_layers, "mlp")
    fingerprint = Fingerprint(
        weights="random",
        precision="full",
        dtype="float32",
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        site="mlp",
        taps=pattern(points),
        temperature=1.0,
        decoding="greedy",
        prompt="none",
    )
    checkpoint = Checkpoint(
        model=network,
        tokenizer=tokenizer,
        precision="full",
        dtype="float32",
        weights="random",
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        snapshot=ModelSnapshot(network, tokenizer),
    )
    template = PromptTemplate(chat_template="{{ messages }}")
    return LocalModel(checkpoint, points, fingerprint=fingerprint, template=template, max_new_tokens=NEW, decoding={})


def drawn_prompts() -> list[tuple[int, ...]]:
    drawn = np.random.default_rng(0)
    return [tuple(drawn.integers(2, 90, size=length).tolist()) for length in (3, 11, 7, 5, 1)]


def prompts_that_begin_alike() -> list[tuple[int, ...]]:
    """The shorter ones are padded further than the first of the tokens that differ, and one is the beginning alone."""
    drawn = np.random.default_rng(1)
    alike = tuple(drawn.integers(2, 90, size=24).tolist())
    return [(*alike, *drawn.integers(2, 90, size=length).tolist()) for length in (3, 31, 7, 5, 0)]


def answers(model: LocalModel, prompts: list[tuple[int, ...]]) -> list[Generation]:
    observer = BatchObserver()
    model.run([GenerationRequest(tokens=prompt, started_at=0.0) for prompt in prompts], observer)
    return [observer.generations[row] for row in range(len(prompts))]


@contextmanager
def passes(model: LocalModel) -> Iterator[list[tuple[int, int]]]:
    """Rows and tokens of each pass."""
    shapes: list[tuple[int, int]] = []
    handle = watch(
        model._model.get_input_embeddings(), lambda _module, inputs, _output: shapes.append(tuple(inputs[0].shape))
    )
    yield shapes
    handle.remove()


class Leaving(BatchObserver):
    """Of five rows, three leave after the second pass and one after the fourth."""

    def __init__(self) -> None:
        super().__init__()
        self._passes = 0

    def on_step(self, rows: Sequence[int], so_far: Callable[[int], Generation]) -> Collection[int]:
        self._passes += 1
        going_on = [1, 4] if self._passes >= 2 else list(rows)
        if self._passes >= 4:
            going_on = [4]
        for row in set(rows) - set(going_on):
            self.generations[row] = so_far(row)
        return [row for row in rows if row in going_on]


@pytest.mark.parametrize("make", MODELS)
def test_padded_row_equals_a_single_run(make: Callable[[], Any], agree: Callable[..., None]) -> None:
    model = local(make())
    prompts = drawn_prompts()
    for found, prompt in zip(answers(model, prompts), prompts, strict=True):
        (alone,) = answers(model, [prompt])
        assert found.token_ids == alone.token_ids
        agree(found, alone, rel=1e-3)


@pytest.mark.parametrize("make", MODELS)
def test_row_behind_a_shared_prefix_equals_a_single_run(make: Callable[[], Any], agree: Callable[..., None]) -> None:
    model, prompts = local(make()), prompts_that_begin_alike()
    for found, prompt in zip(answers(model, prompts), prompts, strict=True):
        (alone,) = answers(model, [prompt])
        assert found.token_ids == alone.token_ids
        agree(found, alone, rel=1e-3)


def test_a_shared_prefix_passes_once() -> None:
    model, prompts = local(build(LlamaConfig(**HEADED))), prompts_that_begin_alike()
    with passes(model) as shapes:
        answers(model, prompts)
    # Each row has at least one token left: of the one that is the beginning alone, the last.
    assert shapes[:3] == [(1, 23), (5, 55 - 23), (5, 1)]


def test_a_prefix_longer_than_a_layers_window_passes_in_each_row() -> None:
    model, prompts = local(build(MistralConfig(**HEADED, sliding_window=16))), prompts_that_begin_alike()
    with passes(model) as shapes:
        answers(model, prompts)
    assert shapes[1] == (5, 55)


def test_a_short_prefix_passes_in_each_row() -> None:
    model, prompts = local(build(LlamaConfig(**HEADED))), prompts_that_begin_alike()[:2]
    with passes(model) as shapes:
        answers(model, prompts)
    assert shapes[0] == (2, 55)


def test_a_prompt_alone_passes_whole() -> None:
    model, prompts = local(build(LlamaConfig(**HEADED))), prompts_that_begin_alike()[:1]
    with passes(model) as shapes:
        answers(model, prompts)
    assert shapes[0] == (1, 27)


@pytest.mark.parametrize("make", MODELS)
def test_rows_behind_a_shared_prefix_leave(make: Callable[[], Any], agree: Callable[..., None]) -> None:
    model, leaving, prompts = local(make()), Leaving(), prompts_that_begin_alike()
    model.run([GenerationRequest(tokens=prompt, started_at=0.0) for prompt in prompts], leaving)
    alone = BatchObserver()
    model.run([GenerationRequest(tokens=prompts[4], started_at=0.0)], alone)
    assert leaving.generations[4].token_ids == alone.generations[0].token_ids
    agree(leaving.generations[4], alone.generations[0], rel=1e-3)


@pytest.mark.parametrize("make", MODELS)
def test_row_whose_neighbours_ended_equals_a_single_run(make: Callable[[], Any], agree: Callable[..., None]) -> None:
    model, leaving, prompts = local(make()), Leaving(), drawn_prompts()
    model.run([GenerationRequest(tokens=prompt, started_at=0.0) for prompt in prompts], leaving)
    assert [len(leaving.generations[row].token_ids) for row in (0, 2, 3)] == [1, 1, 1]
    alone = BatchObserver()
    model.run([GenerationRequest(tokens=prompts[4], started_at=0.0)], alone)
    assert leaving.generations[4].token_ids == alone.generations[0].token_ids
    agree(leaving.generations[4], alone.generations[0], rel=1e-3)
