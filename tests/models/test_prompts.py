from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from transformers import AutoTokenizer

from ilis_guard.errors import ModelError
from ilis_guard.models.local import LocalModel
from ilis_guard.models.prompts import PromptTemplate
from ilis_guard.types import Message

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = pytest.mark.usefixtures("real_model")

MakeTiny = Callable[..., "TinyFolder"]
PICKY = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn, please') }}{% endif %}x"


def talk(*turns: tuple[str, str]) -> list[Message]:
    return [Message(role=role, content=content) for role, content in turns]  # type: ignore[arg-type]


def rendered(folder: "TinyFolder", text: str, messages: list[Message]) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder.path)
    return PromptTemplate(text=text, chat_template=tokenizer.chat_template).render(messages, tokenizer)


def test_the_wording_goes_around_the_last_turn_only(tiny_folder: "TinyFolder") -> None:
    messages = talk(("system", "be brief"), ("user", "one"), ("assistant", "two"), ("user", "three"))
    assert rendered(tiny_folder, "now: {question}!", messages) == (
        "<bos> <system> be brief <user> one <assistant> two <user> now: three!"
    )


@pytest.mark.parametrize(
    "content", ["{question}", "{question} {question}", "{0} {} {{x}} %s", "{{ bos_token }}", "a{b"]
)
def test_the_users_braces_are_text(content: str, tiny_folder: "TinyFolder", make_tiny: MakeTiny) -> None:
    messages = talk(("user", content))
    assert rendered(tiny_folder, "Q: {question} A:", messages) == f"<bos> <user> Q: {content} A:"
    assert rendered(make_tiny(chat_template=None), "Q: {question} A:", messages) == f"Q: {content} A:"


def test_an_earlier_turns_placeholder_is_text(tiny_folder: "TinyFolder") -> None:
    messages = talk(("user", "{question}"), ("assistant", "eh?"), ("user", "again"))
    assert rendered(tiny_folder, "{question}", messages) == "<bos> <user> {question} <assistant> eh? <user> again"


def test_a_base_models_braces_in_the_wording_are_text(make_tiny: MakeTiny) -> None:
    assert rendered(make_tiny(chat_template=None), "f(x) = {x} {question}", talk(("user", "g"))) == "f(x) = {x} g"


def test_a_chat_prompt_starts_with_one_beginning_of_text(tiny: LocalModel, tiny_folder: "TinyFolder") -> None:
    inputs = tiny.prompt_tokens(talk(("user", "word1")))
    assert inputs == [tiny_folder.ids[token] for token in ("<bos>", "<user>", "word1")]


def test_a_base_prompt_starts_with_one_beginning_of_text(make_tiny: MakeTiny) -> None:
    folder = make_tiny(chat_template=None)
    inputs = folder.load(prompt="word2 {question}").prompt_tokens(talk(("user", "word1")))
    assert inputs == [folder.ids[token] for token in ("<bos>", "word2", "word1")]


@pytest.mark.parametrize(("text", "times"), [("no place", 0), ("{question} and {question}", 2), ("", 0)])
def test_a_wording_must_hold_the_question_once(text: str, times: int, tiny_folder: "TinyFolder") -> None:
    with pytest.raises(ModelError, match=rf"exactly once, got {times} times"):
        tiny_folder.load(prompt=text)


def test_a_base_model_without_a_wording_is_refused(make_tiny: MakeTiny) -> None:
    with pytest.raises(ModelError, match=r"this is a base model .*no chat template.* worked"):
        make_tiny(chat_template=None).load(prompt="{question}")


def test_a_turn_that_the_chat_template_refuses_is_a_model_error(make_tiny: MakeTiny) -> None:
    model = make_tiny(chat_template=PICKY).load()
    assert model.generate(talk(("user", "word1"))).tokens
    with pytest.raises(ModelError, match=r"refuses a conversation of \['system', 'user'\] .TemplateError.") as caught:
        model.generate(talk(("system", "secret words"), ("user", "word1")))
    assert "secret" not in str(caught.value)


def test_the_digest_tells_wordings_and_chat_templates_apart() -> None:
    templates = [
        PromptTemplate(text="a {question}"),
        PromptTemplate(text="b {question}"),
        PromptTemplate(text="a {question}", chat_template="x"),
        PromptTemplate(text="a {question}", chat_template="y"),
    ]
    assert len({template.digest for template in templates}) == 4
    assert templates[0].digest == PromptTemplate(text="a {question}").digest
