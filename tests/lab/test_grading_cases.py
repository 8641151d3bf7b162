"""Hand-made cases in twenty languages: each says what a careful reader would say of an answer."""

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from ilis_guard.lab.grading import is_correct
from ilis_guard.lab.questions import Question

CASES: Final = list(
    csv.DictReader(io.StringIO((Path(__file__).parent / "grading_cases.csv").read_text(encoding="utf-8"), newline=""))
)
MISSED: Final = {("nl", "Utrecht", "Utrecht of Amsterdam")}
"""Cases that the rules get wrong. None is added; one that comes out right is taken off."""


def graded(case: dict[str, str]) -> bool:
    question = Question(id="q", kind=case["kind"], question=case["question"], answers=tuple(case["gold"].split("|")))
    return is_correct(question, case["answer"])


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case['language']}-{case['gold']}-{case['answer'][:30]}"[:60]
)
def test_the_grade_is_a_careful_readers(case: dict[str, str]) -> None:
    is_missed = (case["language"], case["gold"], case["answer"]) in MISSED
    assert (graded(case) == (case["right"] == "yes")) is not is_missed, case["why"]


def test_the_cases_are_many_in_many_languages_and_of_both_kinds() -> None:
    assert len(CASES) >= 150
    assert len({case["language"] for case in CASES}) >= 8
    assert min(Counter(case["right"] for case in CASES).values()) > 80
    assert len({(case["kind"], case["gold"], case["answer"]) for case in CASES}) == len(CASES)
    assert all(case["why"] and case["right"] in ("yes", "no") for case in CASES)
