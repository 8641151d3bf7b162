"""The recorder: what one call of ``generate`` shows of itself, token by token, in constant memory."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ilis_guard.errors import SignatureError
from ilis_guard.signature.kernel import signature_map
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
    ``scores`` are the logits of the next. Running sums are kept, so that memory doesn't grow with the answer. The
    last token of an answer cut off at its length limit never passes through the model: it counts in the
    statistics and has no map.
    """

    def __init__(
        self, tap: Tap, *, end_tokens: Collection[int], special_tokens: Collection[int], temperature: float
    ) -> None:
        self._tap = tap
        self._end_tokens = list(end_tokens)
        self._special_tokens = list(special_tokens)
        self._temperature = temperature
        self._sums: _Sums | None = None

    def __call__(self, input_ids: Int[Tensor, "batch sequence"], scores: Float[Tensor, "batch vocabulary"]) -> Tensor:
        """Record the forward pass that has just ended; the scores are returned as they came."""
        maps = signature_map(self._tap.take(), self._temperature)
        if self._sums is None:
            self._sums = _Sums(maps)
        else:
            counted = self._count(self._sums, input_ids[:, -1])
            self._sums.add_maps(counted, maps)
        self._sums.expect(scores)
        return scores

    def finish(self, sequences: Int[Tensor, "batch sequence"]) -> list[Recording]:
        """Count the last generated token, which is never fed back, and close the books.

        Args:
            sequences: what ``generate`` returned.

        Raises:
            SignatureError: no forward pass was seen.
        """
        if self._sums is None:
            raise SignatureError("generation ended without a forward pass that the recorder saw")
        self._count(self._sums, sequences[:, -1])
        return self._sums.recordings()

    def _count(self, sums: "_Sums", tokens: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Which rows' newest token is an answer token; its statistics are added."""
        sums.live &= ~_is_in(tokens, self._end_tokens)
        counted = sums.live & ~_is_in(tokens, self._special_tokens)
        sums.add_statistics(counted, tokens)
        return counted


class _Sums:
    """Running sums over the answer tokens of a batch."""

    def __init__(self, prompt: Float[Tensor, "batch layers layers"]) -> None:
        rows, device = prompt.shape[0], prompt.device
        self.live = torch.ones(rows, dtype=torch.bool, device=device)
        self._prompt = prompt
        self._last = torch.zeros_like(prompt)
        self._maps = torch.zeros_like(prompt, dtype=torch.float64)
        self._mapped = torch.zeros(rows, dtype=torch.int64, device=device)
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self._logprob = torch.zeros(rows, dtype=torch.float64, device=device)
        self._entropy = torch.zeros(rows, dtype=torch.float64, device=device)
        self._margin = torch.ones(rows, dtype=torch.float64, device=device)

    def expect(self, scores: Float[Tensor, "batch vocabulary"]) -> None:
        """Keep the distribution from which the next token is drawn."""
        self._next_logprobs = torch.log_softmax(scores.to(device=self.live.device, dtype=torch.float32), dim=-1)

    def add_statistics(self, counted: Bool[Tensor, " batch"], tokens: Int[Tensor, " batch"]) -> None:
        """Add what the distribution said of the tokens that were drawn from it."""
        logprobs = self._next_logprobs
        probabilities = logprobs.exp()
        # 0 * log 0 is 0: a token that a model can't say (log-probability -inf) adds nothing to the entropy.
        entropy = -(probabilities * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(dim=-1)
        likeliest, second = probabilities.topk(2, dim=-1).values.unbind(dim=-1)
        drawn = logprobs.gather(1, tokens.to(logprobs.device)[:, None]).squeeze(1)
        self._tokens += counted
        self._logprob += torch.where(counted, drawn, 0.0)
        self._entropy += torch.where(counted, entropy, 0.0)
        self._margin = torch.where(counted, torch.minimum(self._margin, (likeliest - second).double()), self._margin)

    def add_maps(self, counted: Bool[Tensor, " batch"], maps: Float[Tensor, "batch layers layers"]) -> None:
        """Add the maps of the tokens that were fed in."""
        here = counted[:, None, None]
        self._maps += torch.where(here, maps, 0.0)
        self._last = torch.where(here, maps, self._last)
        self._mapped += counted

    def recordings(self) -> list[Recording]:
        """One recording a row."""
        mean = (self._maps / self._mapped.clamp(min=1)[:, None, None]).to(torch.float32)
        return [self._recording(row, mean[row]) for row in range(len(self._tokens))]

    def _recording(self, row: int, mean: Float[Tensor, "layers layers"]) -> Recording:
        signatures: dict[Position, Signature] = {"prompt": self._prompt[row].cpu().numpy()}
        if self._mapped[row]:
            signatures |= {"last": self._last[row].cpu().numpy(), "mean": mean.cpu().numpy()}
        tokens = int(self._tokens[row])
        statistics = (
            Statistics(
                logprob_sum=float(self._logprob[row]),
                logprob_mean=float(self._logprob[row]) / tokens,
                entropy_mean=float(self._entropy[row]) / tokens,
                margin_min=float(self._margin[row]),
            )
            if tokens
            else None
        )
        return Recording(signatures=signatures, statistics=statistics, tokens=tokens, ended=not bool(self.live[row]))


def _is_in(tokens: Int[Tensor, " batch"], ids: list[int]) -> Bool[Tensor, " batch"]:
    return torch.isin(tokens, torch.tensor(ids, dtype=tokens.dtype, device=tokens.device))
