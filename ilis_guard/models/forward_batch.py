"""Forward batches: the rows of one call of ``generate``, and observers that follow them step by step."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import StoppingCriteria

from ilis_guard.concurrency import shutdown
from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.models.answer_text import StepBuilder
from ilis_guard.models.base import Proceed
from ilis_guard.models.prompts import TextCodec
from ilis_guard.signature import Recorder, Recording
from ilis_guard.types import Generation, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A conversation as tokens, which a local model continues."""

    tokens: tuple[int, ...]
    """The prompt's."""
    started_at: float
    """On the clock of `time.perf_counter`; a generation's seconds count from here."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""
    opened_by: str = ""
    """The marker with which the prompt opens the model's thinking; empty where it opens none."""


class StepObserver(Protocol):
    """Follows the rows of a batch, in the thread that generates. Its errors end the generation."""

    def on_step(self, rows: Sequence[int], so_far: Callable[[int], Generation]) -> Collection[int]:
        """Handle the end of a forward pass: the prompts', then each token's.

        Args:
            rows: the batch's rows that aren't done.
            so_far: builds a row's generation so far, which takes the time of summing up its recording.

        Returns:
            The rows that go on. The others are dropped; without any, the generation ends.
        """

    def on_answer(self, row: int, generation: Generation) -> None:
        """Handle a row's answer as soon as it is complete; one that a stop sequence ended, after the batch."""


class SingleObserver:
    """Keeps the generation of a batch of one.

    Args:
        proceed: called after the prompt; returns whether to go on.
        deadline: checked after each pass.
    """

    generation: Generation
    """The answer; or the generation so far, where `proceed` returned False."""

    def __init__(self, proceed: Proceed | None, deadline: Deadline | None) -> None:
        self._proceed = proceed
        self._deadline = deadline

    def on_step(self, rows: Sequence[int], so_far: Callable[[int], Generation]) -> Collection[int]:
        """Check the deadline and, after the prompt, `proceed`."""
        if self._deadline is not None:
            self._deadline.check()
        if self._proceed is not None:
            proceed, self._proceed = self._proceed, None
            self.generation = so_far(0)
            return rows if proceed(self.generation) else ()
        return rows

    def on_answer(self, _row: int, generation: Generation) -> None:
        """Keep the answer."""
        self.generation = generation


class BatchObserver:
    """Keeps the generations of all rows."""

    def __init__(self) -> None:
        self.generations: dict[int, Generation] = {}
        """By row."""

    def on_step(self, rows: Sequence[int], _so_far: Callable[[int], Generation]) -> Collection[int]:
        """Let all rows go on."""
        return rows

    def on_answer(self, row: int, generation: Generation) -> None:
        """Keep the answer."""
        self.generations[row] = generation


class StreamObserver:
    """Reports each step of a batch of one.

    Args:
        report: called with the step.
    """

    def __init__(self, report: Callable[[Step], None]) -> None:
        self._report = report
        self._steps = StepBuilder()

    def on_step(self, rows: Sequence[int], so_far: Callable[[int], Generation]) -> Collection[int]:
        """Report a step."""
        self._report(self._steps.step(so_far(0)))
        return rows

    def on_answer(self, _row: int, generation: Generation) -> None:
        """Report the last step."""
        self._report(self._steps.step(generation))


BuildGeneration = Callable[[Recording, int, list[int], bool], Generation]
"""Builds a generation from a row's recording, the row, its new tokens, and whether it is complete."""


def pad(prompts: Sequence[Sequence[int]], device: Any) -> dict[str, Tensor]:
    """Make one batch of prompts, the shorter ones padded on the left.

    A row is padded with its own first token. Attention never sees the padding, but logits processors do: a repetition
    penalty on a fixed padding token would change the answers of short prompts that share a batch with long ones.
    """
    width = max(len(prompt) for prompt in prompts)
    missing = [width - len(prompt) for prompt in prompts]
    ids = [[*prompt[:1]] * count + [*prompt] for prompt, count in zip(prompts, missing, strict=True)]
    mask = [[0] * count + [1] * (width - count) for count in missing]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def select_rows(inputs: Mapping[str, Tensor], sequences: Tensor, rows: Sequence[int]) -> dict[str, Tensor]:
    """Make the batch that continues these rows of another, after some tokens."""
    kept = torch.tensor(rows, device=sequences.device)
    mask = inputs["attention_mask"][kept]
    new = sequences.shape[1] - mask.shape[1]
    return {"input_ids": sequences[kept], "attention_mask": torch.cat([mask, mask.new_ones(len(rows), new)], dim=1)}


class ForwardBatch(StoppingCriteria):
    """Tracks the rows of ``generate``, which calls it after each pass to learn which are done.

    It changes no token of a row that goes on. A row is done when its end token is drawn, which is before that token
    would be fed in, when it reaches a stop sequence, or when the observer drops it. Rows that are done are computed
    along until few enough are left.

    Args:
        recorder: of the same generation.
        requests: one a row.
        codec: of the model.
        max_new_tokens: the length limit.
        shrinks: whether ``generate`` may stop when at most half of its rows are left, and be called again for those.
        observer: follows the rows.
        build: builds generations for the observer.
    """

    def __init__(
        self,
        recorder: Recorder,
        requests: Sequence[GenerationRequest],
        codec: TextCodec,
        *,
        max_new_tokens: int,
        shrinks: bool,
        observer: StepObserver,
        build: BuildGeneration,
    ) -> None:
        self._recorder = recorder
        self._requests = requests
        self._codec = codec
        self.width = max(len(request.tokens) for request in requests)
        self._max_length = self.width + max_new_tokens
        self._shrinks = shrinks
        self._observer = observer
        self._build = build
        self._rows = list(range(len(requests)))
        """Those that aren't done."""
        self._places = {row: row for row in self._rows}
        """Their places in the batch that is computed."""
        self._computed = len(requests)
        self.stopped: dict[int, list[int]] = {}
        """By row, the tokens of answers that reached a stop sequence. The observer doesn't get these generations: their
        recordings include the sequence."""

    def __call__(
        self, input_ids: Int[Tensor, "batch sequence"], _scores: Float[Tensor, "batch vocabulary"], **_: Any
    ) -> Bool[Tensor, " batch"]:
        """Handle the pass that has just ended, whose tokens were drawn but not fed in; return which rows are done."""
        shutdown.block_at_exit()
        recordings = cache(self._recorder.so_far)

        def so_far(row: int) -> Generation:
            place = self._places[row]
            return self._build(recordings()[place], row, input_ids[place, self.width : -1].tolist(), False)

        going_on = set(self._observer.on_step(self._rows, so_far)) if self._rows else set()
        drawn = input_ids[:, -1].tolist()
        ended = {row for row in going_on if drawn[self._places[row]] in self._codec.end_tokens}
        for row in sorted(ended):
            self._answer(row, recordings(), input_ids)
        self._rows = [row for row in self._rows if row in going_on and row not in ended]
        answers = {row: input_ids[self._places[row], self.width :].tolist() for row in self._rows}
        self.stopped |= {row: answer for row, answer in answers.items() if self._is_stopped(row, answer)}
        self._rows = [row for row in self._rows if row not in self.stopped]
        done = torch.ones(len(input_ids), dtype=torch.bool)
        if not self._shrinks or 2 * len(self._rows) > self._computed:
            done[[self._places[row] for row in self._rows]] = False
        return done.to(input_ids.device)

    def remaining(self, sequences: Int[Tensor, "batch sequence"]) -> list[int]:
        """Return the places of the rows for which ``generate`` must be called again; none when all are complete.

        Args:
            sequences: what ``generate`` returned.

        Raises:
            SignatureError: the sequences aren't those that were recorded.
        """
        if self._rows and sequences.shape[1] == self._max_length:
            recordings = self._recorder.finish(sequences)
            for row in self._rows:
                self._answer(row, recordings, sequences)
            self._rows = []
        places = [self._places[row] for row in self._rows]
        self._places = {row: place for place, row in enumerate(self._rows)}
        self._computed = len(places)
        return places

    def _is_stopped(self, row: int, answer: Sequence[int]) -> bool:
        request = self._requests[row]
        return bool(request.stop) and self._codec.before_stop(answer, request.stop, request.opened_by) is not None

    def _answer(self, row: int, recordings: Sequence[Recording], ids: Int[Tensor, "batch sequence"]) -> None:
        place = self._places[row]
        generation = self._build(recordings[place], row, ids[place, self.width :].tolist(), True)
        self._observer.on_answer(row, generation)
