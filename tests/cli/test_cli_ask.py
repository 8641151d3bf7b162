"""`ilis-guard ask`."""

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from ilis_guard.cascade.tier import Tier
from ilis_guard.cli.decision_tables import decision_view
from ilis_guard.guard import Guard
from ilis_guard.policy import Policy
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue, fake_guard
from ilis_guard.types import Action, ShadowNote, ShadowRuling

LABELLED = """\
version: 1
name: labelled
rules:
  - id: text
    when: has(labels.x) && labels.x == '{text}'
    do: abstain
  - id: number
    when: has(labels.x) && type(labels.x) in [int, double] && labels.x == 7.5
    do: abstain
  - id: whole
    when: has(labels.x) && type(labels.x) == int && labels.x == 7
    do: abstain
  - id: flag
    when: has(labels.x) && type(labels.x) == bool && labels.x == true
    do: abstain
"""


def guard_that_says(answer: str) -> Guard:
    tier = Tier(name="small", model=FakeModel(answer), scorer=FixedScorer(0.1))
    return Guard(tiers=[tier], policy=Policy.load("default"), review=InMemoryQueue())


def test_the_decision_is_shown(run: Callable[..., Any], use: Callable[[Guard], None]) -> None:
    use(fake_guard("default", {"small": 0.9, "large": 0.5}))
    result = run("ask", "What is 7 times 8?")
    assert result.status == 0
    assert "escalate The answer to this question is uncertain. A person will look at it." in result.flat
    assert "answer of small" in result.out
    assert "answer of large" in result.out
    assert "- rule 'unsure-so-ask-a-person' decided: escalate, because" in result.out
    assert "waits in the queue 'default'" in result.out


def test_json_is_the_whole_decision_and_nothing_else(run: Callable[..., Any], use: Callable[[Guard], None]) -> None:
    use(fake_guard("default", {"small": RuntimeError("down"), "large": 0.1}))
    result = run("ask", "What is 7 times 8?", "--json")
    assert result.status == 0
    assert result.out.count("\n") == 1
    assert (result.json["action"], result.json["text"], result.json["rule"]) == ("answer", "answer of large", "sure")
    assert [attempt["tier"] for attempt in result.json["attempts"]] == ["small", "large"]
    assert set(result.json["attempts"][1]["signatures"]) == {"prompt", "last", "mean"}
    # The warning about the tier that failed is for people, and stands where progress and errors stand.
    assert "ilis_guard.attempt.failed" in result.err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[red]x[/red]", "answer [red]x[/red]"),
        ("[/]", "answer [/]"),
        ("[bold", "answer [bold"),
        ("a \\[b] \\", "answer a \\[b] \\"),
        ("1:100:2 :smile:", "answer 1:100:2 :smile:"),
        ("\x1b[2J\x1b]0;owned\x07", "answer \\x1b[2J\\x1b]0;owned\\x07"),
        ("safe\u202egnp.exe", "answer safe\\u202egnp.exe"),
        ("half \ud800", "answer half \ufffd"),
        ("größer 用 مرحبا 👩‍🔬", "answer größer 用 مرحبا 👩‍🔬"),
    ],
)
def test_answer_is_printed_verbatim_without_control_sequences(
    run: Callable[..., Any], use: Callable[[Guard], None], text: str, shown: str
) -> None:
    use(guard_that_says(text))
    result = run("ask", "What is it?")
    assert result.status == 0
    assert result.flat.startswith(shown)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("x=7", "whole"),
        ("x=7.5", "number"),
        ("x=true", "flag"),
        ('x="7"', "text:7"),
        ("x=True", "text:True"),
        ("x=legal", "text:legal"),
        ("x=a=b", "text:a=b"),
        ("x=", "text:"),
        ("x=null", "text:null"),
        ("x=[1]", "text:[1]"),
        ("x=NaN", "text:NaN"),
        ("x=1e999", "text:1e999"),
        ("x=" + "[" * 1500, "text:" + "[" * 1500),
    ],
)
def test_label_is_parsed_as_number_or_boolean(
    run: Callable[..., Any], use: Callable[[Guard], None], given: str, rule: str
) -> None:
    rule, _, text = rule.partition(":")
    policy = Policy.parse(LABELLED.format(text=text))
    use(fake_guard(policy, {"small": 0.1}))
    assert run("ask", "?", "--label", given, "--json").json["rule"] == rule


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["topic"], "a label reads NAME=VALUE, got 'topic'"),
        (["=x"], "the label name '' isn't an identifier"),
        (["a b=x"], "the label name 'a b' isn't an identifier"),
        (["x=1", "x=2"], "the label 'x' is given twice"),
    ],
)
def test_a_label_that_cannot_be_used_is_refused(
    run: Callable[..., Any], use: Callable[[Guard], None], labels: list[str], words: str
) -> None:
    use(fake_guard("default", {"small": 0.1}))
    result = run("ask", "?", *(part for label in labels for part in ("--label", label)))
    assert (result.status, result.out) == (2, "")
    assert words in result.err


def stdin_of(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")


def test_a_dash_reads_the_question_from_standard_input(
    run: Callable[..., Any], use: Callable[[Guard], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FakeModel("yes")
    tier = Tier(name="small", model=model, scorer=FixedScorer(0.1))
    use(Guard(tiers=[tier], policy=Policy.load("default"), review=InMemoryQueue()))
    monkeypatch.setattr(sys, "stdin", stdin_of("Größer\nals eins?".encode()))
    assert run("ask", "-", "--json").json["text"] == "yes"
    assert model.calls[0][0].content == "Größer\nals eins?"


@pytest.mark.parametrize(("content", "words"), [(b"a\xff", "standard input isn't UTF-8"), (b"", "the prompt is empty")])
def test_standard_input_that_is_no_question_is_refused(
    run: Callable[..., Any],
    use: Callable[[Guard], None],
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    words: str,
) -> None:
    use(fake_guard("default", {"small": 0.1}))
    monkeypatch.setattr(sys, "stdin", stdin_of(content))
    result = run("ask", "-")
    assert (result.status, result.out) == (2, "")
    assert words in result.err


@pytest.mark.parametrize("arguments", [("?", "--label", "topic"), (" ",)])
def test_invalid_arguments_are_refused_before_models_load(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(Guard, "from_config", lambda *_: pytest.fail("models were loaded"))
    result = run("ask", *arguments)
    assert result.status == 2
    assert result.err.startswith("error: ")


def test_shadow_notes_say_what_limits_the_shadow_ruling() -> None:
    made = fake_guard("default", {"small": 0.1}).decide("q")
    note = ShadowNote(kind="tier_not_tried", tier="large")
    shadow = ShadowRuling(policy="f" * 16, action=Action.RETRY, rule="unsure", notes=(note,))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(decision_view(replace(made, shadow=shadow)))
    assert "- the tier 'large' wasn't tried, so the ruling on its answer isn't known" in console.export_text()
