"""Local models that think before they answer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ilis_guard.models.batching import BatchedModel
from ilis_guard.models.local import LocalModel
from ilis_guard.models.tapped import TappedModel
from ilis_guard.types import Generation, Message
from tests.models.conftest import Reference
from tests.models.thinkers import ASK, FAMILIES, SCRIPTS, THOUGHT, load, write_folder

pytestmark = pytest.mark.usefixtures("real_model")

ANSWER = "The capital of Norway is Oslo."
Folder = Callable[[str], Path]
Refer = Callable[[LocalModel, list[int], list[int]], Reference]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = write_folder(tmp_path_factory.mktemp(family), family)
        return made[family]

    return find


def script(family: str, answer: str = ANSWER, thought: str = THOUGHT) -> str:
    before, after = SCRIPTS[family]
    return before + thought + after + answer + FAMILIES[family].end


def tokens_of(model: LocalModel, text: str) -> int:
    return len(model._tokenizer(text, add_special_tokens=False)["input_ids"])


def assert_measured_over(found: Generation, model: LocalModel, places: list[int], reference: Refer) -> None:
    """The answer's maps and statistics are those of an independent pass, over the tokens at these places alone."""
    expected = reference(model, model.prompt_tokens(ASK), list(found.token_ids))
    maps = [expected.maps[place] for place in places]
    np.testing.assert_allclose(found.signatures["prompt"], expected.prompt, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.signatures["last"], maps[-1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.signatures["mean"], np.mean(maps, axis=0), rtol=1e-4, atol=1e-6)
    assert found.statistics is not None
    logprobs = [expected.logprobs[place] for place in places]
    assert found.statistics.to_dict() == pytest.approx(
        {
            "logprob_sum": sum(logprobs),
            "logprob_mean": sum(logprobs) / len(places),
            "entropy_mean": float(np.mean([expected.entropies[place] for place in places])),
            "margin_min": min(expected.margins[place] for place in places),
        },
        rel=1e-4,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_thought_is_in_neither_text_nor_signatures_nor_statistics(
    family: str, folder: Folder, reference: Refer
) -> None:
    model = load(folder(family), script(family))
    found = model.generate(ASK)
    assert (found.text, found.finish_reason, found.thinking_problem) == (ANSWER, "stop", "")
    answer = tokens_of(model, ANSWER)
    assert len(found.token_ids) > answer
    # A token with the marker's last character may hold the answer's first ones.
    first = len(found.token_ids) - answer
    assert_measured_over(found, model, list(range(first, len(found.token_ids))), reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_its_tokens_gives_the_same_again(family: str, folder: Folder, agree: Callable[..., None]) -> None:
    model = load(folder(family), script(family))
    found = model.generate(ASK)
    agree(model.read(ASK, found.token_ids), found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ending", ["length", "stop"])
def test_an_answer_that_never_leaves_its_thinking_has_no_text(family: str, ending: str, folder: Folder) -> None:
    before, _ = SCRIPTS[family]
    thought = before + THOUGHT + (FAMILIES[family].end if ending == "stop" else THOUGHT * 9)
    found = load(folder(family), thought, max_new_tokens=60).generate(ASK)
    assert (found.text, found.finish_reason, found.thinking_problem) == ("", ending, "unfinished")
    assert (set(found.signatures), found.statistics) == ({"prompt"}, None)
    assert found.tokens is not None
    assert found.tokens > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_shows_the_answer_alone_and_measures_nothing_before_it(
    family: str, folder: Folder, agree: Callable[..., None]
) -> None:
    model = load(folder(family), script(family))
    steps = list(model.stream(ASK))
    assert "".join(step.token for step in steps) == ANSWER
    agree(steps[-1].generation, model.generate(ASK))
    for step in steps:
        assert ANSWER.startswith(step.generation.text)
        assert step.generation.text or set(step.generation.signatures) <= {"prompt", "last", "mean"}
    thinking = [step.generation for step in steps if step.generation.thinking_problem]
    assert len(thinking) > 5
    assert all(set(each.signatures) == {"prompt"} and each.statistics is None for each in thinking)


@pytest.mark.parametrize("family", ["qwen", "deepseek", "magistral", "harmony"])
def test_a_stop_sequence_ends_the_answer_and_not_the_thinking(family: str, folder: Folder) -> None:
    model = load(folder(family), script(family, answer="The capital is Oslo. No?"))
    assert model.generate(ASK, stop=["No,"]).text == "The capital is Oslo. No?"
    cut = model.generate(ASK, stop=["No"])
    assert (cut.text, cut.finish_reason) == ("The capital is Oslo.", "stop")


@pytest.mark.parametrize("family", ["qwen", "deepseek", "harmony"])
def test_rows_of_a_batch_are_measured_like_single_ones(family: str, folder: Folder, agree: Callable[..., None]) -> None:
    model = load(folder(family), script(family))
    # A script has its place by position: the longer prompt's answer begins in the middle of the thought.
    longer = [Message(role="user", content="Capital of Norway now?")]
    rows = model.generate_batch([ASK, longer])
    for messages, row in zip((ASK, longer), rows, strict=True):
        alone = model.generate(messages)
        assert alone.text == ANSWER
        agree(row, alone)


def test_a_batched_model_streams_the_answer_alone(folder: Folder) -> None:
    model = BatchedModel(load(folder("deepseek"), script("deepseek")), size=2)
    assert "".join(step.token for step in model.stream(ASK)) == ANSWER
    assert model.generate(ASK).text == ANSWER


@pytest.mark.parametrize("family", ["qwen", "harmony", "spelled"])
def test_a_span_lies_in_the_answers_text(family: str, folder: Folder, reference: Refer) -> None:
    model = load(folder(family), script(family))
    start = ANSWER.index("Oslo")
    found = model.generate(ASK, span=(start, start + 4))
    decoded = [model._tokenizer.decode(found.token_ids[:count]) for count in range(len(found.token_ids) + 1)]
    ends = [len(text) for text in decoded]
    whole = decoded[-1].rindex("Oslo")
    places = [place for place in range(len(found.token_ids)) if ends[place] < whole + 4 and ends[place + 1] > whole]
    expected = reference(model, model.prompt_tokens(ASK), list(found.token_ids))
    np.testing.assert_allclose(
        found.signatures["answer"],
        np.mean([expected.maps[place] for place in places], axis=0),
        rtol=1e-4,
        atol=1e-6,
    )


def test_repeated_and_nested_thinking_is_taken_out(folder: Folder, reference: Refer) -> None:
    text = f"<think>a<think>b</think>c</think>\n<think>d</think>{ANSWER}<|im_end|>"
    model = load(folder("qwen"), text)
    found = model.generate(ASK)
    assert found.text == ANSWER
    first = len(found.token_ids) - tokens_of(model, ANSWER)
    assert_measured_over(found, model, list(range(first, len(found.token_ids))), reference)


def test_an_answer_that_quotes_a_marker_is_whole(folder: Folder, reference: Refer) -> None:
    quoting = "Write `<think>` and then `</think>`."
    model = load(folder("qwen"), f"{quoting}<|im_end|>")
    found = model.generate(ASK)
    assert found.text == quoting
    assert_measured_over(found, model, list(range(len(found.token_ids))), reference)


def test_thinking_in_the_middle_leaves_no_answer(folder: Folder) -> None:
    found = load(folder("qwen"), f"Oslo.\n<think>\n{THOUGHT}\n</think>\nBergen.<|im_end|>").generate(ASK)
    assert (found.text, found.thinking_problem, found.statistics) == ("", "doubtful", None)
    assert set(found.signatures) == {"prompt"}


def test_long_thinking_leaves_the_answers_numbers_alone(folder: Folder, reference: Refer) -> None:
    """Far more tokens than are looked at again for each new one, with a marker's name among them."""
    thought = "`</think>` " + THOUGHT * 12
    model = load(folder("qwen"), script("qwen", thought=thought), max_new_tokens=300)
    found = model.generate(ASK)
    assert found.text == ANSWER
    assert len(found.token_ids) > 100
    first = len(found.token_ids) - tokens_of(model, ANSWER)
    assert_measured_over(found, model, list(range(first, len(found.token_ids))), reference)


@pytest.mark.parametrize("family", ["qwen", "deepseek", "magistral", "harmony"])
def test_a_third_partys_call_is_measured_over_the_answer_alone(
    family: str, folder: Folder, agree: Callable[..., None]
) -> None:
    """Its text has lost the markers that are special tokens: the recorded tokens have them."""
    model = load(folder(family), script(family))
    network, tokenizer = model._model, model._tokenizer
    tapped = TappedModel.of(
        network,
        tokenizer,
        {"max_new_tokens": 160},
        fitted=model.fingerprint,
        prompt="{question}",
        max_new_tokens=160,
    )
    prompt = torch.tensor([model.prompt_tokens(ASK)])
    with tapped.record() as call:
        sequences = network.generate(prompt, attention_mask=torch.ones_like(prompt), **call.options)
        text = tokenizer.decode(sequences[0, prompt.shape[1] :], skip_special_tokens=True)
        found = call.generation(text.strip())
    assert THOUGHT in text
    expected = model.generate(ASK)
    assert found.text == expected.text == ANSWER
    agree(found, expected)
