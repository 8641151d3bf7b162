"""Which rows to label next, from a real model's answers to requests and from a guard's decisions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli_adapt import BUNDLE, COUNTRIES, room, talk

__all__ = ["room"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("real_model")
def test_requests_that_a_tier_answers_now_are_chosen_labelled_and_harvested(
    room: Path, run: Callable[..., Any]
) -> None:
    command = ("choose-rows", BUNDLE, "--tier", "small", "--questions", "r.jsonl", "--to", "label.jsonl")
    chosen = run(*command, "--count", "5", "--config", "guard.yaml")
    assert chosen.status == 0, chosen.err
    assert "5 of 20 scored answers, each with probability 0.250" in chosen.out
    written = lines(room / "label.jsonl")
    asked = [{"messages": talk(country), "probability": 0.25} for country in COUNTRIES]
    assert len(written) == 5
    assert all(line in asked for line in written)
    labelled = [line | {"id": f"mine-{number}", "answers": ["Paris"]} for number, line in enumerate(written)]
    (room / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in labelled))
    harvested = run("harvest", "mine.jsonl", "--tier", "small", "--to", "mine.parquet", "--config", "guard.yaml")
    assert harvested.status == 0, harvested.err
    again = run("choose-rows", BUNDLE, "--from", "mine.parquet", "--count", "6", "--to", "more.jsonl")
    assert again.status == 2
    assert "6 rows to label were asked for, and 5 of 5 answers can be scored" in " ".join(again.err.split())


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--count", "5"), "give either --from FILE, or --tier NAME with --questions FILE"),
        (("--count", "0", "--from", "r.jsonl"), "Invalid value for '--count'"),
        (("--count", "5", "--from", "r.jsonl"), "r.jsonl:1: not a line of `ilis-guard ask --json`"),
        (("--count", "5", "--from", "none.jsonl"), "none.jsonl: No such file or directory"),
    ],
    ids=str,
)
def test_what_no_rows_can_be_chosen_from_is_named(
    room: Path, run: Callable[..., Any], options: tuple[str, ...], what: str
) -> None:
    refused = run("choose-rows", BUNDLE, "--to", "label.jsonl", *options)
    assert refused.status == 2
    assert what in " ".join(refused.err.replace("│", " ").split())
    assert not (room / "label.jsonl").exists()
