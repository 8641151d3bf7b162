"""Observing, against what a plain pass over each single answer says: loops, no padding, nothing of ours."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ilis_guard.errors import ModelError, SignatureError
from ilis_guard.lab.attempts import read_attempts
from ilis_guard.lab.baselines import forward, observe as module
from ilis_guard.lab.baselines.observations import SCORES, SITES, UNIT, Observations, read_observations
from ilis_guard.lab.baselines.observe import observe
from ilis_guard.lab.baselines.scores import rauq_layers, verdict_tokens
from ilis_guard.lab.harvest import harvest
from ilis_guard.lab.questions import Question
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Generation, Site
from tests.lab.tiny_models import LAYERS, SPECIALS, WORDS, make

pytestmark = pytest.mark.usefixtures("real_model")

SEEDS = {"llama": 1, "qwen3": 1, "gemma3": 5}
"""With these, answers of every kind are among two dozen; `test_answers_of_every_kind_are_here` sees to it."""
PROMPT = "{question} w1"
LIMIT = 7
SPECIAL = set(range(len(SPECIALS)))


def some_questions() -> list[Question]:
    """Of unlike lengths."""
    draw = random.Random(1)
    texts = [" ".join(f"w{draw.randrange(53)}" for _ in range(draw.randrange(1, 20))) for _ in range(24)]
    return [Question(id=f"q{index}", dataset="d", question=text, answers=("w1",)) for index, text in enumerate(texts)]


QUESTIONS = some_questions()


@dataclass(frozen=True)
class Lab:
    """A tiny model, its harvest, and what was observed of it."""

    folder: Path
    model: LocalModel
    harvest: Path
    observed: Path

    @property
    def observations(self) -> Observations:
        return read_observations(self.observed)

    def answered(self) -> list[tuple[Question, Generation]]:
        """Those that something can be said of, in the harvest's order."""
        generations = dict(read_attempts(self.harvest).generations())
        asked = {question.id: question for question in QUESTIONS}
        return [(asked[id_], generations[id_]) for id_ in read_attempts(self.harvest).answers().ids]


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Lab]:
    made: dict[str, Lab] = {}

    def lab(architecture: str) -> Lab:
        if architecture not in made:
            folder = make(tmp_path_factory.mktemp(architecture), architecture, seed=SEEDS[architecture])
            model = LocalModel.load(str(folder), prompt=PROMPT, max_new_tokens=LIMIT)
            paths = [folder / name for name in ("harvest.parquet", "observed.parquet")]
            harvest(model, QUESTIONS, paths[0], name=architecture, batch_size=5)
            observe(model, paths[0], QUESTIONS, paths[1])
            made[architecture] = Lab(folder=folder, model=model, harvest=paths[0], observed=paths[1])
        return made[architecture]

    return lab


@pytest.fixture(params=sorted(SEEDS))
def lab(request: pytest.FixtureRequest, labs: Callable[[str], Lab]) -> Lab:
    return labs(request.param)


@pytest.fixture
def llama(labs: Callable[[str], Lab]) -> Lab:
    return labs("llama")


def fed(answer: Generation) -> Sequence[int]:
    """What of an answer passed through the model."""
    return answer.token_ids[:-1] if answer.finish_reason == "length" else answer.token_ids


def test_answers_of_every_kind_are_here(lab: Lab) -> None:
    answers = [answer for _, answer in lab.answered()]
    kinds = {
        "ended": [answer.finish_reason == "stop" for answer in answers],
        "cut": [answer.finish_reason == "length" for answer in answers],
        "with a special token": [not SPECIAL.isdisjoint(answer.token_ids) for answer in answers],
        "that pass last with a special token": [fed(answer)[-1] in SPECIAL for answer in answers],
    }
    assert all(sum(of) >= 2 for of in kinds.values()), {kind: sum(of) for kind, of in kinds.items()}
    assert len(answers) < len(QUESTIONS)


@dataclass(frozen=True)
class Naive:
    scores: dict[str, float]
    activations: dict[Site, np.ndarray]
    lens: np.ndarray


def naive(network: Any, asked: Question, answer: Generation) -> Naive:
    """One answer's scores and activations, by loops over the pass of that answer alone."""
    kept: dict[tuple[str, int], torch.Tensor] = {}
    hooks = []
    for index, layer in enumerate(network.model.layers):
        for site, tapped in (("attention", layer.self_attn), ("mlp", layer.mlp), ("residual", layer)):
            hooks.append(
                tapped.register_forward_hook(
                    lambda _module, _inputs, output, key=(site, index): kept.update(
                        {key: output[0] if isinstance(output, tuple) else output}
                    )
                )
            )
    words = {word: index for index, word in enumerate(WORDS)}
    prompt = [words[word] for word in ("<bos> " + asked.question + " w1").split()]
    assert len(prompt) == answer.prompt_tokens
    tokens = fed(answer)
    with torch.inference_mode():
        network(torch.tensor([[words["<bos>"], words["w1"]]]), use_cache=False)
        empty = [kept["residual", index][0, -1] for index in range(LAYERS)]
        output = network(torch.tensor([[*prompt, *tokens]]), output_attentions=True, use_cache=False)
    for hook in hooks:
        hook.remove()
    activations: dict[Site, np.ndarray] = {
        site: np.stack([kept[site, index][0].numpy() for index in range(LAYERS)], axis=1) for site in SITES
    }
    places = [place for place, token in enumerate(answer.token_ids) if token not in SPECIAL]
    last = len(prompt) + max(place for place in places if place < len(tokens))

    def read(hidden: torch.Tensor) -> list[float]:
        with torch.inference_mode():
            return softmax(network.lm_head(network.model.norm(hidden)).tolist())

    entropies = [
        [-math.fsum(p * math.log(p) for p in read(kept[site, index][0, last])) for index in range(LAYERS)]
        for site in ("attention", "mlp", "residual")
    ]
    drawn_at, drawn = len(prompt) - 1 + places[0], answer.token_ids[places[0]]
    information = math.fsum(
        math.log(read(kept["residual", index][0, drawn_at])[drawn]) - math.log(read(empty[index])[drawn])
        for index in range(LAYERS)
    )
    probabilities = [softmax(output.logits[0, len(prompt) - 1 + place].tolist()) for place in places]
    said = [row[answer.token_ids[place]] for row, place in zip(probabilities, places, strict=True)]
    logarithms = [math.log(p) for p in said]
    uniform = 1 / len(WORDS)
    scores = {
        "neg_logprob_sum": -math.fsum(logarithms),
        "perplexity": -math.fsum(logarithms) / len(said),
        "entropy_mean": mean([-math.fsum(p * math.log(p) for p in row) for row in probabilities]),
        "margin": 1 - min(max(row) - sorted(row)[-2] for row in probabilities),
        "self_certainty": -mean([math.fsum(uniform * math.log(uniform / p) for p in row) for row in probabilities]),
        "rauq": max(
            naive_rauq(
                said,
                [
                    [float(weights[0, head, at, at]) for at in (len(prompt) - 1 + place for place in places[1:])]
                    for head in range(4)
                ],
            )
            # Of five layers, those from the floor of a third to the ceiling of two thirds.
            for weights in (output.attentions[layer] for layer in (1, 2, 3, 4))
        ),
        "layer_information": -information,
    }
    return Naive(scores, {site: of[last] for site, of in activations.items()}, np.array(entropies))


def naive_rauq(said: list[float], of_heads: list[list[float]], alpha: float = 0.5) -> float:
    weights = max(of_heads, key=math.fsum)
    confidence = [said[0]]
    for probability, weight in zip(said[1:], weights, strict=True):
        confidence.append(alpha * probability + (1 - alpha) * weight * confidence[-1])
    return -mean([math.log(c) for c in confidence])


def softmax(logits: list[float]) -> list[float]:
    highest = max(logits)
    total = math.fsum(math.exp(z - highest) for z in logits)
    return [math.exp(z - highest) / total for z in logits]


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def test_scores_and_activations_are_those_of_a_plain_pass_over_each_answer(lab: Lab) -> None:
    observed, answered = lab.observations, lab.answered()
    network = AutoModelForCausalLM.from_pretrained(lab.folder, dtype=torch.float32, attn_implementation="eager")
    assert observed.ids == tuple(asked.id for asked, _ in answered)
    for row, (asked, answer) in enumerate(answered):
        wanted = naive(network, asked, answer)
        found = {name: observed.scores[name][row] for name in wanted.scores}
        assert found == pytest.approx(wanted.scores, rel=2e-4, abs=2e-5), answer.token_ids
        np.testing.assert_allclose(observed.lens[row], wanted.lens, rtol=2e-4, atol=2e-5)
        for site, expected in wanted.activations.items():
            given = observed.activations[site][row].astype(np.float64) * UNIT[site]
            np.testing.assert_allclose(given, expected, rtol=2e-3, atol=1e-4)


def test_four_scores_are_the_harvests_own_statistics(lab: Lab) -> None:
    logprob_sum, logprob_mean, entropy, least = read_attempts(lab.harvest).answers().statistics.T
    expected = {
        "neg_logprob_sum": -logprob_sum,
        "perplexity": -logprob_mean,
        "entropy_mean": entropy,
        "margin": 1 - least,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(lab.observations.scores[name], values, rtol=2e-4, atol=2e-5, err_msg=name)


def test_activations_are_taken_where_the_signature_last_is(lab: Lab) -> None:
    last = read_attempts(lab.harvest).answers().signatures["last"]
    for row, activations in enumerate(lab.observations.activations["mlp"].astype(np.float64)):
        logs = torch.log_softmax(torch.from_numpy(activations), dim=-1)
        divergences = (logs.exp()[:, None] * (logs[:, None] - logs[None])).sum(dim=-1).numpy()
        np.testing.assert_allclose(divergences, last[row], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("tokens", [1, 60, 200])
def test_how_rows_are_batched_changes_nothing(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    sizes: list[int] = []
    read = forward.ForwardRunner.run

    def watched(self: forward.ForwardRunner, batch: Sequence[forward.TokenizedAnswer]) -> list[forward.ForwardResult]:
        sizes.append(len(batch))
        return read(self, batch)

    monkeypatch.setattr(forward.ForwardRunner, "run", watched)
    monkeypatch.setattr(module, "PASS_TOKENS", tokens)
    observe(lab.model, lab.harvest, QUESTIONS, tmp_path / "again.parquet")
    again, before = read_observations(tmp_path / "again.parquet"), lab.observations
    assert (max(sizes) == 1) == (tokens == 1)
    assert sum(sizes) == len(again.ids)
    assert again.ids == before.ids
    for name in SCORES:
        np.testing.assert_allclose(again.scores[name], before.scores[name], rtol=2e-4, atol=2e-5, err_msg=name)
    for site, activations in before.activations.items():
        np.testing.assert_allclose(again.activations[site], activations, rtol=2e-3, atol=1e-4)


def test_logits_of_a_pass_are_bounded(llama: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most: list[int] = []
    logits = forward.ForwardRunner._logits

    def watched(self: forward.ForwardRunner, inputs: Mapping[str, Any], kept: int) -> torch.Tensor:
        found = logits(self, inputs, kept)
        most.append(found.numel())
        return found

    monkeypatch.setattr(forward.ForwardRunner, "_logits", watched)
    monkeypatch.setattr(module, "PASS_LOGITS", 3 * (LIMIT + 1) * len(WORDS))
    observe(llama.model, llama.harvest, QUESTIONS, tmp_path / "again.parquet")
    assert 2 * LIMIT * len(WORDS) < max(most) <= 3 * (LIMIT + 1) * len(WORDS)


@pytest.mark.parametrize("chat_template", ["chat", None])
def test_p_true_is_the_share_of_false_after_a_second_prompt(chat_template: str | None, tmp_path: Path) -> None:
    made = make(tmp_path / "model", "llama", seed=1) if chat_template else None
    folder = made or make(tmp_path / "model", "llama", seed=1, chat_template=None)
    model = LocalModel.load(str(folder), prompt=PROMPT, max_new_tokens=LIMIT)
    harvest(model, QUESTIONS, tmp_path / "harvest.parquet", name="tiny")
    manifest = observe(model, tmp_path / "harvest.parquet", QUESTIONS, tmp_path / "observed.parquet")
    observed = read_observations(tmp_path / "observed.parquet")
    generations = dict(read_attempts(tmp_path / "harvest.parquet").generations())
    network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    spread = []
    for question in QUESTIONS:
        if question.id not in observed.ids:
            continue
        judged = f"Question: {question.question}\nProposed answer: {generations[question.id].text}"
        text = manifest.p_true_prompt.replace("{question}", judged)
        assert ("capital of Italy" in text) == (chat_template is None)
        tokens = [WORDS.index(word) if word in WORDS else WORDS.index("unknown") for word in text.split()]
        given = [1, *tokens] if chat_template else tokens
        with torch.inference_mode():
            row = softmax(network(torch.tensor([given])).logits[0, -1].tolist())
        expected = row[WORDS.index("False")] / (row[WORDS.index("False")] + row[WORDS.index("True")])
        assert observed.scores["p_true"][observed.ids.index(question.id)] == pytest.approx(expected, rel=1e-3)
        spread.append(expected)
    assert max(spread) - min(spread) > 0.1
    assert manifest.rauq_alpha == (0.5 if chat_template else 0.2)


def test_p_true_needs_two_words(llama: Lab) -> None:
    class OneWord:
        def __call__(self, _text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
            assert not add_special_tokens
            return {"input_ids": [5]}

    assert verdict_tokens(llama.model.checkpoint.tokenizer) == ([WORDS.index("True")], [WORDS.index("False")])
    with pytest.raises(ModelError, match="begin with the same token"):
        verdict_tokens(OneWord())


def test_attention_is_restored_even_if_the_pass_fails(
    llama: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = llama.model.checkpoint.model
    assert network.config._attn_implementation == "sdpa"
    hooks = [len(module._forward_hooks) for module in network.modules()]

    def fail(*_args: object, **_named: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(forward, "_token_statistics", fail)
    with pytest.raises(ZeroDivisionError):
        observe(llama.model, llama.harvest, QUESTIONS, tmp_path / "observed.parquet")
    assert network.config._attn_implementation == "sdpa"
    assert [len(module._forward_hooks) for module in network.modules()] == hooks
    assert not (tmp_path / "observed.parquet").exists()


def test_without_attention_weights_there_is_no_rauq(
    llama: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SignatureError, match=r"layer 3 .* has 0 modules called one of"):
        forward._attention(torch.nn.Linear(2, 2), 3)
    monkeypatch.setattr(forward, "EAGER", "sdpa")
    with pytest.raises(SignatureError, match="LlamaAttention returned no attention weights"):
        observe(llama.model, llama.harvest, QUESTIONS, tmp_path / "observed.parquet")


def test_an_activation_that_does_not_fit_into_float16_is_an_error(
    llama: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "LARGEST", 1e-3)
    with pytest.raises(SignatureError, match=r"the mlp activation of layer 0 .* at most 0\.001"):
        observe(llama.model, llama.harvest, QUESTIONS, tmp_path / "observed.parquet")


def test_tokens_that_cannot_be_said_have_no_part_in_self_certainty() -> None:
    logits = torch.tensor([[1.0, -math.inf, 0.0, 2.0]])
    shares = softmax([1.0, 0.0, 2.0])
    expected = math.fsum(math.log(1 / 3 / share) / 3 for share in shares)
    assert forward._from_uniform(logits).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("layers", range(1, 50))
def test_rauq_looks_at_the_middle_third(layers: int) -> None:
    third = Fraction(layers, 3)
    inside = [layer for layer in range(layers) if math.floor(third) <= layer <= math.ceil(2 * third)]
    assert list(rauq_layers(layers)) == inside
