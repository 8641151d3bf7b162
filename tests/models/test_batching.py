"""BatchedModel: concurrent requests share passes, and each gets the answer of a single run."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from ilis_guard.concurrency.cancellation import CancelToken
from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.errors import BudgetError, ClientDisconnected, ModelError
from ilis_guard.models import StepwiseModel, batching
from ilis_guard.models.batching import BatchedModel
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Generation
from tests.models.batches import LONG_ENOUGH, WORDS, Agree, Ask, Gate, together, until

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = pytest.mark.usefixtures("real_model")


def test_batched_model_is_a_stepwise_model(tiny: LocalModel) -> None:
    model = BatchedModel(tiny, 4)
    assert isinstance(model, StepwiseModel)
    assert (model.fingerprint, model.prompt, model.max_new_tokens) == (
        tiny.fingerprint,
        tiny.prompt,
        tiny.max_new_tokens,
    )
    with pytest.raises(ModelError, match="a batch holds at least 1 request, got 0"):
        BatchedModel(tiny, 0)


@pytest.mark.parametrize(("size", "batches"), [(8, [1, 8]), (4, [1, 4, 4]), (3, [1, 3, 3, 2]), (1, [1] * 9)])
def test_requests_during_a_pass_share_the_next_passes(
    size: int, batches: list[int], tiny: LocalModel, gate: Gate, pool: ThreadPoolExecutor, ask: Ask, agree: Agree
) -> None:
    model = BatchedModel(tiny, size)
    prompts = [ask(f"{'word5 ' * (place % 4)}{word}") for place, word in enumerate(WORDS)]
    futures = together(model, gate, pool, ask, [partial(model.generate, prompt) for prompt in prompts])
    found = [future.result(LONG_ENOUGH) for future in futures]
    assert gate.batches == batches
    for prompt, generation in zip(prompts, found, strict=True):
        agree(generation, tiny.generate(prompt))


def test_a_request_alone_takes_the_passes_of_the_model_itself(
    tiny: LocalModel, batched: BatchedModel, gate: Gate, ask: Ask, agree: Agree
) -> None:
    for word in WORDS:
        expected, alone = tiny.generate(ask(word)), gate.shapes.copy()
        gate.shapes.clear()
        agree(batched.generate(ask(word)), expected)
        assert gate.shapes == alone
        gate.shapes.clear()


def test_repeated_requests_of_a_single_caller_start_at_once(
    batched: BatchedModel, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "GATHER_SHARE", 1e9)  # were anybody else waited for, this would hang
    assert [batched.generate(ask("short")).text for _ in range(3)] == ["Oslo"] * 3
    let_go(batched)


def test_batch_waits_for_callers_that_were_just_answered(
    tiny: LocalModel, gate: Gate, pool: ThreadPoolExecutor, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "GATHER_SHARE", 1e9)
    model = BatchedModel(tiny, 4)

    def three_times() -> None:
        for _ in range(3):
            model.generate(ask("word1 long"))

    for future in together(model, gate, pool, ask, [three_times] * 4):
        future.result(LONG_ENOUGH)
    assert gate.batches == [1, 4, 4, 4]
    let_go(model)


def let_go(model: BatchedModel) -> None:
    """End a wait for those who might ask again."""
    with model._changed:
        model._most_under_way = 0
        model._changed.notify_all()


def test_batches_hold_prompts_of_similar_length_and_the_first_in_the_queue(
    make_tiny: Callable[..., "TinyFolder"], pool: ThreadPoolExecutor, ask: Ask
) -> None:
    local = make_tiny(context=512).load()
    gate, model = Gate(local), BatchedModel(local, 3)
    lengths = [300, 5, 290, 6, 7, 180, 8]
    calls = [partial(model.generate, ask("word1 " * length + "short")) for length in lengths]
    futures = together(model, gate, pool, ask, calls)
    assert {future.result(LONG_ENOUGH).text for future in futures} == {"Oslo"}
    # The template adds two words, "short" is the third. What prompts have in common has a pass of its own.
    assert [shape for shape in gate.shapes if shape[1] > 1] == [(1, 3), (1, 182), (3, 303 - 182), (3, 10), (1, 11)]


def test_a_row_that_is_done_returns_while_others_go_on(
    batched: BatchedModel, gate: Gate, pool: ThreadPoolExecutor, ask: Ask
) -> None:
    gate.close(5)
    short, forever = together(
        batched, gate, pool, ask, [lambda: batched.generate(ask("short")), lambda: batched.generate(ask("forever"))]
    )
    assert short.result(LONG_ENOUGH).text == "Oslo"
    gate.wait_for(5)
    assert not forever.done()
    gate.open(5)
    assert forever.result(LONG_ENOUGH).tokens == 8


@pytest.mark.parametrize(
    ("decoding", "shapes"),
    [
        ({}, [(5, 3), (5, 1), (2, 1), (2, 1), (2, 1), (2, 1), (1, 1), (1, 1)]),
        # Of a cache that doesn't hold each row for itself, none can be taken out.
        ({"cache_implementation": "static"}, [(5, 3), *[(5, 1)] * 7]),
        ({"use_cache": False}, [(5, length) for length in range(3, 11)]),
    ],
)
def test_rows_that_are_done_arent_computed_along_for_long(
    decoding: dict[str, Any],
    shapes: list[tuple[int, int]],
    tiny: LocalModel,
    tiny_folder: "TinyFolder",
    ask: Ask,
    agree: Agree,
) -> None:
    local = tiny_folder.load(decoding=decoding)
    gate, words = Gate(local), ["short", "forever", "short", "long", "stop"]
    found = local.generate_batch([ask(word) for word in words])
    assert gate.shapes == shapes
    for word, generation in zip(words, found, strict=True):
        agree(generation, tiny.generate(ask(word)))


def test_min_new_tokens_counts_from_the_prompt_in_a_narrowed_batch(
    tiny_folder: "TinyFolder", ask: Ask, agree: Agree
) -> None:
    local = tiny_folder.load(decoding={"min_new_tokens": 4})
    prompts = [ask(f"{'word1 ' * place}{word}") for place, word in enumerate(["short", "long", "stop", "pause"])]
    for found, prompt in zip(local.generate_batch(prompts), prompts, strict=True):
        agree(found, local.generate(prompt))


def test_a_row_refused_at_its_prompt_returns_while_others_go_on(
    tiny: LocalModel, batched: BatchedModel, gate: Gate, pool: ThreadPoolExecutor, ask: Ask, agree: Agree
) -> None:
    asked: list[Generation] = []

    def refuse(so_far: Generation) -> bool:
        asked.append(so_far)
        return False

    gate.close(4)
    refused, proceeding, forever = together(
        batched,
        gate,
        pool,
        ask,
        [
            lambda: batched.generate(ask("word1 long"), proceed=refuse),
            lambda: batched.generate(ask("long"), proceed=lambda _so_far: True),
            lambda: batched.generate(ask("forever")),
        ],
    )
    stopped = refused.result(LONG_ENOUGH)
    assert asked == [stopped]
    assert (stopped.text, stopped.tokens, stopped.finish_reason, set(stopped.signatures)) == ("", 0, None, {"prompt"})
    gate.open(4)
    agree(stopped, tiny.generate(ask("word1 long"), proceed=lambda _so_far: False))
    agree(proceeding.result(LONG_ENOUGH), tiny.generate(ask("long")))
    agree(forever.result(LONG_ENOUGH), tiny.generate(ask("forever")))


def test_where_all_are_refused_at_their_prompts_no_token_is_computed(
    batched: BatchedModel, gate: Gate, pool: ThreadPoolExecutor, ask: Ask
) -> None:
    calls = [lambda: batched.generate(ask("word1 long"), proceed=lambda _so_far: False)] * 3
    for future in together(batched, gate, pool, ask, calls):
        assert future.result(LONG_ENOUGH).tokens == 0
    until(lambda: not batched._is_working)
    assert gate.shapes == [(1, 3), (3, 4)]


def test_an_error_in_asking_whether_to_proceed_is_its_callers_alone(
    tiny: LocalModel, batched: BatchedModel, gate: Gate, pool: ThreadPoolExecutor, ask: Ask, agree: Agree
) -> None:
    failing, other = together(
        batched,
        gate,
        pool,
        ask,
        [
            lambda: batched.generate(ask("long"), proceed=lambda _so_far: bool(1 / 0)),
            lambda: batched.generate(ask("long")),
        ],
    )
    with pytest.raises(ZeroDivisionError):
        failing.result(LONG_ENOUGH)
    agree(other.result(LONG_ENOUGH), tiny.generate(ask("long")))


def test_slow_proceed_callback_delays_no_other_request(
    tiny: LocalModel, batched: BatchedModel, gate: Gate, pool: ThreadPoolExecutor, ask: Ask, agree: Agree
) -> None:
    others_are_done = threading.Event()

    def thinks(_so_far: Generation) -> bool:
        return others_are_done.wait(LONG_ENOUGH)

    slow, other = together(
        batched,
        gate,
        pool,
        ask,
        [lambda: batched.generate(ask("short"), proceed=thinks), lambda: batched.generate(ask("forever"))],
    )
    agree(other.result(LONG_ENOUGH), tiny.generate(ask("forever")))
    others_are_done.set()
    agree(slow.result(LONG_ENOUGH), tiny.generate(ask("short")))


def test_a_row_whose_time_is_over_leaves_the_others_alone(
    tiny: LocalModel, batched: BatchedModel, gate: Gate, pool: ThreadPoolExecutor, ask: Ask, agree: Agree
) -> None:
    gate.close(3)
    late, other = together(
        batched,
        gate,
        pool,
        ask,
        [
            lambda: batched.generate(ask("long"), deadline=Deadline.after(0.2, since=time.monotonic())),
            lambda: batched.generate(ask("word1 forever")),
        ],
    )
    # The third pass is held up: who waited for it has returned all the same.
    with pytest.raises(BudgetError, match=r"the request's 0\.2 seconds are over"):
        late.result(LONG_ENOUGH)
    gate.open(3)
    agree(other.result(LONG_ENOUGH), tiny.generate(ask("word1 forever")))


def test_a_row_whose_caller_has_left_leaves_the_others_alone(
    tiny: LocalModel, batched: BatchedModel, gate: Gate, pool: ThreadPoolExecutor, ask: Ask, agree: Agree
) -> None:
    cancel_token = CancelToken()
    deadline = Deadline.after(None, since=time.monotonic(), cancel_token=cancel_token)
    gate.close(3)
    gone, other = together(
        batched,
        gate,
        pool,
        ask,
        [
            lambda: batched.generate(ask("forever"), deadline=deadline),
            lambda: batched.generate(ask("long")),
        ],
    )
    gate.wait_for(3)
    cancel_token.cancel()
    # The third pass is held up: who left it has returned all the same.
    with pytest.raises(ClientDisconnected):
        gone.result(LONG_ENOUGH)
    gate.open(3)
    agree(other.result(LONG_ENOUGH), tiny.generate(ask("long")))


def test_request_that_expires_in_the_queue_is_never_computed(
    batched: BatchedModel, gate: Gate, pool: ThreadPoolExecutor, ask: Ask
) -> None:
    gate.close(1)
    first = pool.submit(batched.generate, ask("short"))
    gate.wait_for(1)
    with pytest.raises(BudgetError, match=r"seconds are over; it left its batch"):
        batched.generate(ask("long"), deadline=Deadline.after(0.05, since=time.monotonic()))
    with pytest.raises(BudgetError, match=r"seconds are over$"):
        batched.generate(ask("long"), deadline=Deadline.after(0.0, since=time.monotonic()))
    gate.open(1)
    assert first.result(LONG_ENOUGH).text == "Oslo"
    until(lambda: not batched._is_working)
    assert gate.batches == [1]


def test_a_batch_that_everybody_left_ends_at_its_next_token(
    batched: BatchedModel, gate: Gate, pool: ThreadPoolExecutor, ask: Ask
) -> None:
    gate.close(4)

    def asks() -> None:
        batched.generate(ask("forever"), deadline=Deadline.after(0.2, since=time.monotonic()))

    for late in together(batched, gate, pool, ask, [asks, asks]):
        assert isinstance(late.exception(LONG_ENOUGH), BudgetError)
    gate.open(4)
    until(lambda: not batched._is_working)
    assert len(gate.shapes) <= 4


def test_the_seconds_of_an_answer_hold_its_waiting(
    batched: BatchedModel, gate: Gate, pool: ThreadPoolExecutor, ask: Ask
) -> None:
    gate.close(1)
    pool.submit(batched.generate, ask("stop"))
    gate.wait_for(1)
    waiting = pool.submit(batched.generate, ask("short"))
    until(lambda: len(batched._waiting) == 1)
    since = time.perf_counter()
    time.sleep(0.05)
    waited = time.perf_counter() - since
    gate.open(1)
    assert waiting.result(LONG_ENOUGH).seconds >= waited
