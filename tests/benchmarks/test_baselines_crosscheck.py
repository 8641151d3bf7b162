"""The committed comparison with lm-polygraph, and how it is made."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.baselines_crosscheck.__main__ import RESULTS, _compared, _is_same
from ilis_guard.lab.baselines.observations import SCORES
from ilis_guard.types import FinishReason, Generation

ESTIMATED = [score for score in SCORES if score not in ("margin", "layer_information", "p_true")]
"""lm-polygraph has no margin."""


def committed() -> list[dict[str, str]]:
    with Path(RESULTS).open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_score_of_lm_polygraph_was_compared_on_most_answers() -> None:
    rows = committed()
    assert [row["score"] for row in rows if row["lm_polygraph_sees"] == "answer tokens"] == ESTIMATED
    assert [row["score"] for row in rows if row["lm_polygraph_sees"] == "as it comes"] == ESTIMATED
    assert [row["score"] for row in rows if row["lm_polygraph_sees"] == "our wording"] == ["p_true"]
    assert all(int(row["rows"]) >= 80 for row in rows)


def test_on_the_same_tokens_our_scores_are_lm_polygraphs() -> None:
    for row in committed():
        if row["lm_polygraph_sees"] != "as it comes":
            assert float(row["pearson"]) > 0.9999, row
            assert float(row["max_abs_difference"]) < 0.01 * float(row["standard_deviation"]), row


@pytest.mark.parametrize(
    ("token_ids", "reason", "is_same"),
    [
        ([5, 6, 2], "stop", True),
        ([5, 6], "length", True),
        ([5, 6], "stop", False),
        ([5, 6, 7], "length", False),
        ([5, 7, 2], "stop", False),
    ],
)
def test_answers_are_the_same_token_by_token_with_the_end(
    token_ids: list[int], reason: FinishReason, is_same: bool
) -> None:
    answer = Generation(
        text="", tokens=2, prompt_tokens=3, finish_reason=reason, seconds=0.0, token_ids=(5, 6), signatures={}
    )
    assert _is_same(token_ids, answer) is is_same


def test_differences_are_those_of_the_numbers() -> None:
    numbers = np.array([0.5, 1.0, 2.0])
    ours = {"rauq": numbers, "p_true": np.array([0.5, 0.8, 0.9])}
    theirs: list[dict[str, Any]] = [
        {
            "answer tokens": {"rauq": number + 1},
            "as it comes": {"rauq": 1.25 - number},
            "verdicts": {word: np.log(share / 2) for word, share in told.items()},
        }
        for number, told in zip(
            numbers,
            [
                {"True": share, " True": share, "False": 1 - share, " False": 1 - share}
                for share in (1 - ours["p_true"]).tolist()
            ],
            strict=True,
        )
    ]
    table = {row["lm_polygraph_sees"]: row for row in _compared(ours, theirs)}
    assert (table["answer tokens"]["pearson"], table["answer tokens"]["max_abs_difference"]) == ("1.000000", "0.00e+00")
    assert (table["as it comes"]["spearman"], table["as it comes"]["max_abs_difference"]) == ("-1.000000", "3.75e+00")
    assert float(table["our wording"]["max_abs_difference"]) < 1e-9
    assert table["our wording"]["rows"] == 3
