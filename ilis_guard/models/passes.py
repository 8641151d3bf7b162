"""Passes: prompts that go through ``generate`` side by side, and an audience that follows each of them on its way."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import StoppingCriteria

from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.models import ending
from ilis_guard.models.base import Proceed
from ilis_guard.models.stepwise import Unfolding
from ilis_guard.signature import Recorder, Recording
from ilis_guard.types import Generation, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A conversation as a local model takes it."""

    tokens: tuple[int, ...]
    """What it continues."""
    since: float
    """When it was asked, on the clock of `time.perf_counter`: a generation's seconds count from then."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""


class Audience(Protocol):
    """Who is told how the rows of a batch come along, in the thread that generates."""

    def passed(self, rows: Sequence[int], so_far: Callable[[int], Generation]) -> Collection[int]:
        """Hear that a forward pass has ended: the prompts', then each token's.

        Args:
            rows: places in the batch of those that are still there.
            so_far: a row's generation as far as it has come; it takes the time of summing up what was recorded.

        Returns:
            Which of them go on. The others are left out from now on, and where none goes on the generation ends.
        """

    def answered(self, row: int, generation: Generation) -> None:
        """Hear a row's answer, as soon as it has come to its end; one that a stop sequence ended, after the batch."""


class One:
    """Who asked one conversation and waits for its end.

    Args:
        proceed: asked at the prompt whether to go on.
        deadline: looked at after each pass.
    """

    generation: Generation
    """Its answer; or, where it didn't go on, as far as it came."""

    def __init__(self, proceed: Proceed | None, deadline: Deadline | None) -> None:
        self._proceed = proceed
        self._deadline = deadline

    def passed(self, rows: Sequence[int], so_far: Callable[[int], Generation]) -> Collection[int]:
        """See whether it goes on: by the deadline, and once, at the prompt, by asking."""
        if self._deadline is not None:
            self._deadline.check()
        if self._proceed is not None:
            proceed, self._proceed = self._proceed, None
            self.generation = so_far(0)
            return rows if proceed(self.generation) else ()
        return rows

    def answered(self, _row: int, generation: Generation) -> None:
        """Keep it."""
        self.generation = generation


class Everybody:
    """Who asked several, and waits for the last."""

    def __init__(self) -> None:
        self.generations: dict[int, Generation] = {}
        """By row."""

    def passed(self, rows: Sequence[int], _so_far: Callable[[int], Generation]) -> Collection[int]:
        """Let all go on."""
        return rows

    def answered(self, row: int, generation: Generation) -> None:
        """Keep it."""
        self.generations[row] = generation


class Reporting:
    """Who looks at each step of one.

    Args:
        report: is given the step; what it raises ends the generation.
    """

    def __init__(self, report: Callable[[Step], None]) -> None:
        self._report = report
        self._unfolding = Unfolding()

    def passed(self, rows: Sequence[int], so_far: Callable[[int], Generation]) -> Collection[int]:
        """Report it."""
        self._report(self._unfolding.step(so_far(0)))
        return rows

    def answered(self, _row: int, generation: Generation) -> None:
        """Report the last."""
        self._report(self._unfolding.step(generation))


IsStopped = Callable[[int, Sequence[int]], bool]
"""Whether a row, by its place and its new tokens, has come to a stop sequence."""

Tell = Callable[[Recording, int, list[int], bool], Generation]
"""Makes a generation of what was recorded of a row, its place, its new tokens, and whether it is at its end."""


def padded(prompts: Sequence[Sequence[int]], device: Any) -> dict[str, Tensor]:
    """Prompts as one batch, the shorter ones padded on the left.

    A row is padded with its own first token. Attention never sees it, but what is done to logits may: a repetition
    penalty on some padding token would bend the answers of short prompts in long company.
    """
    width = max(len(prompt) for prompt in prompts)
    short = [width - len(prompt) for prompt in prompts]
    ids = [[*prompt[:1]] * missing + [*prompt] for prompt, missing in zip(prompts, short, strict=True)]
    mask = [[0] * missing + [1] * (width - missing) for missing in short]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def narrowed(inputs: Mapping[str, Tensor], sequences: Tensor, rows: Sequence[int]) -> dict[str, Tensor]:
    """What goes on with these rows of a batch, after some tokens."""
    kept = torch.tensor(rows, device=sequences.device)
    mask = inputs["attention_mask"][kept]
    new = sequences.shape[1] - mask.shape[1]
    return {"input_ids": sequences[kept], "attention_mask": torch.cat([mask, mask.new_ones(len(rows), new)], dim=1)}


class Following(StoppingCriteria):
    """Follows ``generate`` for an audience; transformers asks it after each pass which rows are done.

    It changes no token of a row that goes on. A row is done as soon as its end token is drawn, which is before that
    token would be fed in, or when it has come to a stop sequence, or doesn't go on. What is done is computed along
    until few enough are left.

    Args:
        recorder: of the same generation.
        rows: in the batch.
        width: of the padded prompts.
        max_new_tokens: the length limit.
        end_tokens: they end an answer.
        is_stopped: asked of each row that has drawn no end token.
        narrows: whether ``generate`` may be stopped where at most half of its rows are left, and be called for those.
        audience: who is told.
        tell: how.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        rows: int,
        width: int,
        max_new_tokens: int,
        end_tokens: Collection[int],
        is_stopped: IsStopped,
        narrows: bool,
        audience: Audience,
        tell: Tell,
    ) -> None:
        self._recorder = recorder
        self._width = width
        self._longest = width + max_new_tokens
        self._end_tokens = frozenset(end_tokens)
        self._is_stopped = is_stopped
        self._narrows = narrows
        self._audience = audience
        self._tell = tell
        self._rows = list(range(rows))
        """Those that are still there."""
        self._places = {row: row for row in self._rows}
        """Where they are in the batch that is computed."""
        self._computed = rows
        self.stopped: dict[int, list[int]] = {}
        """By row, the tokens of answers that have come to a stop sequence. They aren't told: what was recorded is also
        of that sequence."""

    def __call__(
        self, input_ids: Int[Tensor, "batch sequence"], _scores: Float[Tensor, "batch vocabulary"], **_: Any
    ) -> Bool[Tensor, " batch"]:
        """Tell of the pass that has just ended, whose tokens were drawn but not fed in; which rows are done."""
        ending.pause()
        recorded = cache(self._recorder.so_far)

        def so_far(row: int) -> Generation:
            place = self._places[row]
            return self._tell(recorded()[place], row, input_ids[place, self._width : -1].tolist(), False)

        going_on = set(self._audience.passed(self._rows, so_far)) if self._rows else set()
        drawn = input_ids[:, -1].tolist()
        ended = {row for row in going_on if drawn[self._places[row]] in self._end_tokens}
        for row in sorted(ended):
            self._answered(row, recorded(), input_ids)
        self._rows = [row for row in self._rows if row in going_on and row not in ended]
        answers = {row: input_ids[self._places[row], self._width :].tolist() for row in self._rows}
        self.stopped |= {row: answer for row, answer in answers.items() if self._is_stopped(row, answer)}
        self._rows = [row for row in self._rows if row not in self.stopped]
        done = torch.ones(len(input_ids), dtype=torch.bool)
        if not self._narrows or 2 * len(self._rows) > self._computed:
            done[[self._places[row] for row in self._rows]] = False
        return done.to(input_ids.device)

    def left(self, sequences: Int[Tensor, "batch sequence"]) -> list[int]:
        """Where the rows are that ``generate`` is to be called for once more; none where all are told of their end.

        Args:
            sequences: what it returned.

        Raises:
            SignatureError: the sequences aren't those that were recorded.
        """
        if self._rows and sequences.shape[1] == self._longest:
            recordings = self._recorder.finish(sequences)
            for row in self._rows:
                self._answered(row, recordings, sequences)
            self._rows = []
        places = [self._places[row] for row in self._rows]
        self._places = {row: place for place, row in enumerate(self._rows)}
        self._computed = len(places)
        return places

    def _answered(self, row: int, recordings: Sequence[Recording], ids: Int[Tensor, "batch sequence"]) -> None:
        place = self._places[row]
        generation = self._tell(recordings[place], row, ids[place, self._width :].tolist(), True)
        self._audience.answered(row, generation)
