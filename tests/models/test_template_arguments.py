"""Arguments of chat templates, from guard.yaml to the prompt."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from ilis_guard.config.guard_yaml import read_config
from ilis_guard.config.tiers import template_argument_problem
from ilis_guard.errors import ConfigError, ModelError
from ilis_guard.models.local import LocalModel
from ilis_guard.models.prompts import PromptTemplate
from tests.models.thinkers import ASK, HARMONY, QWEN, write_folder

HEAD = "version: 1\npolicy: default\ntiers:\n"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("qwen"), "qwen")


def prompt(folder: Path, **options: Any) -> str:
    model = LocalModel.load(str(folder), proof=False, **options)
    return str(model._tokenizer.decode(model.prompt_tokens(ASK)))


def test_a_prompt_is_made_with_them(qwen: Path, real_model: None) -> None:
    del real_model
    assert prompt(qwen).endswith("<|im_start|>assistant\n")
    assert prompt(qwen, chat_template_kwargs={"enable_thinking": True}).endswith("<|im_start|>assistant\n")
    assert prompt(qwen, chat_template_kwargs={"enable_thinking": False}).endswith("<think>\n\n</think>\n\n")


def test_a_fingerprint_holds_them_and_is_the_old_one_without() -> None:
    plain = PromptTemplate(chat_template=QWEN)
    assert PromptTemplate(chat_template=QWEN, chat_template_kwargs={}).digest == plain.digest == "5fb321843cd2a753"
    others = [
        PromptTemplate(chat_template=QWEN, chat_template_kwargs={"enable_thinking": value}).digest
        for value in (True, False, 1, 1.0, None, "x")
    ]
    assert len({plain.digest, *others}) == 7


def test_of_a_conversation_all_turns_are_rendered_with_them() -> None:
    harmony = PromptTemplate(chat_template=HARMONY, chat_template_kwargs={"reasoning_effort": "high"})
    assert harmony.digest != PromptTemplate(chat_template=HARMONY).digest


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"enable_thinkin": False}, r"reads no variable \['enable_thinkin'\].*it reads \['enable_thinking'\]"),
        ({"turn": "x"}, r"reads no variable \['turn'\]"),
        ({"enable_thinking": "no"}, "must be true or false, got the word 'no'"),
        ({"enable_thinking": "False"}, "must be true or false, got the word 'False'"),
        ({"enable_thinking": [False]}, "must be a JSON scalar, got a list"),
        ({"enable_thinking": float("nan")}, "must be a finite number, got nan"),
        ({"add_generation_prompt": False}, "is the guard's to set"),
        ({"messages": "x"}, "is the guard's to set"),
        ({"eos_token": "x"}, "is the guard's to set"),
        ({"enable thinking": False}, "is no name of a variable"),
    ],
)
def test_what_changes_nothing_or_too_much_is_refused(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelError, match=f"chat_template_kwargs.*{problem}|{problem}"):
        PromptTemplate(chat_template=QWEN, chat_template_kwargs=arguments)


def test_a_base_model_has_nothing_that_reads_them() -> None:
    with pytest.raises(ModelError, match=r"base model .*chat_template_kwargs, got \['enable_thinking'\]"):
        PromptTemplate(text="Q: {question} A:", chat_template_kwargs={"enable_thinking": False})


def test_whatever_transformers_passes_itself_is_the_guards() -> None:
    names = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"self", "kwargs"}
    assert [name for name in names if not template_argument_problem(name, None)] == []


@pytest.mark.parametrize("value", ["false", "true", "high", "3", "0.5", "null"])
def test_guard_yaml_takes_json_scalars(value: str, tmp_path: Path) -> None:
    path = tmp_path / "guard.yaml"
    path.write_text(f"{HEAD}  - {{name: a, model: org/m, chat_template_kwargs: {{effort: {value}}}}}\n")
    (tier,) = read_config(path).tiers
    expected = {"false": False, "true": True, "3": 3, "0.5": 0.5, "null": None}.get(value, value)
    assert tier.chat_template_kwargs == {"effort": expected}
    assert type(tier.chat_template_kwargs["effort"]) is type(expected)


@pytest.mark.parametrize(
    ("tier", "place", "words"),
    [
        (
            "model: m, chat_template_kwargs: {effort: no}",
            "4:",
            "chat_template_kwargs.effort: must be true or false, got the word 'no'",
        ),
        ("model: m, chat_template_kwargs: {effort: [1]}", "4:", "chat_template_kwargs.effort"),
        (
            "model: m, chat_template_kwargs: {tools: x}",
            "4:",
            "chat_template_kwargs.tools: is the guard's to set; take it out",
        ),
        (
            "remote: {chat_model: 'a:B'}, chat_template_kwargs: {effort: high}",
            "4:",
            "its provider applies the chat template",
        ),
    ],
)
def test_guard_yaml_names_the_place_of_what_is_wrong(tier: str, place: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "guard.yaml"
    path.write_text(f"{HEAD}  - {{name: a, {tier}}}\n")
    with pytest.raises(ConfigError) as refused:
        read_config(path)
    assert str(refused.value).startswith(f"{path}:{place}")
    assert words in str(refused.value)
