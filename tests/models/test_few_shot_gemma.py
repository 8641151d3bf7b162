"""A real base model, in the demo's own prompt, answers with a system message before a question and at a later turn."""

from pathlib import Path

import pytest

from ilis_guard.cascade.loading import load_local_model
from ilis_guard.config.guard_yaml import read_config
from ilis_guard.lab.demo import prepare
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Message

pytestmark = pytest.mark.usefixtures("real_model")

HELPFUL = Message(role="system", content="You are a helpful assistant.")
NORWAY = Message(role="user", content="What is the capital of Norway?")
OSLO = Message(role="assistant", content="Oslo")
FRANCE = Message(role="user", content="What is the capital of France?")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    return load_local_model(read_config(prepare(tmp_path_factory.mktemp("demo"))).tier("large"))


def test_a_conversation_is_the_prompt_with_further_examples(gemma: LocalModel, tmp_path: Path) -> None:
    examples, _, _ = read_config(prepare(tmp_path)).tier("large").prompt.partition("Question: {question}")
    text = (
        f"You are a helpful assistant.\n\n{examples}Question: What is the capital of Norway?\nAnswer: Oslo\n"
        "Question: What is the capital of France?\nAnswer:"
    )
    assert gemma.prompt_tokens([HELPFUL, NORWAY, OSLO, FRANCE]) == gemma.checkpoint.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("before", [(), (HELPFUL,), (NORWAY, OSLO), (HELPFUL, NORWAY, OSLO)])
def test_it_answers_as_if_asked_alone(gemma: LocalModel, before: tuple[Message, ...]) -> None:
    answer = gemma.generate([*before, FRANCE])
    assert answer.text == "Paris"
    assert answer.signatures["mean"].shape == (18, 18)
