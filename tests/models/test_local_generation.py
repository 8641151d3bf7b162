import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from numpy.testing import assert_array_equal
from structlog.testing import capture_logs
from transformers import AutoModelForCausalLM

from ilis_guard.errors import ModelError, PromptTooLongError, SignatureError
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Generation, Message
from tests.watching import watch

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = pytest.mark.usefixtures("real_model")

Ask = Callable[..., list[Message]]
MakeTiny = Callable[..., "TinyFolder"]
WORDS = ["stop", "short", "long", "tool", "toolfirst", "line", "pause", "forever"]


def hooks(model: LocalModel) -> int:
    return sum(len(module._forward_hooks) for module in model._model.modules())


def passes(model: LocalModel, call: Callable[[], object]) -> list[dict[str, Any]]:
    """The keyword arguments of every forward pass that a call makes."""
    seen: list[dict[str, Any]] = []
    hook = watch(model._model, lambda _module, _inputs, arguments, _output: seen.append(arguments), with_kwargs=True)
    try:
        call()
    finally:
        hook.remove()
    return seen


@pytest.mark.parametrize("word", WORDS)
def test_tapping_doesnt_change_the_text(word: str, tiny: LocalModel, ask: Ask) -> None:
    assert tiny.generate(ask(word)).text == tiny.generate_bare(ask(word))


@pytest.mark.parametrize(("word", "count"), [("stop", 1), ("short", 2), ("long", 6), ("forever", 8)])
def test_a_guarded_answer_takes_exactly_the_passes_of_a_bare_one(
    word: str, count: int, tiny: LocalModel, ask: Ask
) -> None:
    bare = passes(tiny, lambda: tiny.generate_bare(ask(word)))
    tapped = passes(tiny, lambda: tiny.generate(ask(word)))
    assert len(tapped) == len(bare) == count
    # The first reads the prompt (three tokens), each later one a single token.
    assert [one["input_ids"].shape[1] for one in tapped] == [3] + [1] * (count - 1)


def test_hidden_states_are_never_asked_for(tiny: LocalModel, ask: Ask) -> None:
    for arguments in passes(tiny, lambda: tiny.generate(ask("long"))):
        assert not arguments.get("output_hidden_states")
        assert not arguments.get("output_attentions")
    assert not tiny._model.config.output_hidden_states


def test_no_hook_stays_after_an_answer(tiny: LocalModel, ask: Ask) -> None:
    tiny.generate(ask("long"))
    assert hooks(tiny) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_weight_names_its_layer_and_leaves_no_hook(bad: float, make_tiny: MakeTiny, ask: Ask) -> None:
    def spoil(network: Any) -> None:
        network.model.layers[1].mlp.down_proj.weight.data[3, 3] = bad

    model = make_tiny(change=spoil).load(proof=False)  # the proof would notice
    with pytest.raises(SignatureError, match=r"activation of layer 1(, 2)? \(of 3, counted from 0\) isn't finite"):
        model.generate(ask("long"))
    assert hooks(model) == 0


def test_a_model_answers_again_after_an_error(make_tiny: MakeTiny, ask: Ask) -> None:
    model = make_tiny().load()
    expected = model.generate(ask("long"))

    def interrupt(*_arguments: object, **_keywords: object) -> None:
        raise KeyboardInterrupt

    hook = watch(model._model.model.layers[2].mlp, interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.generate(ask("long"))
    hook.remove()
    assert hooks(model) == 0
    found = model.generate(ask("long"))
    assert_array_equal(found.signatures["mean"], expected.signatures["mean"])
    assert found.statistics == expected.statistics


def test_the_checkpoints_own_decoding_is_ignored(make_tiny: MakeTiny, tiny: LocalModel, ask: Ask) -> None:
    decoding = {
        "do_sample": True,
        "temperature": 50.0,
        "repetition_penalty": 30.0,
        "no_repeat_ngram_size": 1,
        "min_new_tokens": 6,
        "max_new_tokens": 2,
        "suppress_tokens": [7],
        "eos_token_id": 2,
    }
    model = make_tiny(generation=decoding).load()
    for word in WORDS:
        found, expected = model.generate(ask(word)), tiny.generate(ask(word))
        assert (found.text, found.finish_reason) == (expected.text, expected.finish_reason)
        assert found.statistics == expected.statistics


def test_the_checkpoints_own_decoding_isnt_tried_out_in_place_of_ours(make_tiny: MakeTiny, ask: Ask) -> None:
    model = make_tiny(generation={"repetition_penalty": -2.0}).load(decoding={"no_repeat_ngram_size": 3})
    assert model.generate(ask("long")).text == "one two three four five"


def test_every_end_token_that_the_checkpoint_names_ends_an_answer(make_tiny: MakeTiny, ask: Ask) -> None:
    model = make_tiny(generation={"eos_token_id": [2, 11]}).load()  # 11 is "three"
    found = model.generate(ask("long"))
    assert (found.text, found.tokens, found.finish_reason) == ("one two", 2, "stop")


@pytest.mark.parametrize("words", [1, 20])
def test_prompt_without_room_for_the_answer_is_refused_with_both_lengths(
    words: int, make_tiny: MakeTiny, ask: Ask
) -> None:
    prompt = " ".join(["word1"] * words)
    length = words + 2  # the template writes <bos> and <user>
    fits = make_tiny(context=length + 8).load()
    assert fits.generate(ask(prompt)).prompt_tokens == length
    tight = make_tiny(context=length + 7).load()
    with pytest.raises(PromptTooLongError, match=rf"has {length} tokens .* have 8; .* holds {length + 7}") as caught:
        tight.generate(ask(prompt))
    assert "word1" not in str(caught.value)
    assert not caught.value.is_retryable


def test_the_longest_row_of_a_batch_counts(make_tiny: MakeTiny, ask: Ask) -> None:
    with pytest.raises(PromptTooLongError, match="has 12 tokens"):
        make_tiny(context=19).load().generate_batch([ask("short"), ask(" ".join(["word1"] * 10))])


def test_threads_on_one_model_never_mix(tiny: LocalModel, ask: Ask) -> None:
    prompts = ["word1 long", "short", "word2 word3 forever", "tool", "stop", "word4 pause"] * 3
    sequential = [tiny.generate(ask(prompt)) for prompt in prompts]
    with ThreadPoolExecutor(max_workers=2) as threads:
        together = list(threads.map(lambda prompt: tiny.generate(ask(prompt)), prompts))
    for found, expected in zip(together, sequential, strict=True):
        assert same(found, expected)


def same(found: Generation, expected: Generation) -> bool:
    for position, signature in expected.signatures.items():
        assert_array_equal(found.signatures[position], signature)
    return (found.text, found.statistics, found.tokens) == (expected.text, expected.statistics, expected.tokens)


def test_tokenizer_without_padding_token_serves_prompts_and_batches(
    make_tiny: MakeTiny, tiny: LocalModel, ask: Ask, agree: Callable[..., None]
) -> None:
    model = make_tiny(pad_token=None).load()
    prompts = [ask("word1 word2 long"), ask("short")]
    expected = [tiny.generate(prompt) for prompt in prompts]
    agree(model.generate(prompts[0]), expected[0])
    for found, wanted in zip(model.generate_batch(prompts), expected, strict=True):
        agree(found, wanted)


def test_a_model_without_an_end_token_is_refused(make_tiny: MakeTiny) -> None:
    folder = make_tiny(generation={}, change=lambda network: setattr(network.config, "eos_token_id", None))
    config = (folder.path / "tokenizer_config.json").read_text().replace('"eos_token": "<eos>",', "")
    (folder.path / "tokenizer_config.json").write_text(config)
    with pytest.raises(ModelError, match="neither the model nor its tokenizer names an end-of-sequence token"):
        folder.load()


@pytest.mark.parametrize("name", ["no/such-model-anywhere", "/no/such/folder"])
def test_a_model_that_isnt_there_is_an_error_with_its_name(name: str) -> None:
    with pytest.raises(ModelError, match=f"the model '{name}' can't be loaded"):
        LocalModel.load(name)


def test_loading_logs_model_precision_and_fingerprint(tiny_folder: "TinyFolder") -> None:
    with capture_logs() as events:
        model = tiny_folder.load()
    loaded = [event for event in events if event["event"] == "ilis_guard.model.loaded"]
    assert len(loaded) == 1
    assert loaded[0]["model"] == str(tiny_folder.path)
    assert (loaded[0]["precision"], loaded[0]["layers"]) == ("full", 3)
    assert loaded[0]["fingerprint"] == str(model.fingerprint)


def test_full_precision_is_float32_on_a_processor(tiny: LocalModel) -> None:
    if torch.cuda.is_available():
        pytest.skip("on CUDA models compute in bfloat16")
    assert {parameter.dtype for parameter in tiny._model.parameters()} == {torch.float32}


def test_models_are_built_one_at_a_time(
    tiny_folder: "TinyFolder", tiny: LocalModel, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two threads inside from_pretrained at once leave weights on the meta device (transformers 5.23).
    building: list[int] = []
    together: list[int] = []
    build = AutoModelForCausalLM.from_pretrained

    def watched(*arguments: Any, **options: Any) -> Any:
        building.append(1)
        time.sleep(0.05)
        together.append(len(building))
        try:
            return build(*arguments, **options)
        finally:
            building.pop()

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    with ThreadPoolExecutor(4) as threads:
        models = list(threads.map(lambda _: tiny_folder.load(), range(4)))
    assert together == [1, 1, 1, 1]
    assert same(models[-1].generate(ask("long")), tiny.generate(ask("long")))
