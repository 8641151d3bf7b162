"""The recorder: what one call of ``generate`` shows of itself, token by token, in constant memory."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from ilis_guard.errors import SignatureError
from ilis_guard.signature.running import NextToken, RunningMaps, RunningStatistics, chunk_length
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

    def __init__(self, end_tokens: Collection[int], special_tokens: Collection[int]) -> None:
        self._end = torch.tensor(sorted(end_tokens), dtype=torch.int64)
        self._special = torch.tensor(sorted(special_tokens), dtype=torch.int64)
        self.ended: Bool[Tensor, " batch"] = torch.zeros(1, dtype=torch.bool)
        self.count: Int[Tensor, " batch"] = torch.zeros(1, dtype=torch.int64)

    def add(self, tokens: Int[Tensor, "tokens batch"]) -> Bool[Tensor, "tokens batch"]:
        """Take the next tokens; tells which of them count."""
        tokens = tokens.cpu()
        ended = self.ended | (torch.isin(tokens, self._end).cumsum(dim=0) > 0)
        counted = ~ended & ~torch.isin(tokens, self._special)
        self.ended = ended[-1]
        self.count = self.count + counted.sum(dim=0)
        return counted


class Recorder:
    """A logits processor that looks and changes nothing: transformers calls it after every forward pass.

    In that call the tap holds the activations of the token just fed in, ``input_ids`` ends with that token, and
    ``scores`` are the logits of the next. The last token of an answer cut off at its length limit never passes
    through the model: it counts in the statistics and has no map.

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
        self._answer = AnswerTokens(end_tokens, special_tokens)
        self._temperature = temperature
        self._every_token = every_token
        self._before: Int[Tensor, "batch sequence"] | None = None
        self._next: NextToken | None = None
        self._buffer = torch.empty(0)
        self._length = 0
        self._fed: list[Int[Tensor, " batch"]] = []
        self._waiting: list[Float32[Tensor, "3 batch"]] = []

    def __call__(self, input_ids: Int[Tensor, "batch sequence"], scores: Float[Tensor, "batch vocabulary"]) -> Tensor:
        """Record the forward pass that has just ended; the scores are returned as they came."""
        if self._before is None:
            self._begin(input_ids)
        else:
            self._check_grew(input_ids)
            self._tap.take(out=self._buffer[len(self._waiting)])
            self._waiting.append(self._drawn(input_ids))
            if len(self._waiting) == len(self._buffer):
                self._fold(input_ids)
        self._length = input_ids.shape[1]
        self._next = NextToken(scores)
        return scores

    def so_far(self, sequences: Int[Tensor, "batch sequence"]) -> list[Recording]:
        """What is known of each row, once the tokens of `sequences` have passed through the model.

        Raises:
            SignatureError: no forward pass was seen, or an activation isn't finite.
        """
        if self._before is None:
            raise SignatureError("generation ended without a forward pass that the recorder saw")
        self._fold(sequences)
        return [
            Recording(
                signatures=self._maps.signatures(row),
                statistics=self._statistics.statistics(row),
                tokens=int(self._answer.count[row]),
                ended=bool(self._answer.ended[row]),
                token_maps=self._maps.of_tokens(row),
            )
            for row in range(len(sequences))
        ]

    def finish(self, sequences: Int[Tensor, "batch sequence"]) -> list[Recording]:
        """Take the last generated token, which is never fed back, and close the books.

        Args:
            sequences: what ``generate`` returned.

        Raises:
            SignatureError: as `so_far`, or the sequences aren't those that were recorded.
        """
        if self._before is not None:
            self._check_grew(sequences)
            self._fold(sequences[:, :-1])
            self._statistics.add(self._drawn(sequences)[None], self._answer.add(sequences[:, -1][None]))
        return self.so_far(sequences)

    def _begin(self, input_ids: Int[Tensor, "batch sequence"]) -> None:
        prompt = self._tap.take()
        rows = len(input_ids)
        if len(prompt) != rows:
            raise SignatureError(f"{rows} prompts went in, and activations of {len(prompt)} rows came out")
        self._maps = RunningMaps(prompt.squeeze(1), self._temperature, every_token=self._every_token)
        self._statistics = RunningStatistics(rows)
        self._buffer = prompt.new_empty(chunk_length(prompt), *prompt.shape)
        self._before = input_ids

    def _check_grew(self, sequences: Int[Tensor, "batch sequence"]) -> None:
        """Each row must have one token more than before."""
        assert self._before is not None, "the prompt comes first"
        if sequences.shape != (len(self._before), self._length + 1):
            raise SignatureError(_not_continued(sequences, [len(self._before), self._length]))

    def _drawn(self, sequences: Int[Tensor, "batch sequence"]) -> Float32[Tensor, "3 batch"]:
        assert self._next is not None, "a distribution comes before its token"
        self._fed.append(sequences[:, -1])
        return self._next.drawn(sequences[:, -1])

    def _fold(self, fed: Int[Tensor, "batch sequence"]) -> None:
        """Turn what waits of the newest of the tokens that were fed in into sums."""
        assert self._before is not None, "the prompt comes first"
        # Where beams change places, a row's tokens aren't those that it was seen to draw.
        continued = torch.cat([self._before, *(tokens[:, None] for tokens in self._fed)], dim=1)
        if not torch.equal(fed, continued):
            raise SignatureError(_not_continued(fed, list(continued.shape)))
        self._before = fed
        self._fed.clear()
        if waiting := len(self._waiting):
            counted = self._answer.add(fed[:, -waiting:].T)
            self._maps.add(self._buffer[:waiting, :, 0], counted)
            self._statistics.add(torch.stack(self._waiting), counted)
            self._waiting.clear()


def _not_continued(sequences: Int[Tensor, "batch sequence"], before: list[int]) -> str:
    return (
        f"the generated sequences ({list(sequences.shape)!r}) don't continue those of the passes before ({before!r}) "
        "by one token: beam search and assisted decoding can't be recorded, greedy decoding and sampling can"
    )
