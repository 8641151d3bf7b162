"""Passes: prompts that go through ``generate`` side by side, and an audience that follows each of them on its way."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import StoppingCriteria

from ilis_guard.calling.deadline import Deadline
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


class Following(StoppingCriteria):  # type: ignore[misc]  # transformers' has no types
    """Follows one call of ``generate`` for an audience; transformers asks it after each pass which rows are done.

    It changes no token of a row that goes on. A row is done as soon as its end token is drawn, which is before that
    token would be fed in, or when it has come to a stop sequence, or doesn't go on.

    Args:
        recorder: of the same call.
        rows: in the batch.
        width: of the padded prompts.
        end_tokens: they end an answer.
        is_stopped: asked of each row that has drawn no end token.
        audience: who is told.
        tell: how.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        rows: int,
        width: int,
        end_tokens: Collection[int],
        is_stopped: IsStopped,
        audience: Audience,
        tell: Tell,
    ) -> None:
        self._recorder = recorder
        self._width = width
        self._end_tokens = frozenset(end_tokens)
        self._is_stopped = is_stopped
        self._audience = audience
        self._tell = tell
        self._rows = list(range(rows))
        self.stopped: dict[int, list[int]] = {}
        """By row, the tokens of answers that have come to a stop sequence. They aren't told: what was recorded is also
        of that sequence."""

    def __call__(
        self, input_ids: Int[Tensor, "batch sequence"], _scores: Float[Tensor, "batch vocabulary"], **_: Any
    ) -> Bool[Tensor, " batch"]:
        """Tell of the pass that has just ended, whose tokens were drawn but not fed in; which rows are done."""
        recorded = cache(self._recorder.so_far)

        def so_far(row: int) -> Generation:
            return self._tell(recorded()[row], row, input_ids[row, self._width : -1].tolist(), False)

        going_on = set(self._audience.passed(self._rows, so_far)) if self._rows else set()
        drawn = input_ids[:, -1].tolist()
        ended = [row for row in self._rows if row in going_on and drawn[row] in self._end_tokens]
        for row in ended:
            self._answered(row, recorded()[row], input_ids)
        self._rows = [row for row in self._rows if row in going_on and row not in ended]
        answers = {row: input_ids[row, self._width :].tolist() for row in self._rows}
        self.stopped |= {row: answer for row, answer in answers.items() if self._is_stopped(row, answer)}
        self._rows = [row for row in self._rows if row not in self.stopped]
        done = torch.ones(len(input_ids), dtype=torch.bool)
        done[self._rows] = False
        return done.to(input_ids.device)

    def finish(self, sequences: Int[Tensor, "batch sequence"]) -> None:
        """Tell the rest, of answers that were cut off at their length limit.

        Args:
            sequences: what ``generate`` returned.

        Raises:
            SignatureError: the sequences aren't those that were recorded.
        """
        if self._rows:
            recordings = self._recorder.finish(sequences)
            for row in self._rows:
                self._answered(row, recordings[row], sequences)

    def _answered(self, row: int, recording: Recording, ids: Int[Tensor, "batch sequence"]) -> None:
        self._audience.answered(row, self._tell(recording, row, ids[row, self._width :].tolist(), True))
