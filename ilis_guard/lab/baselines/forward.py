"""Passes: harvested answers go through their model again, many at once, and show what other methods look at."""

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float16, Float32, Float64, Int
from torch import Tensor, nn

from ilis_guard.errors import SignatureError
from ilis_guard.lab.baselines.observations import SITES, UNIT
from ilis_guard.lab.baselines.unsupervised import AnswerNumbers, rauq_layers
from ilis_guard.models.decoding import special_tokens
from ilis_guard.models.local import LocalModel
from ilis_guard.signature import Tap, locate
from ilis_guard.signature.accumulators import next_token_numbers
from ilis_guard.types import Site

ATTENTION_NAMES: Final = ("self_attn", "attn", "attention", "self_attention")
"""What decoder layers of transformers call the attention whose weights are looked at."""
EAGER: Final = "eager"
"""The implementation of attention that gives its weights."""
LARGEST: Final = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A harvested answer, in tokens."""

    prompt: Sequence[int]
    answer: Sequence[int]
    """Without the end token."""
    is_cut: bool
    """It was cut off at its length limit: its last token was drawn and never passed through the model."""

    @property
    def fed(self) -> Sequence[int]:
        """The answer's tokens that passed through the model."""
        return self.answer[: len(self.answer) - self.is_cut]

    @property
    def length(self) -> int:
        """Tokens of a pass."""
        return len(self.prompt) + len(self.fed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one answer's pass showed."""

    numbers: AnswerNumbers
    activations: dict[Site, Float16[np.ndarray, "layers hidden"]]
    """At the last answer token that passed through the model, as the signature's position `last`; in their site's
    `UNIT`."""


class Passes:
    """Puts prompts and answers through a model, padded on the left: the newest tokens stand in one column."""

    def __init__(self, model: LocalModel) -> None:
        self._network = model.checkpoint.model
        self._pad = int(model.checkpoint.tokenizer.pad_token_id)
        self._special = frozenset(special_tokens(model.checkpoint.tokenizer))
        layers = model.checkpoint.layers
        self._points = {site: locate(self._network, layers, site) for site in SITES}
        decoder = [point.module for point in self._points["residual"]]
        self._attention = [_attention(decoder[layer], layer) for layer in rauq_layers(layers)]
        self._takes = inspect.signature(self._network.forward).parameters

    def read(self, batch: Sequence[Given]) -> list[Seen]:
        """Read answers that have at least one answer token among those that pass through the model.

        Raises:
            SignatureError: an activation is missing, not finite or too large, or the attention gives no weights.
        """
        counted = [self._counted(given) for given in batch]
        kept = 1 + max(len(given.fed) for given in batch)
        # How far from the end each row's last answer token is: special tokens, which are none, may come after it.
        behind = [
            len(row.fed) - 1 - max(_below(places, len(row.fed))) for row, places in zip(batch, counted, strict=True)
        ]
        with _attention_implementation(self._network, EAGER), ExitStack() as stack:
            taps = {
                site: stack.enter_context(Tap(points, newest=max(behind) + 1)) for site, points in self._points.items()
            }
            weights = stack.enter_context(_own_weights(self._attention, kept))
            logits = self._logits([[*given.prompt, *given.fed] for given in batch], kept)
            activations = {site: tap.take()[0] for site, tap in taps.items()}  # [batch, newest, layers, hidden]
        own = torch.stack([weights[at] for at in range(len(self._attention))], dim=1)  # [batch, layers, heads, kept]
        return [
            Seen(
                numbers=_numbers(given, places, logits[row], own[row]),
                activations={
                    site: _half(of_site[row, -1 - behind[row]], site) for site, of_site in activations.items()
                },
            )
            for row, (given, places) in enumerate(zip(batch, counted, strict=True))
        ]

    def next_token(self, prompts: Sequence[Sequence[int]], tokens: Sequence[int]) -> Float64[np.ndarray, "rows tokens"]:
        """Log-probabilities, nats, of tokens that may come next."""
        logits = self._logits(prompts, 1)[:, -1].to(torch.float32)
        chosen: Float64[np.ndarray, "rows tokens"] = (
            logits.log_softmax(dim=-1)[:, list(tokens)].to(torch.float64).cpu().numpy()
        )
        return chosen

    def _counted(self, given: Given) -> list[int]:
        """Places of the answer tokens: special ones are none."""
        return [place for place, token in enumerate(given.answer) if token not in self._special]

    def _logits(self, sequences: Sequence[Sequence[int]], kept: int) -> Tensor:
        """Logits after each of the newest `kept` tokens of each row."""
        width = max(map(len, sequences))
        ids = torch.tensor([[self._pad] * (width - len(row)) + list(row) for row in sequences])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in sequences])
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in self._takes:
            given["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        on_device = {name: tensor.to(self._network.device) for name, tensor in given.items()}
        if "logits_to_keep" in self._takes:  # those of whole prompts may take gigabytes
            on_device["logits_to_keep"] = kept
        with torch.inference_mode():
            logits: Tensor = self._network(**on_device, use_cache=False).logits[:, -kept:]
        return logits


def _below(places: Sequence[int], end: int) -> list[int]:
    return list(itertools.takewhile(lambda place: place < end, places))


def _attention(layer: nn.Module, index: int) -> nn.Module:
    found = [module for name in ATTENTION_NAMES if isinstance(module := getattr(layer, name, None), nn.Module)]
    if len(found) != 1:
        raise SignatureError(
            f"layer {index} (a {type(layer).__name__}) has {len(found)} modules called one of {ATTENTION_NAMES!r}, "
            "expected 1: without attention weights there is no RAUQ"
        )
    return found[0]


@contextmanager
def _attention_implementation(network: Any, name: str) -> Iterator[None]:
    before = network.config._attn_implementation  # noqa: SLF001 - transformers sets it by a method and has none to ask
    network.set_attn_implementation(name)
    try:
        yield
    finally:
        network.set_attn_implementation(before)


@contextmanager
def _own_weights(modules: Sequence[nn.Module], kept: int) -> Iterator[dict[int, Float32[Tensor, "batch heads kept"]]]:
    """Of each of the newest tokens the attention weight on itself, for each module that is run.

    Only these are kept: the weights of a whole batch, in all layers, take gigabytes.
    """
    weights: dict[int, Tensor] = {}

    def hearer(at: int) -> Callable[[nn.Module, Any, Any], None]:
        def heard(module: nn.Module, _inputs: Any, output: Any) -> None:
            parts = output if isinstance(output, tuple) else ()
            found = [part for part in parts if isinstance(part, Tensor) and part.ndim == 4]
            if len(found) != 1:
                raise SignatureError(
                    f"{type(module).__name__} gave no attention weights, though asked for the implementation "
                    f"{EAGER!r}: RAUQ can't be computed for this model"
                )
            newest = found[0][:, :, -kept:, -kept:].diagonal(dim1=-2, dim2=-1)
            weights[at] = newest.to("cpu", torch.float32)

        return heard

    with ExitStack() as stack:
        for at, module in enumerate(modules):
            stack.callback(module.register_forward_hook(hearer(at)).remove)
        yield weights


def _numbers(
    given: Given, counted: Sequence[int], logits: Tensor, own: Float32[Tensor, "layers heads kept"]
) -> AnswerNumbers:
    """What the distributions and weights of one row say of its answer tokens."""
    first = logits.shape[0] - len(given.fed) - 1  # after the prompt's last token
    distributions = logits[first:][: len(given.answer)][list(counted)]
    drawn: Int[Tensor, " tokens"] = torch.tensor([given.answer[place] for place in counted])
    logprobs, entropies, margins = next_token_numbers(distributions, drawn).to(torch.float64).cpu().numpy()
    # While a token is generated, the newest token that attention can see is the one before it, and asks itself.
    before = [first + place for place in counted[1:]]
    return AnswerNumbers(
        logprobs=logprobs,
        entropies=entropies,
        margins=margins,
        from_uniform=_from_uniform(distributions),
        attention=own[:, :, before].numpy(),
    )


def _from_uniform(logits: Tensor) -> Float64[np.ndarray, " tokens"]:
    """KL of the uniform distribution from each next-token distribution, nats, over the tokens that can be said."""
    logprobs = logits.to(torch.float32).log_softmax(dim=-1)
    can_be_said = logprobs.isfinite()
    count = can_be_said.sum(dim=-1)
    mean = torch.where(can_be_said, logprobs, 0).sum(dim=-1, dtype=torch.float64) / count
    divergence: Float64[np.ndarray, " tokens"] = (-mean - count.log()).cpu().numpy()
    return divergence


def _half(activations: Tensor, site: Site) -> Float16[np.ndarray, "layers hidden"]:
    scaled = activations.to(torch.float32) / UNIT[site]
    largest = scaled.abs().amax(dim=-1)
    if not bool((largest <= LARGEST).all()):
        layer = int(torch.argmin((largest <= LARGEST).to(torch.int64)))
        raise SignatureError(
            f"the {site} activation of layer {layer} (counted from 0) isn't finite or doesn't fit into float16: its "
            f"largest entry is {float(largest[layer])!r} times {UNIT[site]!r}, at most {LARGEST!r} times can be kept"
        )
    half: Float16[np.ndarray, "layers hidden"] = scaled.to("cpu", torch.float16).numpy()
    return half
