"""Where thinking ends in a model's text, and the answer begins."""

import pytest
from hypothesis import given, strategies as st

from ilis_guard.types import Message, Request
from ilis_guard.types.thinking import find_answer, opened_thinking, without_thinking

PAIRS = [
    ("<think>", "</think>"),
    ("<think>\n", "\n</think>\n\n"),
    ("\n\n<think>", "</think>"),
    ("\ufeff<think>", "</think>"),
    ("<THINK>", "</Think>"),
    ('<think budget="9">', "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|start|>assistant<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>"),
    (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=web<|message|>",
        "<|call|><|start|>assistant<|channel|>final<|message|>",
    ),
    ("analysis", "assistantfinal"),
    ("analysisWe need to answer. ", "assistantcommentaryI'll look.assistantfinal"),
    ("Here is my thought process:\n", "\nHere is my response:\n"),
]
THOUGHT = "Is it Bergen? No."


def answer(text: str, opened_by: str = "") -> tuple[str, str]:
    part = find_answer(text, opened_by=opened_by)
    return part.of(text), part.problem


@pytest.mark.parametrize(("opening", "closing"), PAIRS)
def test_the_answer_comes_after_the_thinking(opening: str, closing: str) -> None:
    text = f"{opening}{THOUGHT}{closing}Oslo, of course.\n"
    assert answer(text) == ("Oslo, of course.", "")
    assert without_thinking(text) == "Oslo, of course."


@pytest.mark.parametrize(("opening", "closing"), PAIRS[:-3])
def test_thinking_that_is_not_closed_is_no_answer(opening: str, closing: str) -> None:
    assert answer(opening + THOUGHT) == ("", "unfinished")
    assert answer(f"{opening}{THOUGHT}{closing}{opening}{THOUGHT}")[0] == ""
    assert without_thinking(opening + THOUGHT) == ""


@pytest.mark.parametrize(
    ("opening", "closing"), [pair for pair in PAIRS if opened_thinking(f"<|im_start|>assistant\n{pair[0]}")]
)
def test_what_the_prompt_opened_is_closed_in_the_answer(opening: str, closing: str) -> None:
    opened_by = opened_thinking(f"<|im_start|>assistant\n{opening}")
    text = f"{THOUGHT}{closing}Oslo."
    part = find_answer(text, opened_by=opened_by)
    assert (part.of(text), text[part.start :]) == ("Oslo.", "Oslo.")
    assert answer("Oslo.", opened_by) == ("", "unfinished")
    # A remote model's prompt isn't known.
    assert answer(text) == ("Oslo.", "")


def test_a_prompt_that_closed_its_thinking_opens_none() -> None:
    assert opened_thinking("<|im_start|>assistant\n<think>\n\n</think>\n\n") == ""
    assert opened_thinking("<think> is a tag") == ""


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think><think>b</think>Oslo",
        "<think>a</think>\n\n<think>\n\n</think>\n\nOslo",
        "<think>a<think>b</think>c</think>Oslo",
        "<think>a\n</think>\nb\n</think>\nOslo",
        "<think>the tag <think> is asked for</think>Oslo",
        '<think>it is closed by `</think>`, and I say "</think>" too\n</think>\nOslo',
        "<think>```\n</thinking>\n```</think>Oslo",
        "<think>a</think><|START_RESPONSE|>Oslo<|END_RESPONSE|>",
        "<|channel|>final<|message|>Oslo<|return|>",
    ],
)
def test_repeated_nested_and_quoting_thinking_is_taken_out_whole(text: str) -> None:
    assert answer(text) == ("Oslo", "")


@pytest.mark.parametrize(
    "text",
    [
        "Oslo.",
        "Wrap it in <think> and </think> tags.",
        "The opening tag is <think>",
        "Write </think> when you are done.",
        "It ends with `</think>`.",
        'The first token is "<think>", the last "</think>".',
        "In Python:\n\n```python\ntext.split('</think>')[-1]\n```\n",
        "```html\n<think>\nhm\n</think>\n```",
        "<prompt>\n<think>Step by step.</think>\n<answer>42</answer>\n</prompt>",
        "<p>Models of this kind write</p>\n<think>\nhm\n</think>",
        "analysis of variance compares means",
        "analysisResult = 3",
        "Here is my response: Oslo",
        "final answer: Oslo",
        "a < b, [x], <|y|> and ◁",
    ],
)
def test_an_answer_that_speaks_of_markers_is_whole(text: str) -> None:
    assert answer(text) == (text.strip(), "")
    assert without_thinking(text) == text
    thought = f"<think>{THOUGHT}</think>\n\n{text}"
    assert answer(thought) == (text.strip(), "")


@pytest.mark.parametrize(
    "text",
    [
        "Sure!\n<think>\nIs it Bergen?\n</think>\nOslo.",
        "Oslo. <think>Is it?",
        "Oslo.<|end|><|start|>assistant<|channel|>analysis<|message|>Was that right?",
    ],
)
def test_thinking_in_the_middle_leaves_it_in_doubt_what_is_answer(text: str) -> None:
    assert answer(text) == ("", "doubtful")
    # Of an earlier turn, nothing is lost.
    assert without_thinking(text) == text


@pytest.mark.parametrize(("opening", "closing"), PAIRS)
def test_a_text_that_grows_never_shows_what_was_thought(opening: str, closing: str) -> None:
    text = f"{opening}{THOUGHT}{closing}Oslo."
    shown = [find_answer(text[:end], is_partial=True).of(text[:end]) for end in range(len(text) + 1)]
    assert shown[-1] == "Oslo."
    # What opens a pair of plain words is known at its end; before that, nothing is shown.
    assert all("Oslo.".startswith(each) for each in shown), shown


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "`", "```", "\n", " ", "a", "Oslo.", "analysis", "<|channel|>"]))
)
def test_an_answer_is_a_part_of_the_text_and_holds_no_more_thinking(pieces: list[str]) -> None:
    text = "".join(pieces)
    part = find_answer(text)
    assert 0 <= part.start <= part.end <= len(text)
    found = part.of(text)
    assert found == found.strip()
    assert answer(found) == (found, "")


def test_an_earlier_answer_is_sent_on_without_its_thinking() -> None:
    request = Request.of(
        [
            Message(role="user", content="<think>mine</think>Norway?"),
            Message(role="assistant", content="<think>\nBergen?\n</think>\n\nOslo."),
            Message(role="user", content="Sweden?"),
        ]
    )
    assert [turn.content for turn in request.messages] == ["<think>mine</think>Norway?", "Oslo.", "Sweden?"]


@pytest.mark.parametrize("text", ["<think>" * 20_000, "</think>" * 20_000, "`<think>` " * 20_000, "<" * 100_000])
def test_a_hostile_text_is_read_in_one_pass(text: str) -> None:
    """It took minutes where each marker looked at the whole text before it."""
    assert find_answer(text).of(text) in ("", text.strip())
