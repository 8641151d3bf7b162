"""What is kept of a generation while its tokens come: sums of maps, and three numbers a token."""

from typing import Final

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from ilis_guard.signature.kernel import signature_map
from ilis_guard.types import Position, Signature, Statistics

CHUNK: Final = 2**18
"""Activations are turned into maps when so many numbers wait (a megabyte): one call for several tokens costs a
fraction of a call a token, and memory doesn't grow with the answer."""


class RunningMaps:
    """The prompt's map, and the last and the mean map of the answer tokens of a batch."""

    def __init__(self, prompt: Float[Tensor, "batch layers hidden"], temperature: float) -> None:
        self._temperature = temperature
        self._prompt = signature_map(prompt, temperature)
        self._last = torch.zeros_like(self._prompt)
        self._sum = torch.zeros_like(self._prompt, dtype=torch.float64)
        self._count = torch.zeros(len(prompt), dtype=torch.int64, device=prompt.device)
        self._waiting: list[Tensor] = []

    @property
    def waiting(self) -> int:
        """Tokens whose activations wait to be turned into maps."""
        return len(self._waiting)

    def wait(self, activations: Float[Tensor, "batch layers hidden"]) -> bool:
        """Keep a token's activations; tells whether so many wait that they should be added."""
        self._waiting.append(activations)
        return len(self._waiting) * activations.numel() >= CHUNK

    def add_waiting(self, counted: Bool[Tensor, "batch waiting"]) -> None:
        """Turn the waiting activations into maps and add those of answer tokens.

        Raises:
            SignatureError: an activation isn't finite.
        """
        if not self._waiting:
            return
        maps = signature_map(torch.stack(self._waiting), self._temperature)
        self._waiting.clear()
        for newest, here in zip(maps, counted.T.to(maps.device)[:, :, None, None], strict=True):
            self._last = torch.where(here, newest, self._last)
            self._sum += torch.where(here, newest, 0.0)
        self._count += counted.sum(dim=1).to(maps.device)

    def signatures(self, row: int) -> dict[Position, Signature]:
        """A row's maps; `last` and `mean` only where an answer token passed through the model."""
        signatures: dict[Position, Signature] = {"prompt": _numbers(self._prompt[row])}
        if count := int(self._count[row]):
            signatures["last"] = _numbers(self._last[row])
            signatures["mean"] = _numbers((self._sum[row] / count).to(torch.float32))
        return signatures


class RunningStatistics:
    """What the next-token distributions of a batch said of the tokens that were drawn from them."""

    def __init__(self) -> None:
        self._next: Tensor | None = None
        self._logprobs: list[Tensor] = []
        self._entropies: list[Tensor] = []
        self._margins: list[Tensor] = []

    def expect(self, scores: Float[Tensor, "batch vocabulary"]) -> None:
        """Take the logits from which the next token will be drawn."""
        logprobs = torch.log_softmax(scores.to(torch.float32), dim=-1)
        # Skipping not-a-number: a token that can't be said (probability 0, logarithm -inf) has no part in it.
        self._entropies.append(-(logprobs.exp() * logprobs).nansum(dim=-1))
        likeliest, second = logprobs.topk(2, dim=-1).values.exp().unbind(dim=-1)
        self._margins.append(likeliest - second)
        self._next = logprobs

    def draw(self, tokens: Int[Tensor, " batch"]) -> None:
        """Take the tokens that were drawn."""
        assert self._next is not None, "a distribution comes before its token"
        self._logprobs.append(self._next.gather(1, tokens.to(self._next.device)[:, None]).squeeze(1))

    def statistics(self, counted: Bool[Tensor, "batch tokens"]) -> list[Statistics | None]:
        """Each row's statistics over its answer tokens; None where it has none."""
        logprobs, entropies, margins = (
            torch.stack(values, dim=1).double().cpu() for values in (self._logprobs, self._entropies, self._margins)
        )
        return [
            Statistics(
                logprob_sum=float(logprobs[row, here].sum()),
                logprob_mean=float(logprobs[row, here].mean()),
                entropy_mean=float(entropies[row, here].mean()),
                margin_min=float(margins[row, here].min()),
            )
            if here.any()
            else None
            for row, here in enumerate(counted.cpu())
        ]


def _numbers(signature: Float32[Tensor, "layers layers"]) -> Signature:
    numbers: Signature = signature.cpu().numpy()
    return numbers
