"""The recorder: what one call of ``generate`` shows of itself, token by token, in constant memory."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ilis_guard.errors import SignatureError
from ilis_guard.signature.running import RunningMaps, RunningStatistics
from ilis_guard.signature.tap import Tap
from ilis_guard.types import Position, Signature, Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What was recorded of one row of a batch."""

    signatures: dict[Position, Signature]
    """`prompt` always; `last` and `mean` where at least one answer token passed through the model."""
    statistics: Statistics | None
    """None where there is no answer token."""
    tokens: int
    """Answer tokens."""
    ended: bool
    """The model ended the answer itself."""


class Recorder:
    """A logits processor that looks and changes nothing: transformers calls it after every forward pass.

    In that call the tap holds the activations of the token just fed in, ``input_ids`` ends with that token, and
    ``scores`` are the logits of the next. The last token of an answer cut off at its length limit never passes
    through the model: it counts in the statistics and has no map.
    """

    def __init__(
        self, tap: Tap, *, end_tokens: Collection[int], special_tokens: Collection[int], temperature: float
    ) -> None:
        self._tap = tap
        self._end_tokens = torch.tensor(sorted(end_tokens))
        self._special_tokens = torch.tensor(sorted(special_tokens), dtype=torch.int64)
        self._temperature = temperature
        self._prompt_width = 0
        self._maps: RunningMaps | None = None
        self._statistics = RunningStatistics()

    def __call__(self, input_ids: Int[Tensor, "batch sequence"], scores: Float[Tensor, "batch vocabulary"]) -> Tensor:
        """Record the forward pass that has just ended; the scores are returned as they came."""
        activations = self._tap.take()
        if self._maps is None:
            self._maps = RunningMaps(activations, self._temperature)
            self._prompt_width = input_ids.shape[1]
        else:
            self._statistics.draw(input_ids[:, -1])
            if self._maps.wait(activations):
                self._add_waiting(self._maps, input_ids)
        self._statistics.expect(scores)
        return scores

    def finish(self, sequences: Int[Tensor, "batch sequence"]) -> list[Recording]:
        """Take the last generated token, which is never fed back, and close the books.

        Args:
            sequences: what ``generate`` returned.

        Raises:
            SignatureError: no forward pass was seen, or an activation isn't finite.
        """
        if self._maps is None:
            raise SignatureError("generation ended without a forward pass that the recorder saw")
        self._add_waiting(self._maps, sequences[:, :-1])
        self._statistics.draw(sequences[:, -1])
        counted = self._counted(sequences)
        ended = torch.isin(sequences[:, self._prompt_width :].cpu(), self._end_tokens).any(dim=1)
        return [
            Recording(
                signatures=self._maps.signatures(row),
                statistics=statistics,
                tokens=int(counted[row].sum()),
                ended=bool(ended[row]),
            )
            for row, statistics in enumerate(self._statistics.statistics(counted))
        ]

    def _add_waiting(self, maps: RunningMaps, fed: Int[Tensor, "batch sequence"]) -> None:
        """Add the maps of the newest tokens of those that were fed in."""
        if maps.waiting:
            maps.add_waiting(self._counted(fed)[:, -maps.waiting :])

    def _counted(self, sequences: Int[Tensor, "batch sequence"]) -> Bool[Tensor, "batch answer"]:
        """Which of the generated tokens are answer tokens: none after the first end token, and no special one."""
        answers = sequences[:, self._prompt_width :].cpu()
        ended = torch.isin(answers, self._end_tokens).cumsum(dim=1) > 0
        return ~ended & ~torch.isin(answers, self._special_tokens)
