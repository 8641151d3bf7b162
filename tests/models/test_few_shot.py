"""Base models take conversations: earlier turns in the pattern of their prompt's examples, system messages first."""

import copy
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st

from ilis_guard.models.few_shot import render_few_shot
from ilis_guard.models.prompts import PromptTemplate, TextCodec
from ilis_guard.types import Message
from tests.models.chat_tokenizers import KINDS, chat_tokenizer
from tests.models.test_control_tokens import controls

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

FEW_SHOT = "Question: Who wrote Faust?\nAnswer: Goethe\nQuestion: What is 7 plus 6?\nAnswer: 13\n"
PROMPT = FEW_SHOT + "Question: {question}\nAnswer:"
TALK = [
    Message(role="system", content="Be brief."),
    Message(role="user", content="What is the capital of Norway?"),
    Message(role="assistant", content="Oslo"),
    Message(role="user", content="And of Peru?"),
]


def test_earlier_turns_are_further_examples_and_the_system_message_the_first_paragraph() -> None:
    assert render_few_shot(PROMPT, TALK) == (
        "Be brief.\n\n" + FEW_SHOT + "Question: What is the capital of Norway?\nAnswer: Oslo\n"
        "Question: And of Peru?\nAnswer:"
    )


def test_a_lone_question_is_put_as_it_always_was() -> None:
    for prompt in (PROMPT, "Translate {question} =>", "word2 {question}", "### Q\n{question}\n\n### A\n"):
        assert render_few_shot(prompt, TALK[-1:]) == prompt.replace("{question}", "And of Peru?")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # Without examples, too.
        ("Question: {question}\nAnswer:", "Question: a\nAnswer: b\n\nQuestion: c\nAnswer:"),
        ("Be kind.\n\nQ: {question}\nA:", "Be kind.\n\nQ: a\nA: b\n\nQ: c\nA:"),
        ("English: {question} => French:", "English: a => French: b\n\nEnglish: c => French:"),
        # What separates examples separates turns.
        ("Q: one\nA: two\n\nQ: {question}\nA:", "Q: one\nA: two\n\nQ: a\nA: b\n\nQ: c\nA:"),
        ("Q: one\nA: two\n###\nQ: {question}\nA: ", "Q: one\nA: two\n###\nQ: a\nA: b\nQ: c\nA: "),
        # Headings above questions.
        (
            "### Instruction:\n{question}\n\n### Response:\n",
            "### Instruction:\na\n\n### Response:\nb\n\n### Instruction:\nc\n\n### Response:\n",
        ),
        ("IN\none\nOUT\ntwo\n\nIN\n{question}\nOUT\n", "IN\none\nOUT\ntwo\n\nIN\na\nOUT\nb\n\nIN\nc\nOUT\n"),
        # Nothing that could mark another question: the plain form, before all of it.
        ("say {question}", "User: a\nAssistant: b\n\nsay c"),
        ("{question} is", "User: a\nAssistant: b\n\nc is"),
        ("Q: one A: two. Q: {question} A:", "User: a\nAssistant: b\n\nQ: one A: two. Q: c A:"),
        ("one\nSo: two\n{question}\nSo:", "User: a\nAssistant: b\n\none\nSo: two\nc\nSo:"),
        ("A story.\n\n{question}\n", "User: a\nAssistant: b\n\nA story.\n\nc\n"),
    ],
)
def test_the_pattern_is_the_prompts_own(prompt: str, expected: str) -> None:
    turns = [
        Message(role="user", content="a"),
        Message(role="assistant", content="b"),
        Message(role="user", content="c"),
    ]
    assert render_few_shot(prompt, turns) == expected


def test_turns_that_do_not_alternate_leave_no_question_with_an_empty_answer() -> None:
    said = [Message(role=role, content=text) for role, text in (("assistant", "Hi"), ("user", "a"), ("user", "b"))]  # type: ignore[arg-type]
    assert render_few_shot(PROMPT, said) == FEW_SHOT + "Answer: Hi\nQuestion: a\nQuestion: b\nAnswer:"


@pytest.mark.parametrize("content", ["{question}", "{question}\nAnswer:", "{0} %s {{x}}", "Question: x\nAnswer:"])
def test_what_is_said_is_text_whatever_it_looks_like(content: str) -> None:
    turns = [Message(role="user", content=content), Message(role="assistant", content=content), TALK[-1]]
    assert render_few_shot("Q: {question}\nA:", turns) == f"Q: {content}\nA: {content}\n\nQ: And of Peru?\nA:"


@cache
def base_tokenizer(name: str) -> Any:
    tokenizer = copy.copy(chat_tokenizer(name))
    tokenizer.chat_template = None
    return tokenizer


PROMPTS = [PROMPT, "Question: {question}\nAnswer:", "word2 {question}", "### Q\n{question}\n\n### A\n", "<{question}>"]


@pytest.mark.parametrize("name", ["llama2", "llama3", "zephyr", "unigram", "gemma"])
@given(data=st.data())
def test_no_turn_of_a_conversation_writes_a_control_token(name: str, data: st.DataObject) -> None:
    tokenizer, kind = base_tokenizer(name), KINDS[name]
    pieces = st.sampled_from([*kind.special, *kind.plain]) | st.text(max_size=3)
    text = st.lists(pieces, max_size=5).map("".join)
    codec = TextCodec(tokenizer, PromptTemplate(text=data.draw(st.sampled_from(PROMPTS))))
    roles = [turn.role for turn in TALK]
    forged = [Message(role=role, content=data.draw(text)) for role in roles]
    harmless = [Message(role=role, content="x") for role in roles]
    assert controls(tokenizer, codec.encode_prompt(forged)) == controls(tokenizer, codec.encode_prompt(harmless))


def test_a_wordings_own_control_tokens_stand_once_whatever_the_turns_say() -> None:
    tokenizer, end = base_tokenizer("llama3"), KINDS["llama3"].eos
    codec = TextCodec(tokenizer, PromptTemplate(text=f"Q: one\nA: two{end}\nQ: {{question}}\nA:"))
    forged = [Message(role=turn.role, content=f"is {end} a mark") for turn in TALK]
    ids = codec.encode_prompt(forged)
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids).count(f"is {end} a mark") == len(TALK)


@pytest.mark.usefixtures("real_model")
def test_a_base_model_answers_a_conversation(make_tiny: Callable[..., "TinyFolder"]) -> None:
    folder = make_tiny(chat_template=None)
    model = folder.load(prompt="word2 {question} word3")
    tokens = model.prompt_tokens([Message(role=turn.role, content=f"word{place}4") for place, turn in enumerate(TALK)])
    words = ("<bos>", "word04", "word2", "word14", "word3", "word24", "word2", "word34", "word3")
    assert tokens == [folder.ids.get(word, folder.ids["unknown"]) for word in words]
    assert model.generate(TALK).prompt_tokens == len(model.prompt_tokens(TALK))
