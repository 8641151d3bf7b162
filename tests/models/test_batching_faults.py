"""Faults in a batch: they are their own requests' alone, and nothing is left behind."""

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from ilis_guard.errors import ModelError, PromptTooLongError, SignatureError
from ilis_guard.models.batching import BatchedModel
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Message
from tests.models.batches import LONG_ENOUGH, WORDS, Agree, Ask, Gate, together, until
from tests.watching import watch

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = pytest.mark.usefixtures("real_model")


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
