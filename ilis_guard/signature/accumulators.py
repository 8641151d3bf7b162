"""Accumulators of a generation's tokens: sums of maps, and of three numbers a token, in constant memory."""

from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from torch.nn.functional import pad

from ilis_guard.signature.kernel import signature_map
from ilis_guard.types import Position, Signature, Statistics

CHUNK: Final = 2**20
"""Numbers (activations and logits) that are summed up at once: code that handles many tokens stays in the processor's
cache."""
PIECE: Final = {"cpu": 2**17, "cuda": 2**22}
"""Numbers that one operation handles: as many as fit a processor's cache, or as make a kernel launch worth it."""
BLOCK: Final = 256
"""Logits in one block of the search for the two largest."""
LOWEST: Final = -1e30
"""A finite logarithm whose exponential is 0."""


class RunningMaps:
    """Accumulates the prompt's map, and the last and the mean map of the answer tokens, of each row of a batch."""

    def __init__(
        self, prompt: Float[Tensor, "batch layers hidden"], temperature: float, *, every_token: bool = False
    ) -> None:
        self._temperature = temperature
        self._prompt = signature_map(prompt, temperature)
        self._last = torch.zeros_like(self._prompt)
        self._sum = torch.zeros_like(self._prompt, dtype=torch.float64)
        self._count = torch.zeros(len(prompt), dtype=torch.int64, device=prompt.device)
        self._tokens: list[Float32[Tensor, "tokens batch layers layers"]] | None = [] if every_token else None

    def add(
        self, activations: Float[Tensor, "tokens batch layers hidden"], counted: Bool[Tensor, "tokens batch"]
    ) -> None:
        """Compute the maps of tokens, and add those of answer tokens.

        Raises:
            SignatureError: an activation isn't finite.
        """
        maps = torch.cat([signature_map(piece, self._temperature) for piece in _pieces(activations)])
        if self._tokens is not None:
            self._tokens.append(maps.cpu())
        here = counted.to(maps.device)
        self._sum += torch.einsum("tb,tbij->bij", here.to(torch.float64), maps.to(torch.float64))
        self._count += here.sum(dim=0)
        number = torch.arange(1, len(here) + 1, device=maps.device)
        newest = (here * number[:, None]).amax(dim=0)
        rows = torch.arange(here.shape[1], device=maps.device)
        self._last = torch.where((newest > 0)[:, None, None], maps[newest.clamp(min=1) - 1, rows], self._last)

    def restart(self, rows: Bool[Tensor, " batch"]) -> None:
        """Drop what these rows have so far, but for the prompt's maps."""
        rows = rows.to(self._count.device)
        self._count[rows] = 0
        self._sum[rows] = 0

    def signatures(self, row: int) -> dict[Position, Signature]:
        """Return a row's maps; `last` and `mean` only where an answer token passed through the model."""
        signatures: dict[Position, Signature] = {"prompt": _numbers(self._prompt[row])}
        if count := int(self._count[row]):
            signatures["last"] = _numbers(self._last[row])
            signatures["mean"] = _numbers((self._sum[row] / count).to(torch.float32))
        return signatures

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep only these rows."""
        rows = rows.to(self._prompt.device)
        self._prompt, self._last = self._prompt[rows], self._last[rows]
        self._sum, self._count = self._sum[rows], self._count[rows]
        if self._tokens is not None:
            self._tokens = [maps[:, rows.cpu()] for maps in self._tokens]

    def of_tokens(self, row: int) -> Float32[np.ndarray, "tokens layers layers"] | None:
        """Return the map of each of a row's generated tokens that passed through; None unless they are kept."""
        if self._tokens is None:
            return None
        maps: np.ndarray = torch.cat([self._prompt[None][:0].cpu(), *self._tokens])[:, row].numpy()
        return maps


class RunningStatistics:
    """Accumulates output statistics of each row of a batch: how likely its tokens were to be drawn."""

    def __init__(self, rows: int) -> None:
        self._logprob, self._entropy = torch.zeros(2, rows, dtype=torch.float64)
        self._margin = torch.full((rows,), torch.inf, dtype=torch.float64)
        self._count = torch.zeros(rows, dtype=torch.int64)

    def add(self, numbers: Float32[Tensor, "tokens 3 batch"], counted: Bool[Tensor, "tokens batch"]) -> None:
        """Add the log-probabilities, entropies and margins of those tokens that count."""
        logprobs, entropies, margins = numbers.double().cpu().unbind(dim=1)
        here = counted.cpu()
        self._logprob += torch.where(here, logprobs, 0).sum(dim=0)
        self._entropy += torch.where(here, entropies, 0).sum(dim=0)
        self._margin = torch.minimum(self._margin, torch.where(here, margins, torch.inf).amin(dim=0))
        self._count += here.sum(dim=0)

    def restart(self, rows: Bool[Tensor, " batch"]) -> None:
        """Drop what these rows have so far."""
        self._logprob[rows] = self._entropy[rows] = 0
        self._margin[rows] = torch.inf
        self._count[rows] = 0

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep only these rows."""
        self._logprob, self._entropy = self._logprob[rows], self._entropy[rows]
        self._margin, self._count = self._margin[rows], self._count[rows]

    def statistics(self, row: int) -> Statistics | None:
        """Return a row's statistics over its answer tokens; None where it has none."""
        count = int(self._count[row])
        if not count:
            return None
        return Statistics(
            logprob_sum=float(self._logprob[row]),
            logprob_mean=float(self._logprob[row]) / count,
            entropy_mean=float(self._entropy[row]) / count,
            margin_min=float(self._margin[row]),
        )


class NextTokens:
    """Keeps the logits of next tokens until the tokens are drawn.

    It copies them: a copy takes a hundredth of the time of summing them up, and references to the logits would keep the
    allocator from reusing their memory for the model.

    Args:
        logits: the first, of each row.
        room: how many more it keeps at most.
    """

    def __init__(self, logits: Float[Tensor, "rows vocabulary"], room: int) -> None:
        self._kept = logits.new_empty(room + 1, *logits.shape)
        self._count = 0
        self.add(logits)

    def add(self, logits: Float[Tensor, "rows vocabulary"]) -> None:
        """Keep the next logits."""
        self._kept[self._count].copy_(logits)
        self._count += 1

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep only these rows."""
        self._kept = self._kept[:, rows.to(self._kept.device)]

    def numbers_of(self, tokens: Int[Tensor, "tokens rows"]) -> Float32[Tensor, "tokens 3 rows"]:
        """Compute log-probability, entropy and margin of tokens drawn from the first logits kept, and drop these."""
        count = len(tokens)
        numbers = next_token_numbers(self._kept[:count].flatten(0, 1), tokens.flatten())
        for place in range(count, self._count):
            self._kept[place - count].copy_(self._kept[place])
        self._count -= count
        return numbers.reshape(3, *tokens.shape).movedim(0, 1)


def next_token_numbers(
    logits: Float[Tensor, "rows vocabulary"], drawn: Int[Tensor, " rows"]
) -> Float32[Tensor, "3 rows"]:
    """Compute log-probability, entropy and margin of tokens, given the logits that they were drawn from."""
    pieces = _pieces(logits)
    tokens = torch.split(drawn.to(logits.device), len(pieces[0]))
    return torch.cat([_of_distributions(*piece) for piece in zip(pieces, tokens, strict=True)], dim=1)


def _of_distributions(
    logits: Float[Tensor, "rows vocabulary"], tokens: Int[Tensor, " rows"]
) -> Float32[Tensor, "3 rows"]:
    """With z the logits less the largest: log p = z - ln sum(e^z), and H = ln sum(e^z) - sum(e^z z) / sum(e^z)."""
    logits = logits.to(torch.float32)
    largest, second = _two_largest(logits).unbind(dim=-1)
    # A token of probability 0 (logit -inf) adds nothing to the entropy, but 0 times -inf would be NaN.
    below = (logits - largest[:, None]).clamp_(min=LOWEST)
    weights = below.exp()
    total = weights.sum(dim=-1)
    mean = torch.linalg.vecdot(weights, below) / total
    logarithm = total.log()
    logprobs = below.gather(1, tokens[:, None]).squeeze(1) - logarithm
    return torch.stack([logprobs, logarithm - mean, -(second - largest).expm1() / total])


def chunk_length(numbers: int) -> int:
    """How many tokens to sum up at once, if each brings so many numbers."""
    return max(1, CHUNK // numbers)


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Split along the first dimension into pieces that suit its device."""
    size = PIECE.get(tensor.device.type, PIECE["cuda"]) // max(1, tensor[:1].numel())
    return torch.split(tensor, max(1, size))


def _two_largest(values: Float32[Tensor, "batch vocabulary"]) -> Float32[Tensor, "batch 2"]:
    """As ``topk(2)``, in an eighth of the time: both lie in the two blocks whose largest values are the largest."""
    if values.shape[1] <= BLOCK:
        return values.topk(2, dim=-1).values
    over = -values.shape[1] % BLOCK
    padded = pad(values, (0, over), value=-torch.inf) if over else values  # which would copy them
    blocks = padded.reshape(len(values), -1, BLOCK)
    chosen = blocks.amax(dim=-1).topk(2, dim=-1).indices[:, :, None].expand(-1, -1, BLOCK)
    return blocks.gather(1, chosen).flatten(1).topk(2, dim=-1).values


def _numbers(signature: Float32[Tensor, "layers layers"]) -> Signature:
    numbers: Signature = signature.cpu().numpy()
    return numbers
