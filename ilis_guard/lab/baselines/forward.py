"""Run harvested answers through their model again, in batches, for what the baselines need."""

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Float64, Int
from torch import Tensor, nn

from ilis_guard.errors import SignatureError
from ilis_guard.lab.baselines.lens import LogitLens
from ilis_guard.lab.baselines.observations import LENS_SITES, SITES, UNIT, LensSite
from ilis_guard.lab.baselines.scores import TokenStatistics, rauq_layers
from ilis_guard.models.decoding import row_cache, special_tokens
from ilis_guard.models.local import LocalModel
from ilis_guard.models.shared_prefix import prefill
from ilis_guard.signature import Tap, TapPoint, locate
from ilis_guard.signature.accumulators import next_token_numbers
from ilis_guard.types import Message, Site

ATTENTION_NAMES: Final = ("self_attn", "attn", "attention", "self_attention")
"""The names of attention modules in decoder layers of transformers."""
ATTENTION_OUTPUTS: Final = {"BloomForCausalLM": "dense"}
"""Where an attention module adds the residual stream itself: the part of it whose output is what it adds."""
EAGER: Final = "eager"
"""The implementation of attention that returns its weights."""
LARGEST: Final = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedAnswer:
    """A harvested answer with its prompt, in tokens."""

    prompt: Sequence[int]
    answer: Sequence[int]
    """Without the end token."""
    is_cut: bool
    """Whether it was cut off at its length limit: then its last token was drawn and never went through the model."""

    @property
    def fed(self) -> Sequence[int]:
        """The answer's tokens that went through the model."""
        return self.answer[: len(self.answer) - self.is_cut]

    @property
    def length(self) -> int:
        """Tokens of its forward pass."""
        return len(self.prompt) + len(self.fed)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardResult:
    """The results of one answer's forward pass."""

    statistics: TokenStatistics
    activations: dict[Site, Float16[np.ndarray, "layers hidden"]]
    """At the last answer token that went through the model, the signature's `last`; in the `UNIT` of the site."""
    lens: Float32[np.ndarray, "sites layers"]
    """At the same token, the entropies of `LENS_SITES` through the logit lens, nats."""


class ForwardRunner:
    """Runs prompts and answers through a model, padded on the left, so that the newest tokens are aligned.

    Args:
        model: that was harvested.

    Raises:
        SignatureError: the model has no attention modules, final norm or unembedding where transformers has them.
    """

    def __init__(self, model: LocalModel) -> None:
        self._network = model.checkpoint.model
        self._pad = int(model.checkpoint.tokenizer.pad_token_id)
        self._special = frozenset(special_tokens(model.checkpoint.tokenizer))
        layers = model.checkpoint.layers
        self._points = {site: locate(self._network, layers, site) for site in SITES}
        attention = [_attention(point.module, point.layer) for point in self._points["residual"]]
        self._attention = [attention[layer] for layer in rauq_layers(layers)]
        self._attention_outputs = attention_outputs(self._network, self._points["residual"])
        self._lens = LogitLens(self._network, self._points["residual"])
        # The question taken away, what is left of the prompt: the same for all answers.
        self._empty = model.prompt_tokens([Message(role="user", content="")])
        self._takes = inspect.signature(self._network.forward).parameters

    def run(self, batch: Sequence[TokenizedAnswer]) -> list[ForwardResult]:
        """Run answers of which at least one answer token goes through the model.

        Raises:
            SignatureError: an activation is missing, not finite or too large, or the attention returns no weights.
        """
        counted = [self._answer_places(given) for given in batch]
        kept = 1 + max(len(given.fed) for given in batch)
        # Each row's last answer token, counted from the end: special tokens, which don't count, may follow it. And the
        # token that its first one was drawn at.
        behind = [
            len(row.fed) - 1 - max(_below(places, len(row.fed))) for row, places in zip(batch, counted, strict=True)
        ]
        before = [len(row.fed) - min(places) for row, places in zip(batch, counted, strict=True)]
        with _attention_implementation(self._network, EAGER), ExitStack() as stack:
            inputs = self._inputs([[*given.prompt, *given.fed] for given in batch], kept)
            taps = {
                site: stack.enter_context(Tap(points, newest=max(before) + 1)) for site, points in self._points.items()
            }
            weights = stack.enter_context(_own_weights(self._attention, kept))
            attention = stack.enter_context(_outputs(self._attention_outputs, behind))
            logits = self._logits(inputs, kept)
            activations = {site: tap.take()[0] for site, tap in taps.items()}  # [batch, newest, layers, hidden]
        own = torch.stack([weights[at] for at in range(len(self._attention))], dim=1)  # [batch, layers, heads, kept]
        rows = torch.arange(len(batch))
        last = {site: of_site[rows, -1 - torch.tensor(behind)] for site, of_site in activations.items()}
        with torch.inference_mode():
            self._lens.check(last["residual"][:1, -1], logits[:1, -1 - behind[0]])
            added = torch.stack(attention, dim=1)
            lens = self._entropies({site: added if site == "attention" else last[site] for site in LENS_SITES})
            drawn_at = activations["residual"][rows, -1 - torch.tensor(before)]
            first = torch.tensor([given.answer[min(places)] for given, places in zip(batch, counted, strict=True)])
            with_question = self._first_token(drawn_at, first)
            without_question = self._first_token(self._at_empty_question.expand(len(batch), -1, -1), first)
        return [
            ForwardResult(
                statistics=_token_statistics(
                    given,
                    places,
                    logits[row],
                    own[row],
                    information=with_question[row] - without_question[row],
                ),
                activations={site: _half(of_site[row], site) for site, of_site in last.items()},
                lens=lens[row].numpy(),
            )
            for row, (given, places) in enumerate(zip(batch, counted, strict=True))
        ]

    def next_token(self, prompts: Sequence[Sequence[int]], tokens: Sequence[int]) -> Float64[np.ndarray, "rows tokens"]:
        """Return the log-probabilities, nats, of some next tokens."""
        logits = self._logits(self._inputs(prompts, 1), 1)[:, -1].to(torch.float32)
        chosen: Float64[np.ndarray, "rows tokens"] = (
            logits.log_softmax(dim=-1)[:, list(tokens)].to(torch.float64).cpu().numpy()
        )
        return chosen

    @cached_property
    def _at_empty_question(self) -> Float[Tensor, "one layers hidden"]:
        """The residual stream at the end of a prompt without a question."""
        inputs = self._inputs([self._empty], 1)
        with Tap(self._points["residual"]) as tap:
            self._logits(inputs, 1)
            return tap.take()[0][:, 0].clone()

    def _entropies(
        self, hidden: Mapping[LensSite, Float[Tensor, "batch layers hidden"]]
    ) -> Float32[Tensor, "batch sites layers"]:
        found = [
            self._lens.entropies(hidden[site].flatten(0, 1)).reshape(hidden[site].shape[:2]) for site in LENS_SITES
        ]
        return torch.stack(found, dim=1)

    def _first_token(
        self, hidden: Float[Tensor, "batch layers hidden"], tokens: Int[Tensor, " batch"]
    ) -> Float32[Tensor, "batch layers"]:
        """The log-probabilities that the layers, each as if it were the last, give to each row's token."""
        layers = hidden.shape[1]
        return self._lens.logprobs(hidden.flatten(0, 1), tokens.repeat_interleave(layers)).reshape(hidden.shape[:2])

    def _answer_places(self, given: TokenizedAnswer) -> list[int]:
        """The places of answer tokens, without special tokens."""
        return [place for place, token in enumerate(given.answer) if token not in self._special]

    def _inputs(self, sequences: Sequence[Sequence[int]], kept: int) -> dict[str, Any]:
        """Pad rows on the left; what all begin with goes through the model here, but for the newest `kept` tokens."""
        width = max(map(len, sequences))
        ids = torch.tensor([[self._pad] * (width - len(row)) + list(row) for row in sequences])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in sequences])
        cache = row_cache(self._network, self._network.generation_config) if len(sequences) > 1 else None
        if cache is not None:
            with torch.inference_mode():
                prefill(self._network, sequences, cache, newest=kept)
        done = 0 if cache is None else cache.get_seq_length()
        given: dict[str, Any] = {"input_ids": ids[:, done:], "attention_mask": mask}
        if "position_ids" in self._takes:
            given["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, done:]
        on_device = {name: tensor.to(self._network.device) for name, tensor in given.items()}
        return on_device | ({"past_key_values": cache, "use_cache": True} if done else {"use_cache": False})

    def _logits(self, inputs: Mapping[str, Any], kept: int) -> Tensor:
        """The logits after each of the newest `kept` tokens of each row."""
        # Those of whole prompts may take gigabytes.
        few = {"logits_to_keep": kept} if "logits_to_keep" in self._takes else {}
        with torch.inference_mode():
            logits: Tensor = self._network(**inputs, **few).logits[:, -kept:]
        return logits


def _below(places: Sequence[int], end: int) -> list[int]:
    return list(itertools.takewhile(lambda place: place < end, places))


def attention_outputs(network: nn.Module, layers: Sequence[TapPoint]) -> list[nn.Module]:
    """Find the module of each layer whose output is what its attention adds to the residual stream.

    Raises:
        SignatureError: a layer has no attention module where transformers has it.
    """
    inside = ATTENTION_OUTPUTS.get(type(network).__name__, "")
    return [_attention(point.module, point.layer).get_submodule(inside) for point in layers]


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
    before = network.config._attn_implementation  # noqa: SLF001 - transformers has a method to set it and none to read it
    network.set_attn_implementation(name)
    try:
        yield
    finally:
        network.set_attn_implementation(before)


@contextmanager
def _own_weights(modules: Sequence[nn.Module], kept: int) -> Iterator[dict[int, Float32[Tensor, "batch heads kept"]]]:
    """Record each of the newest tokens' attention weight on itself, for each module.

    The other weights are dropped: those of a whole batch, in all layers, take gigabytes.
    """
    weights: dict[int, Tensor] = {}

    def recorder(at: int) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, _inputs: Any, output: Any) -> None:
            parts = output if isinstance(output, tuple) else ()
            found = [part for part in parts if isinstance(part, Tensor) and part.ndim == 4]
            if len(found) != 1:
                raise SignatureError(
                    f"{type(module).__name__} returned no attention weights with the implementation "
                    f"{EAGER!r}: RAUQ can't be computed for this model"
                )
            newest = found[0][:, :, -kept:, -kept:].diagonal(dim1=-2, dim2=-1)
            weights[at] = newest.to("cpu", torch.float32)

        return record

    with ExitStack() as stack:
        for at, module in enumerate(modules):
            stack.callback(module.register_forward_hook(recorder(at)).remove)
        yield weights


@contextmanager
def _outputs(modules: Sequence[nn.Module], behind: Sequence[int]) -> Iterator[list[Float[Tensor, "batch hidden"]]]:
    """Record each module's output at one token of each row, so many from its end."""
    outputs: list[Tensor] = []
    places = -1 - torch.tensor(behind)

    def record(module: nn.Module, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            raise SignatureError(
                f"{type(module).__name__} returned no output of [batch, sequence, hidden]: without it there is no "
                "logit lens of attention"
            )
        outputs.append(hidden[torch.arange(len(behind)), places].to("cpu"))

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(record).remove)
        yield outputs


def _token_statistics(
    given: TokenizedAnswer,
    counted: Sequence[int],
    logits: Tensor,
    own: Float32[Tensor, "layers heads kept"],
    information: Float32[Tensor, " layers"],
) -> TokenStatistics:
    """The statistics of one row's answer tokens, from its distributions and attention weights."""
    first = logits.shape[0] - len(given.fed) - 1  # after the prompt's last token
    distributions = logits[first:][: len(given.answer)][list(counted)]
    drawn: Int[Tensor, " tokens"] = torch.tensor([given.answer[place] for place in counted])
    logprobs, entropies, margins = next_token_numbers(distributions, drawn).to(torch.float64).cpu().numpy()
    # While a token is generated, the newest token that attention sees is the previous one: its weight is that of the
    # previous token on itself.
    before = [first + place for place in counted[1:]]
    return TokenStatistics(
        logprobs=logprobs,
        entropies=entropies,
        margins=margins,
        from_uniform=_from_uniform(distributions),
        attention=own[:, :, before].numpy(),
        information=information.numpy(),
    )


def _from_uniform(logits: Tensor) -> Float64[np.ndarray, " tokens"]:
    """KL(uniform || next-token distribution), nats, over the tokens with a finite logit."""
    logprobs = logits.to(torch.float32).log_softmax(dim=-1)
    possible = logprobs.isfinite()
    count = possible.sum(dim=-1)
    mean = torch.where(possible, logprobs, 0).sum(dim=-1, dtype=torch.float64) / count
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
