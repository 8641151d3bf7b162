"""The recorder: what one call of ``generate`` shows of itself, token by token, in constant memory."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from ilis_guard.errors import SignatureError
from ilis_guard.signature.accumulators import NextTokens, RunningMaps, RunningStatistics, chunk_length
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
    token_maps: Float32[np.ndarray, "tokens layers layers"] | None = None
    """Of each generated token that passed through the model, where asked for."""


class AnswerTokens:
    """Which generated tokens are answer tokens: none from the first end token on, and no special one."""

    def __init__(self, end_tokens: Collection[int], special_tokens: Collection[int], rows: int = 1) -> None:
        self._end = torch.tensor(sorted(end_tokens), dtype=torch.int64)
        self._special = torch.tensor(sorted(special_tokens), dtype=torch.int64)
        self.ended: Bool[Tensor, " batch"] = torch.zeros(rows, dtype=torch.bool)
        self.count: Int[Tensor, " batch"] = torch.zeros(rows, dtype=torch.int64)

    def add(self, tokens: Int[Tensor, "tokens batch"]) -> Bool[Tensor, "tokens batch"]:
        """Take the next tokens; tells which of them count."""
        tokens = tokens.cpu()
        ended = self.ended | (torch.isin(tokens, self._end).cumsum(dim=0) > 0)
        counted = ~ended & ~torch.isin(tokens, self._special)
        self.ended = ended[-1]
        self.count = self.count + counted.sum(dim=0)
        return counted

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with these rows alone."""
        self.ended, self.count = self.ended[rows], self.count[rows]


class Recorder:
    """A logits processor that looks and changes nothing: transformers calls it after every forward pass.

    In that call the tap holds the activations of the token just fed in, ``input_ids`` ends with that token, and
    ``scores`` are the logits of the next, after what else processes them and before sampling bends them. The last
    token of an answer cut off at its length limit never passes through the model: it counts in the statistics and has
    no map.

    It goes with greedy decoding and sampling, any cache or none. Beam search, where a row's tokens come from passes
    of other rows, is refused.

    Args:
        tap: entered, on the model that generates.
        end_tokens: they end an answer.
        special_tokens: they are no part of it.
        temperature: of the maps' softmax.
        every_token: keep the map of each token; memory then grows by L x L numbers a token.
    """

    def __init__(
        self,
        tap: Tap,
        *,
        end_tokens: Collection[int],
        special_tokens: Collection[int],
        temperature: float,
        every_token: bool = False,
    ) -> None:
        self._tap = tap
        self._tokens = (end_tokens, special_tokens)
        self._temperature = temperature
        self._every_token = every_token
        self._before: Int[Tensor, "batch sequence"] | None = None
        """The ids whose passes are in the sums."""
        self._length = 0
        self._fed: list[Int[Tensor, "batch sequence"]] = []
        """The ids of the passes since; their activations wait in the tap."""
        self._chunk = 1

    def __call__(self, input_ids: Int[Tensor, "batch sequence"], scores: Float[Tensor, "batch vocabulary"]) -> Tensor:
        """Record the forward pass that has just ended; the scores are returned as they came."""
        if self._before is None:
            self._begin(input_ids, scores)
        else:
            self._check_grew(input_ids)
            self._fed.append(input_ids)
            self._next.add(scores)
            if len(self._fed) == self._chunk:
                self._fold()
        self._length = input_ids.shape[1]
        return scores

    def so_far(self) -> list[Recording]:
        """What is known of each row, of all that has passed through the model.

        Raises:
            SignatureError: no forward pass was seen, rows changed places, or an activation isn't finite.
        """
        if self._before is None:
            raise SignatureError("generation ended without a forward pass that the recorder saw")
        self._fold()
        return [
            Recording(
                signatures=self._maps.signatures(row),
                statistics=self._statistics.statistics(row),
                tokens=int(self._answer.count[row]),
                ended=bool(self._answer.ended[row]),
                token_maps=self._maps.of_tokens(row),
            )
            for row in range(len(self._before))
        ]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows of the batch alone: what the model is given next holds them and no others.

        Raises:
            SignatureError: as `so_far`.
        """
        assert self._before is not None, "the prompt comes first"
        self._fold()
        kept = torch.tensor(rows)
        self._before = self._before[kept.to(self._before.device)]
        for sums in (self._answer, self._maps, self._statistics, self._next):
            sums.keep(kept)

    def finish(self, sequences: Int[Tensor, "batch sequence"]) -> list[Recording]:
        """Take the last generated token, which is never fed back, and close the books.

        Args:
            sequences: what ``generate`` returned.

        Raises:
            SignatureError: as `so_far`, or the sequences aren't those that were recorded.
        """
        if self._before is not None:
            self._check_grew(sequences)
            self._fold()
            if not torch.equal(sequences[:, :-1], self._before):
                raise SignatureError(_not_continued(sequences, list(self._before.shape)))
            self._draw(sequences[:, -1:])
        return self.so_far()

    def _begin(self, input_ids: Int[Tensor, "batch sequence"], scores: Float[Tensor, "batch vocabulary"]) -> None:
        prompt = self._tap.take()[0]
        rows = len(input_ids)
        if len(prompt) != rows:
            raise SignatureError(f"{rows} prompts went in, and activations of {len(prompt)} rows came out")
        self._maps = RunningMaps(prompt.squeeze(1), self._temperature, every_token=self._every_token)
        self._statistics = RunningStatistics(rows)
        self._answer = AnswerTokens(*self._tokens, rows)
        self._chunk = chunk_length(prompt.numel() + scores.numel())
        self._tap.make_room(self._chunk)
        self._next = NextTokens(scores, self._chunk)
        self._before = input_ids

    def _check_grew(self, sequences: Int[Tensor, "batch sequence"]) -> None:
        """Each row must have one token more than before."""
        assert self._before is not None, "the prompt comes first"
        if sequences.shape != (len(self._before), self._length + 1):
            raise SignatureError(_not_continued(sequences, [len(self._before), self._length]))

    def _fold(self) -> None:
        """Turn what waits of the passes since the last time into sums."""
        if not self._fed:
            return
        assert self._before is not None, "the prompt comes first"
        newest, passes = self._fed[-1], len(self._fed)
        # Where beams change places, a row's tokens aren't those that it was seen to draw.
        continued = torch.cat([self._before, *(ids[:, -1:] for ids in self._fed)], dim=1)
        if not torch.equal(newest, continued):
            raise SignatureError(_not_continued(newest, list(continued.shape)))
        activations = self._tap.take(passes)[:, :, 0]
        if activations.shape[1] != len(newest):
            raise SignatureError(f"{len(newest)} rows went in, and activations of {activations.shape[1]} came out")
        self._maps.add(activations, self._draw(newest[:, -passes:]))
        self._before = newest
        self._fed.clear()

    def _draw(self, tokens: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "tokens batch"]:
        """Add what is known of tokens that were drawn; tells which of them count."""
        counted = self._answer.add(tokens.T)
        self._statistics.add(self._next.drew(tokens.T), counted)
        return counted


def _not_continued(sequences: Int[Tensor, "batch sequence"], before: list[int]) -> str:
    return (
        f"the generated sequences ({list(sequences.shape)!r}) don't continue those of the passes before ({before!r}) "
        "by one token: beam search and assisted decoding can't be recorded, greedy decoding and sampling can"
    )
