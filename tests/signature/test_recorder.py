from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.architectures.tiny import tiny
from ilis_guard.errors import SignatureError
from ilis_guard.signature import Recorder, Recording, Tap, accumulators, locate

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


def generate(
    model: Any,
    rows: list[list[int]],
    *,
    end: Any = (),
    special: Any = (),
    look: Any = None,
    mode: Any = torch.no_grad,
    **options: Any,
) -> tuple[Tensor, list[Recording], Recorder]:
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    with Tap(locate(model, model.config.num_hidden_layers)) as tap, mode():
        recorder = Recorder(tap, end_tokens=end, special_tokens=special, temperature=1.0, every_token=True)
        defaults = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
        processors = [recorder] + ([lambda _ids, scores: look(recorder, scores)] if look else [])
        sequences = model.generate(
            input_ids=ids, attention_mask=mask, logits_processor=processors, **defaults | options
        )
        return sequences[:, longest:], recorder.finish(sequences), recorder


def assert_same_maps(found: Recording, expected: Recording) -> None:
    assert found.signatures.keys() == expected.signatures.keys()
    for position, signature in expected.signatures.items():
        np.testing.assert_allclose(found.signatures[position], signature, rtol=1e-4, atol=1e-6, err_msg=position)


def assert_same_statistics(found: Recording, expected: Recording) -> None:
    assert found.statistics is not None
    assert expected.statistics is not None
    assert found.statistics.to_dict() == pytest.approx(expected.statistics.to_dict(), rel=1e-4, abs=1e-6)
    assert found.tokens == expected.tokens


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])  # as models do, and as callers may
@pytest.mark.parametrize("tokens", [1, 2, 5, 11, 12, 1000])
def test_chunks_of_any_length_give_the_same_maps(
    model: Any, tokens: int, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accumulators, "CHUNK", 3 * (LAYERS * 32 + 99))
    _, (expected,), _ = generate(model, [PROMPT], max_new_tokens=12)
    monkeypatch.setattr(accumulators, "CHUNK", tokens * (LAYERS * 32 + 99))
    _, (found,), recorder = generate(model, [PROMPT], max_new_tokens=12, mode=mode)
    assert recorder._chunk == tokens
    assert_same_maps(found, expected)
    assert_same_statistics(found, expected)


@pytest.mark.parametrize("tokens", [1, 3, 1000])
def test_recording_so_far_equals_that_of_a_shorter_answer(
    model: Any, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accumulators, "CHUNK", tokens * (LAYERS * 32 + 99))
    steps: list[Recording] = []

    def look(recorder: Recorder, scores: Tensor) -> Tensor:
        steps.extend(recorder.so_far())
        return scores

    _, (whole,), _ = generate(model, [PROMPT], look=look)
    assert len(steps) == 6
    assert set(steps[0].signatures) == {"prompt"}
    assert steps[0].statistics is None
    for count in range(1, 6):
        assert_same_maps(steps[count], generate(model, [PROMPT], max_new_tokens=count + 1)[1][0])
        assert_same_statistics(steps[count], generate(model, [PROMPT], max_new_tokens=count)[1][0])
    unwatched = generate(model, [PROMPT])[1][0]
    assert_same_maps(whole, unwatched)
    assert_same_statistics(whole, unwatched)


def test_special_tokens_never_count(model: Any) -> None:
    answer = generate(model, [PROMPT])[0][0].tolist()
    _, (found,), _ = generate(model, [PROMPT], special=[answer[1]])
    counted = [token != answer[1] for token in answer]
    assert found.tokens == sum(counted) < 6
    assert found.token_maps is not None
    np.testing.assert_allclose(found.signatures["mean"], found.token_maps[counted[:-1]].mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(found.signatures["last"], found.token_maps[counted[:-1]][-1])


def test_nothing_counts_from_the_end_token_on(model: Any) -> None:
    answer = generate(model, [PROMPT])[0][0].tolist()
    at = max(place for place, token in enumerate(answer) if answer.index(token) == place)
    assert at >= 2
    _, (found,), _ = generate(model, [PROMPT], end=[answer[at]], max_new_tokens=10)
    assert (found.tokens, found.ended) == (at, True)
    assert_same_maps(found, generate(model, [PROMPT], max_new_tokens=at + 1)[1][0])
    assert_same_statistics(found, generate(model, [PROMPT], max_new_tokens=at)[1][0])


def test_an_answer_of_nothing_has_the_prompts_map_only(model: Any) -> None:
    first = int(generate(model, [PROMPT])[0][0, 0])
    _, (found,), _ = generate(model, [PROMPT], end=[first])
    assert set(found.signatures) == {"prompt"}
    assert (found.statistics, found.tokens, found.ended) == (None, 0, True)


def test_rows_of_a_left_padded_batch_equal_single_runs(model: Any) -> None:
    rows = [PROMPT, [9], [8, 7, 6, 5, 4, 3, 2]]
    answers, found, _ = generate(model, rows)
    for row, prompt in enumerate(rows):
        answer, (expected,), _ = generate(model, [prompt])
        assert torch.equal(answers[row], answer[0])
        assert_same_maps(found[row], expected)
        assert_same_statistics(found[row], expected)


def test_mixture_of_experts_rows_equal_single_runs() -> None:
    experts = tiny("mixtral", {})
    experts.set_experts_implementation("eager")  # adds up in place, expert by expert
    rows = [PROMPT, [9], [8, 7, 6, 5, 4, 3, 2]]
    answers, found, _ = generate(experts, rows, max_new_tokens=12)
    for row, prompt in enumerate(rows):
        answer, (expected,), _ = generate(experts, [prompt], max_new_tokens=12)
        assert torch.equal(answers[row], answer[0])
        assert_same_maps(found[row], expected)


def passed(recorder: Recorder, model: Any, ids: Tensor) -> None:
    recorder(ids, model(input_ids=ids).logits[:, -1])


@pytest.mark.parametrize(
    "following", [[[2, 3, 9], [1, 2, 9]], [[1, 2, 9, 9], [2, 3, 9, 9]], [[1, 2, 9]], [[1, 2], [2, 3]]]
)
def test_rows_that_swap_grow_by_two_vanish_or_stand_still_are_refused(model: Any, following: list[list[int]]) -> None:
    with Tap(locate(model, LAYERS)) as tap, torch.inference_mode():
        recorder = Recorder(tap, end_tokens=[], special_tokens=[], temperature=1.0)
        passed(recorder, model, torch.tensor([[1, 2], [2, 3]]))
        with pytest.raises(SignatureError, match="beam search and assisted decoding can't be recorded"):
            recorder.finish(torch.tensor(following))


def test_real_beam_search_is_refused(model: Any) -> None:
    with pytest.raises(SignatureError, match="beam search and assisted decoding can't be recorded"):
        generate(model, [PROMPT], num_beams=2)


def test_generation_without_a_pass_that_was_seen_is_refused(model: Any) -> None:
    with Tap(locate(model, LAYERS)) as tap, pytest.raises(SignatureError, match="without a forward pass"):
        Recorder(tap, end_tokens=[], special_tokens=[], temperature=1.0).finish(torch.tensor([[1]]))


def test_the_scores_are_left_as_they_were(model: Any) -> None:
    plain = model.generate(input_ids=torch.tensor([PROMPT]), do_sample=False, max_new_tokens=6, pad_token_id=0)
    assert torch.equal(generate(model, [PROMPT])[0][0], plain[0, len(PROMPT) :])


def test_held_memory_does_not_grow_with_the_answer(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(tokens: int) -> int:
        with Tap(locate(model, LAYERS)) as tap, torch.inference_mode():
            recorder = Recorder(tap, end_tokens=[], special_tokens=[], temperature=1.0)
            ids = torch.tensor([PROMPT])
            scores = torch.randn(1, 99)
            for _ in range(tokens):
                for point in locate(model, LAYERS):
                    point.module(torch.randn(1, 1, 32))
                recorder(ids, scores)
                ids = torch.cat([ids, torch.tensor([[7]])], dim=1)
            recorder.finish(ids)
            values = [*vars(recorder).values(), *vars(recorder._maps).values(), *vars(recorder._statistics).values()]
            values += [*vars(recorder._answer).values(), *vars(recorder._next).values(), *vars(tap).values()]
            return sum(value.numel() for value in values if isinstance(value, Tensor) and value is not recorder._before)

    monkeypatch.setattr(accumulators, "CHUNK", 7 * (LAYERS * 32 + 99))
    assert held(10) == held(300)


Values = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0, -1.0, -float("inf")]), st.floats(-50, 50, width=32)), min_size=2, max_size=40
)


@settings(deadline=None, max_examples=60)
@given(Values, st.integers(2, 1100), st.integers(0, 10_000))
def test_the_two_largest_are_those_of_topk(values: list[float], width: int, seed: int) -> None:
    row = torch.tensor(values)
    picked = torch.randint(len(values), (3, width), generator=torch.Generator().manual_seed(seed))
    logprobs = row[picked]
    assert torch.equal(accumulators._two_largest(logprobs), logprobs.topk(2, dim=-1).values)


@settings(deadline=None, max_examples=60)
@given(Values, st.integers(2, 600), st.integers(0, 10_000))
def test_log_probability_entropy_and_margin_are_those_of_the_definition(
    values: list[float], width: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.tensor(values)[torch.randint(len(values), (3, width), generator=random)]
    logits[:, 0] = 0.5  # something can be said
    tokens = torch.tensor([0, int(logits[1].argmax()), 0])
    exact = logits.double().softmax(dim=-1)
    terms = torch.where(exact > 0, exact * exact.log(), 0.0)
    largest = exact.sort(dim=-1, descending=True).values
    numbers = accumulators.next_token_numbers(logits, tokens).double()
    expected = torch.stack([exact[range(3), tokens].log(), -terms.sum(dim=-1), largest[:, 0] - largest[:, 1]])
    np.testing.assert_allclose(numbers, expected, rtol=1e-5, atol=2e-6)


def test_logits_that_are_no_numbers_give_statistics_that_are_none() -> None:
    numbers = accumulators.next_token_numbers(torch.tensor([[0.0, float("nan"), 1.0]]), torch.tensor([0]))
    assert numbers.isnan().any()


def test_scores_that_are_changed_in_place_afterwards_count_as_they_were(model: Any) -> None:
    def double(_recorder: Recorder, scores: Tensor) -> Tensor:
        return scores.mul_(2)

    (_, (expected,), _), (_, (found,), _) = generate(model, [PROMPT]), generate(model, [PROMPT], look=double)
    assert found.statistics == expected.statistics
