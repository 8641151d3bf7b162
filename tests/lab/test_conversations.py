"""Question lines with `messages`: what is sent, how it is read, grouped and graded."""

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import convert_to_messages

from ilis_guard.errors import QuestionError
from ilis_guard.lab.conversations import read_conversation
from ilis_guard.lab.grading import is_correct
from ilis_guard.lab.harvest import group_names, questions_digest
from ilis_guard.lab.questions import Question, read_questions, write_questions
from ilis_guard.types import Message, Wording
from ilis_guard_langchain.messages import transcribe

SYSTEM: dict[str, Any] = {"role": "system", "content": "Today is Monday."}
ASKED = {"role": "user", "content": "What is the capital of Norway?"}
TOLD = {"role": "assistant", "content": "Oslo."}
NEXT = {"role": "user", "content": "And of Peru?"}
TALK = [SYSTEM, ASKED, TOLD, NEXT]
CALLS: list[dict[str, Any]] = [
    SYSTEM,
    {"role": "user", "content": "How is the weather in Oslo?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
            {"id": "c2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
        ],
    },
    {"role": "tool", "name": "weather", "tool_call_id": "c1", "content": "12 degrees"},
    {"role": "tool", "name": "time", "tool_call_id": "c2", "content": "noon"},
]


def question(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": "q1", "messages": list(messages or TALK), "answers": ["Lima"], **fields}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "questions.jsonl"


def read(path: Path, *lines: dict[str, Any]) -> list[Question]:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_questions(path)


def test_the_words_that_are_sent_are_those_of_the_line(path: Path) -> None:
    (asked,) = read(path, question())
    assert asked.conversation() == tuple(Message(role=turn["role"], content=turn["content"]) for turn in TALK)
    assert asked.prompt() == asked.question == "And of Peru?"


def test_a_plain_question_is_a_conversation_of_one_turn(path: Path) -> None:
    (asked,) = read(path, {"id": "q", "question": "Why?", "context": "So.", "answers": ["x"]})
    assert asked.conversation() == (Message(role="user", content="So.\n\nWhy?"),)


def test_written_conversations_are_read_back_and_have_a_digest_of_all_their_turns(path: Path) -> None:
    asked = read(path, question(), question({**ASKED, "content": "Hi"}, TOLD, NEXT, id="q2"))
    write_questions(path, asked)
    assert read_questions(path) == asked
    assert '"question"' not in path.read_text()
    others = read(path, question(), question({**ASKED, "content": "Ho"}, TOLD, NEXT, id="q2"))
    assert questions_digest(asked) != questions_digest(others)


def test_thinking_is_left_out_of_earlier_answers_as_everywhere(path: Path) -> None:
    (asked,) = read(path, question(ASKED, {"role": "assistant", "content": "<think>hm</think>Oslo."}, NEXT))
    assert asked.conversation()[1].content == "Oslo."


def test_a_developers_message_is_a_systems_and_text_may_come_in_parts() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "Where "}, {"type": "text", "text": "is Oslo?"}]}
    assert read_conversation([{**SYSTEM, "role": "developer"}, parts]) == (
        Message(role="system", content="Today is Monday."),
        Message(role="user", content="Where is Oslo?"),
    )


def test_tools_calls_and_results_read_as_the_agents_middleware_writes_them() -> None:
    read = read_conversation(CALLS)
    assert list(read) == transcribe(convert_to_messages(CALLS))
    assert read[-1].content == (
        'How is the weather in Oslo?\n\n[weather was asked] {"city": "Oslo"}\n[time was asked] {}\n\n'
        "[weather said] 12 degrees\n\n[time said] noon"
    )


def test_a_result_without_a_name_has_that_of_its_call() -> None:
    nameless = [{name: of for name, of in turn.items() if name != "name"} for turn in CALLS]
    assert read_conversation(nameless) == read_conversation(CALLS)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (question(ASKED, TOLD), "the last turn is the assistant's; it must be the user's: right answers stand in"),
        (question(SYSTEM), "the last message (number 1) is by 'system'"),
        ({"id": "q", "messages": [], "answers": ["x"]}, "'messages' are wrong: there are no messages"),
        (question(messages="hello"), "must be a list of messages, got a str"),
        (question(ASKED, "hello", NEXT), "message number 2 must be an object with 'role' and 'content', got a str"),  # type: ignore[arg-type]
        (question({"role": "critic", "content": "no"}), "message number 1 has the role 'critic'; it must be one of"),
        (question({"role": "user", "content": None}), "message number 1 has content of type NoneType"),
        (question({"role": "user", "content": [{"type": "image_url"}]}), "has content of type list; it must be text"),
        (question({**ASKED, "weight": 1}), "message number 1 has the key 'weight'"),
        (question(ASKED, TOLD, {"role": "user", "content": " \u200b"}), "the prompt is empty (message number 3)"),
        (question({"role": "user", "content": "a\ud800"}), "half a character"),
        (question(*CALLS[2:]), "message number 1 uses a tool before the user's first turn"),
        (question(ASKED, {**CALLS[2], "tool_calls": ["x"]}), "message number 2 calls a tool otherwise"),
        (question(question="Why?"), "'question' doesn't go with 'messages', which hold all that is sent; take it out"),
        (question(context="So."), "'context' doesn't go with 'messages'"),
        ({"id": "q", "answers": ["x"]}, "the key 'question' is missing; add it, or 'messages'"),
        (
            question(kind="choice", choices=["Lima", "Oslo"]),
            "the choice 'Lima' doesn't stand in the last of 'messages'; write it there",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_line(path: Path, line: dict[str, Any], what: str) -> None:
    with pytest.raises(QuestionError) as caught:
        read(path, {"id": "q0", "question": "Why?", "answers": ["x"]}, line)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert what in str(caught.value)
    assert "Norway" not in str(caught.value)


def test_answers_are_graded_by_the_last_turn(path: Path) -> None:
    hours = {"role": "user", "content": "How many minutes are 3 hours?"}
    (asked,) = read(path, question(SYSTEM, ASKED, TOLD, hours, kind="numeric", answers=["180"]))
    assert is_correct(asked, "180 minutes in 3 hours")
    assert not is_correct(asked, "90 minutes in 3 hours")
    ways = {"role": "user", "content": "Which is a fruit?\nA) chair\nB) apple"}
    (asked,) = read(path, question(SYSTEM, ways, kind="choice", choices=["chair", "apple"], answers=["B"]))
    assert is_correct(asked, "B")
    assert not is_correct(asked, "A")
    assert asked.prompt() == ways["content"]


def test_the_turns_before_a_question_make_another_of_it_and_system_messages_do_not(path: Path) -> None:
    asked = read(
        path,
        question(NEXT, id="alone"),
        question(SYSTEM, NEXT, id="dated"),
        question({**SYSTEM, "content": "It is Tuesday."}, {**NEXT, "content": "and of peru"}, id="other date"),
        question(id="talk"),
        question(ASKED, TOLD, NEXT, id="talk again"),
    )
    groups = group_names(asked)
    assert groups["alone"] == groups["dated"] == groups["other date"]
    assert groups["talk"] == groups["talk again"] != groups["alone"]


def test_the_owner_of_a_conversation_is_any_key(path: Path) -> None:
    path.write_text("".join(json.dumps(question(id=str(row), user="ana")) + "\n" for row in range(2)))
    assert [one.owner for one in read_questions(path, group_by="user")] == ["ana", "ana"]


def test_a_wording_is_what_conversations_have_in_common() -> None:
    wording = Wording.of(read_conversation(TALK), prompt="p")
    other = Wording.of(read_conversation([SYSTEM, NEXT, TOLD, ASKED]), prompt="p")
    assert wording == other
    assert (wording.history, len(wording.system)) == (True, 16)
