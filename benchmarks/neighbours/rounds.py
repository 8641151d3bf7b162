"""Rounds of measurements: every neighbour in sequence, with its runs in sequence."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.neighbours.roster import Neighbour, NeighbourError
from benchmarks.neighbours.worker import About, Measured, Worker

Pair = dict[str, Measured]
"""A neighbour's runs of one prompt, one straight after the other."""
Clock = Literal["wall_seconds", "processor_seconds"]


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What becomes of one neighbour."""

    neighbour: Neighbour
    about: About | None = None
    """None where it doesn't get so far."""
    pairs: list[Pair] = field(default_factory=list)
    error: str | None = None
    """Why it was given up."""

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Do something of which a failure is this neighbour's own: the others go on."""
        try:
            yield
        except NeighbourError as error:
            self.error = str(error)

    def ratios(self, run: str, against: str, clock: Clock) -> list[float]:
        """How many times as long one run takes as another, pair by pair."""
        return [getattr(pair[run], clock) / getattr(pair[against], clock) for pair in self.pairs]


class Answers:
    """What the model answers to each prompt: the first answer is what all others must be, token by token."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._known: dict[str, list[int]] = {}

    def check(self, prompt: str, run: str, found: list[int]) -> None:
        """Compare an answer.

        Raises:
            NeighbourError: it has another length, or other tokens than the first.
        """
        if len(found) != self._tokens:
            raise NeighbourError(
                f"the run {run!r} gave {len(found)} tokens instead of {self._tokens}: measure fewer where the answer "
                "ends by itself"
            )
        known = self._known.setdefault(prompt, found)
        if known != found:
            differing = [position for position in range(self._tokens) if known[position] != found[position]]
            raise NeighbourError(
                f"the run {run!r} didn't give the tokens of the runs before it: {len(differing)} of {self._tokens} "
                f"differ, the first at position {differing[0]}"
            )


def measure(
    running: Sequence[tuple[Outcome, Worker]], prompts: Sequence[str], tokens: int, rounds: Iterable[int]
) -> None:
    """Measure all neighbours; each round but round 0, the warm-up, adds a pair to each outcome that has no error.

    A round is one prompt. A neighbour's runs change their order from round to round, so that a drift of the machine
    favours none of them.
    """
    answers = Answers(tokens)
    for number in rounds:
        prompt = prompts[number % len(prompts)]
        for outcome, worker in running:
            if outcome.error is None:
                with outcome.attempt():
                    pair = _pair(outcome, worker, prompt, answers, backwards=number % 2 == 0)
                    if number:
                        outcome.pairs.append(pair)


def _pair(outcome: Outcome, worker: Worker, prompt: str, answers: Answers, *, backwards: bool) -> Pair:
    assert outcome.about is not None, "a worker says what it is before it runs"
    pair: Pair = {}
    for run in reversed(outcome.about.runs) if backwards else outcome.about.runs:
        pair[run] = worker.run(run, prompt)
        answers.check(prompt, run, pair[run].token_ids)
    return pair
