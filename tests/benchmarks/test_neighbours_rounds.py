from collections.abc import Callable

import pytest

from benchmarks.neighbours.roster import Neighbour
from benchmarks.neighbours.rounds import Outcome, measure
from benchmarks.neighbours.worker import Measured, Worker

pytestmark = pytest.mark.usefixtures("process")

Enter = Callable[[str], tuple[Outcome, Worker]]


def test_each_round_after_the_first_adds_a_pair_in_alternating_order(enter: Enter) -> None:
    outcome, worker = enter("eager")
    measure([(outcome, worker)], ["a", "b"], 4, range(4))
    assert outcome.error is None
    assert [list(pair) for pair in outcome.pairs] == [
        ["scored", "bare", "bare_sdpa"],
        ["bare_sdpa", "bare", "scored"],
        ["scored", "bare", "bare_sdpa"],
    ]
    assert [pair["bare"].token_ids[0] for pair in outcome.pairs] == [ord("b"), ord("a"), ord("b")]


def test_one_that_fails_is_given_up_and_the_others_go_on(enter: Enter) -> None:
    failing, good = enter("fails-at-b"), enter("good")
    measure([failing, good], ["a", "b"], 4, range(4))
    assert failing[0].error == "RuntimeError: b is too much (all of it: worker.log)"
    assert good[0].error is None
    assert (len(failing[0].pairs), len(good[0].pairs)) == (0, 3)


@pytest.mark.parametrize(
    ("behaviour", "complaint"),
    [
        ("short", "the run 'scored' gave 3 tokens instead of 4"),
        ("other-tokens", "1 of 4 differ, the first at position 3"),
    ],
)
def test_other_tokens_than_the_first_answers_are_an_error(behaviour: str, complaint: str, enter: Enter) -> None:
    good, other = enter("good"), enter(behaviour)
    measure([good, other], ["a"], 4, range(3))
    assert (good[0].error, len(good[0].pairs)) == (None, 2)
    assert other[0].error is not None
    assert complaint in other[0].error
    assert other[0].pairs == []


def test_a_ratio_is_that_of_two_runs_of_one_pair(made_up: Callable[[str], Neighbour]) -> None:
    outcome = Outcome(neighbour=made_up("a"))
    for scored, bare in ((3.0, 2.0), (2.0, 4.0)):
        outcome.pairs.append(
            {
                "scored": Measured(wall_seconds=scored, processor_seconds=1.0, token_ids=[1]),
                "bare": Measured(wall_seconds=bare, processor_seconds=8.0, token_ids=[1]),
            }
        )
    assert outcome.ratios("scored", "bare", "wall_seconds") == [1.5, 0.5]
    assert outcome.ratios("bare", "scored", "processor_seconds") == [8.0, 8.0]
