"""BatchedModel: concurrent requests share passes, and each gets the answer of a single run."""

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from ilis_guard.concurrency.cancellation import CancelToken
from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.errors import BudgetError, ClientDisconnected, ModelError, PromptTooLongError, SignatureError
from ilis_guard.models import StepwiseModel, batching
from ilis_guard.models.batching import BatchedModel
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Generation, Message
from tests.watching import watch

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = pytest.mark.usefixtures("real_model")

Ask = Callable[..., list[Message]]
Agree = Callable[..., None]
WORDS = ["stop", "short", "long", "tool", "toolfirst", "line", "pause", "forever"]
KINDS = ["generate", "proceed", "refuse", "stream", "leave", "deadline"]
LONG_ENOUGH = 60.0
"""Seconds after which a test that waits has failed."""


class Gate:
    """Counts the passes of a model, and holds chosen ones up."""

    def __init__(self, model: LocalModel) -> None:
        self.shapes: list[tuple[int, int]] = []
        """Rows and tokens of each pass."""
        self._reached: dict[int, threading.Event] = {}
        self._opened: dict[int, threading.Event] = {}
        self._handle = watch(model._model.get_input_embeddings(), self._passed)

    @property
    def batches(self) -> list[int]:
        """Rows of each batch; a prompt has three tokens at least."""
        return [rows for rows, tokens in self.shapes if tokens > 1]

    def close(self, number: int) -> None:
        self._reached[number], self._opened[number] = threading.Event(), threading.Event()

    def wait_for(self, number: int) -> None:
        assert self._reached[number].wait(LONG_ENOUGH)

    def open(self, number: int) -> None:
        self._opened[number].set()

    def take_away(self) -> None:
        self._handle.remove()
        for opened in self._opened.values():
            opened.set()

    def _passed(self, _module: object, inputs: Any, _output: object) -> None:
        self.shapes.append(tuple(inputs[0].shape))
        number = len(self.shapes)
        if number in self._opened:
            self._reached[number].set()
            assert self._opened[number].wait(LONG_ENOUGH)


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


def until(holds: Callable[[], bool]) -> None:
    given_up = time.monotonic() + LONG_ENOUGH
    while not holds():
        assert time.monotonic() < given_up
        time.sleep(0.001)


def together(
    model: BatchedModel, gate: Gate, pool: ThreadPoolExecutor, ask: Ask, calls: Sequence[Callable[[], Any]]
) -> list[Future[Any]]:
    """Begin calls that gather while the model is busy with another answer, of one pass, in their order."""
    busy_with = len(gate.shapes) + 1
    gate.close(busy_with)
    first = pool.submit(model.generate, ask("stop"))
    gate.wait_for(busy_with)
    futures = []
    for number, call in enumerate(calls, start=1):
        futures.append(pool.submit(call))
        until(lambda number=number: len(model._waiting) == number)  # type: ignore[misc]  # a lambda's default
    gate.open(busy_with)
    assert first.result(LONG_ENOUGH).text == ""
    return futures


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
    # The template adds two words, "short" is the third.
    assert [shape for shape in gate.shapes if shape[1] > 1] == [(1, 3), (3, 303), (3, 10), (1, 11)]


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


@pytest.mark.parametrize("word", WORDS)
def test_a_streams_tokens_are_its_text_and_its_end_that_of_a_plain_call(
    word: str, tiny: LocalModel, batched: BatchedModel, ask: Ask, agree: Agree
) -> None:
    steps = list(batched.stream(ask(word)))
    expected = tiny.generate(ask(word))
    agree(steps[-1].generation, expected)
    assert "".join(step.token for step in steps) == expected.text
    assert set(steps[0].generation.signatures) == {"prompt"}
    assert all(step.generation.finish_reason is None for step in steps[:-1])


def test_streamed_step_equals_a_reading_of_the_text_so_far(tiny: LocalModel, batched: BatchedModel, ask: Ask) -> None:
    for step in list(batched.stream(ask("long")))[1:-1]:
        read = tiny.read(ask("long"), step.generation.token_ids)
        assert step.generation.token_ids == read.token_ids
        for position, signature in read.signatures.items():
            assert step.generation.signatures[position] == pytest.approx(signature, rel=1e-4, abs=1e-6)


def test_slow_consumer_gets_missed_tokens_in_one_step_and_stops_nobody(
    tiny: LocalModel, batched: BatchedModel, gate: Gate, pool: ThreadPoolExecutor, ask: Ask, agree: Agree
) -> None:
    stream = batched.stream(ask("word1 long"))
    first, other = together(batched, gate, pool, ask, [lambda: next(stream), lambda: batched.generate(ask("forever"))])
    assert first.result(LONG_ENOUGH).token == ""
    agree(other.result(LONG_ENOUGH), tiny.generate(ask("forever")))
    # The other's answer is the longer one, so this one's has come too.
    (rest,) = list(stream)
    assert rest.token == "one two three four five"
    agree(rest.generation, tiny.generate(ask("word1 long")))


@pytest.mark.parametrize("leave", ["close", "drop"])
def test_a_stream_that_is_left_leaves_its_batch_at_the_next_token(
    leave: str, batched: BatchedModel, gate: Gate, ask: Ask
) -> None:
    gate.close(3)
    stream: Any = batched.stream(ask("forever"))
    next(stream)
    gate.wait_for(3)
    if leave == "close":
        stream.close()
    del stream
    gc.collect()
    gate.open(3)
    until(lambda: not batched._is_working)
    assert len(gate.shapes) == 3


def test_a_stream_that_was_never_started_asks_for_nothing(batched: BatchedModel, gate: Gate, ask: Ask) -> None:
    batched.stream(ask("long")).close()
    assert gate.shapes == []


def test_two_streams_in_one_thread_dont_wait_for_one_another(
    tiny: LocalModel, batched: BatchedModel, ask: Ask, agree: Agree
) -> None:
    one, two = batched.stream(ask("long")), batched.stream(ask("word1 word2 forever"))
    next(one)
    next(two)
    agree(list(two)[-1].generation, tiny.generate(ask("word1 word2 forever")))
    agree(list(one)[-1].generation, tiny.generate(ask("long")))


def test_a_request_that_cant_be_put_to_the_model_hurts_nobody(
    make_tiny: Callable[..., "TinyFolder"], pool: ThreadPoolExecutor, ask: Ask, agree: Agree
) -> None:
    refusing = "{% if turn.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    template = "{% for turn in messages %}" + refusing + " {{ turn.content }}{% endfor %}"
    local = make_tiny(chat_template=template).load()
    gate, model = Gate(local), BatchedModel(local, 8)
    refused = [Message(role="system", content="word1"), *ask("long")]
    with pytest.raises(PromptTooLongError, match="the model's context holds 64"):
        list(model.stream(ask("word1 " * 80)))
    gate.close(1)
    first = pool.submit(model.generate, ask("word1 word2 short"))
    gate.wait_for(1)
    other = pool.submit(model.generate, ask("word1 long"))
    with pytest.raises(PromptTooLongError, match="the model's context holds 64"):
        model.generate(ask("word1 " * 80))
    with pytest.raises(ModelError, match="chat template refuses"):
        model.generate(refused)
    gate.open(1)
    agree(first.result(LONG_ENOUGH), local.generate(ask("word1 word2 short")))
    agree(other.result(LONG_ENOUGH), local.generate(ask("word1 long")))


class OddError(Exception):
    """One that can't be made anew from its arguments."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (RuntimeError("no memory"), RuntimeError, "^no memory$"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (OddError(1, 2), RuntimeError, "^OddError: 1 and 2$"),
    ],
)
def test_error_in_a_pass_reaches_its_requests_and_no_later_ones(
    error: BaseException, kind: type[BaseException], says: str, request: pytest.FixtureRequest
) -> None:
    tiny, batched, gate, pool, ask, agree = (
        request.getfixturevalue(name) for name in ("tiny", "batched", "gate", "pool", "ask", "agree")
    )
    calls = [
        lambda: batched.generate(ask("long")),
        lambda: batched.generate(ask("word1 forever"), proceed=lambda _so_far: True),
        lambda: list(batched.stream(ask("forever"))),
    ]
    gate.close(3)
    futures = together(batched, gate, pool, ask, calls)
    gate.wait_for(3)
    waiting = pool.submit(batched.generate, ask("long"))
    until(lambda: len(batched._waiting) == 1)

    def fail(*_given: object) -> None:
        hook.remove()
        raise error

    hook = watch(tiny._model.model.layers[2].mlp, fail)
    gate.open(3)
    errors = [future.exception(LONG_ENOUGH) for future in futures]
    for found in errors:
        with pytest.raises(kind, match=says):
            raise found  # type: ignore[misc]  # None, which there is none of, couldn't be raised
    assert len({id(found) for found in errors}) == 3
    assert all(found is not error and found.__cause__ is error for found in errors if found is not None)
    agree(waiting.result(LONG_ENOUGH), tiny.generate(ask("long")))


def test_a_prompt_whose_activations_arent_finite_takes_nobody_along(
    tiny: LocalModel, batched: BatchedModel, gate: Gate, pool: ThreadPoolExecutor, ask: Ask, agree: Agree
) -> None:
    bad = tiny.text_tokens("tool")[0]

    def spoil(_module: object, inputs: Any, output: Any) -> Any:
        return output.masked_fill((inputs[0] == bad)[..., None], float("nan"))

    prompts = [ask("long"), ask("tool"), ask("word1 forever")]
    spoilt = watch(tiny._model.get_input_embeddings(), spoil)
    try:
        calls = [partial(batched.generate, prompt) for prompt in prompts]
        streamed = lambda: list(batched.stream(ask("forever")))[-1].generation  # noqa: E731 - it stands in a list of calls
        good, failed, other, stream = together(batched, gate, pool, ask, [*calls, streamed])
        assert isinstance(failed.exception(LONG_ENOUGH), SignatureError)
        found = [future.result(LONG_ENOUGH) for future in (good, other, stream)]
    finally:
        spoilt.remove()
    assert gate.batches == [1, 4, 1, 1, 1, 1]
    for prompt, generation in zip([prompts[0], prompts[2], ask("forever")], found, strict=True):
        agree(generation, tiny.generate(prompt))


def test_nothing_is_left_of_a_model_that_was_dropped(tiny: LocalModel, pool: ThreadPoolExecutor, ask: Ask) -> None:
    model = BatchedModel(tiny, 4)
    for future in [pool.submit(model.generate, ask(word)) for word in WORDS]:
        future.result(LONG_ENOUGH)
    dropped = weakref.ref(model)
    del model, future
    until(lambda: gc.collect() >= 0 and dropped() is None)
    until(lambda: all(thread.name != "ilis-guard-batch" for thread in threading.enumerate()))


@pytest.mark.usefixtures("process")
def test_the_interpreter_ends_while_a_batch_is_computed(tiny_folder: "TinyFolder") -> None:
    program = f"""
import threading, time
from ilis_guard.models.batching import BatchedModel
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Message
from torch.nn.modules.module import register_module_forward_hook
local = LocalModel.load({str(tiny_folder.path)!r}, max_new_tokens=50)
model = BatchedModel(local, 4)
passes = []
def passed(module, *_):
    if module is local._model.get_input_embeddings():
        passes.append(1)
        time.sleep(0.01)
passed.__module__ = "ilis_guard.testing"  # a stranger's hook ends the model's answers
register_module_forward_hook(passed)
def forever():
    while True:
        model.generate([Message(role="user", content="forever")])
for _ in range(3):
    threading.Thread(target=forever, daemon=True).start()
while len(passes) < 60:
    time.sleep(0.01)
print("computing")
"""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "computing\n"), ended.stderr[-2000:]
    assert "Traceback" not in ended.stderr


def test_logits_processors_ignore_the_padding(make_tiny: Callable[..., "TinyFolder"], ask: Ask, agree: Agree) -> None:
    # Without a padding token of its own a tokenizer would pad with the end token, which would then be penalised.
    model = make_tiny(pad_token=None).load(decoding={"repetition_penalty": 1.8, "min_new_tokens": 2})
    prompts = [ask("word1 word2 word3 word4 long"), ask("short"), ask("word1 tool")]
    for found, prompt in zip(model.generate_batch(prompts), prompts, strict=True):
        agree(found, model.generate(prompt))


def test_rows_are_sampled_each_for_itself(
    tiny: LocalModel, tiny_folder: "TinyFolder", pool: ThreadPoolExecutor, ask: Ask
) -> None:
    model = BatchedModel(tiny_folder.load(decoding={"do_sample": True, "temperature": 30.0, "min_new_tokens": 2}), 8)
    found = list(pool.map(model.generate, [ask("long")] * 8))
    assert len({generation.token_ids for generation in found}) > 1
    for generation in found:
        # Each one's numbers are those of its own tokens.
        assert generation.finish_reason is not None
        read = tiny.read(ask("long"), generation.token_ids, finish_reason=generation.finish_reason)
        assert read.signatures["mean"] == pytest.approx(generation.signatures["mean"], rel=1e-4, abs=1e-6)


REQUESTS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(WORDS), st.sampled_from(KINDS)), min_size=1, max_size=24
)


@pytest.fixture(scope="module")
def alone(tiny: LocalModel) -> Callable[[str], Generation]:
    found: dict[str, Generation] = {}

    def generate(prompt: str) -> Generation:
        if prompt not in found:
            found[prompt] = tiny.generate([Message(role="user", content=prompt)])
        return found[prompt]

    return generate


@given(requests=REQUESTS, size=st.integers(1, 9), threads=st.integers(1, 12))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_never_mix(
    requests: list[tuple[int, str, str]],
    size: int,
    threads: int,
    tiny: LocalModel,
    alone: Callable[[str], Generation],
    ask: Ask,
    agree: Agree,
) -> None:
    model = BatchedModel(tiny, size)

    def call(request: tuple[int, str, str]) -> None:
        words, word, kind = request
        prompt = "word5 " * words + word
        expected = alone(prompt)
        if kind == "refuse":
            stopped = model.generate(ask(prompt), proceed=lambda _: False)
            assert (stopped.text, stopped.prompt_tokens) == ("", expected.prompt_tokens)
            assert stopped.signatures["prompt"] == pytest.approx(expected.signatures["prompt"], rel=1e-4, abs=1e-6)
        elif kind == "leave":
            stream = model.stream(ask(prompt))
            shown = "".join(step.token for step in islice(stream, words % 5))
            stream.close()
            assert expected.text.startswith(shown)
        elif kind == "stream":
            steps = list(model.stream(ask(prompt)))
            assert "".join(step.token for step in steps) == expected.text
            agree(steps[-1].generation, expected)
        elif kind == "proceed":
            agree(model.generate(ask(prompt), proceed=lambda _: True), expected)
        else:
            deadline = Deadline.after(3600, since=time.monotonic()) if kind == "deadline" else None
            agree(model.generate(ask(prompt), deadline=deadline), expected)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, requests))
    until(lambda: not model._is_working)
    assert (model._waiting, model._under_way) == ([], 0)


@pytest.mark.parametrize("precision", ["full", "nf4"])
def test_batched_rows_of_a_real_model_equal_single_runs(
    precision: str,
    request: pytest.FixtureRequest,
    pool: ThreadPoolExecutor,
    ask: Ask,
    agree: Agree,
    answer_once: Callable[[LocalModel, str], Generation],
) -> None:
    local: LocalModel = request.getfixturevalue(f"smollm2_{precision}")
    model = BatchedModel(local, 8)
    questions = [
        "What is the capital of Norway?",
        "What is the capital of Kenya?",
        "What is 2 + 2?",
        "Name the city in which one finds the Eiffel Tower, which was built for the World's Fair of 1889.",
    ]
    expected = [answer_once(local, question) for question in questions]
    for found, alone in zip(pool.map(model.generate, map(ask, questions)), expected, strict=True):
        agree(found, alone, rel=1e-3)
