"""The logit lens: what a model would say next if its layers ended where a hidden state comes from."""

from collections.abc import Iterator
from typing import Any, Final

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn

from ilis_guard.errors import SignatureError
from ilis_guard.signature import TapPoint

NORM_NAMES: Final = ("norm", "norm_f", "ln_f", "layer_norm", "final_layernorm", "final_layer_norm", "embedding_norm")
"""The names of the norms behind the last layer in transformers' decoders."""
PASS_LOGITS: Final = 2**25
"""Logits that are held at a time: an eighth of a gigabyte in float32."""
TOLERANCE: Final = {torch.float64: 1e-6, torch.float32: 1e-3}
"""By the model's dtype, how far its own logits may lie from the lens's, of their largest."""
COARSE: Final = 0.05
"""The same of smaller dtypes."""


class LogitLens:
    """Reads hidden states as the last layer's output is read: by the final norm, the unembedding, and its scale.

    (nostalgebraist, 2020, "interpreting GPT: the logit lens".) No hidden state is kept, and no logits.

    Args:
        network: a causal language model of transformers.
        points: of its layers' residual stream.

    Raises:
        SignatureError: the final norm or the unembedding isn't where transformers has it.
    """

    def __init__(self, network: Any, points: tuple[TapPoint, ...]) -> None:
        self._norm = final_norm(network, points)
        self._unembedding: Any = network.get_output_embeddings()
        if self._unembedding is None:
            raise SignatureError(f"{type(network).__name__} has no output embeddings: there is no logit lens")
        self.vocabulary = int(self._unembedding.weight.shape[0])
        config = network.config.get_text_config()
        # Cohere's, Granite's and Gemma's names for what is done with the logits.
        self._factor = float(getattr(config, "logit_scale", None) or 1) / float(
            getattr(config, "logits_scaling", None) or 1
        )
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)

    def logits(self, hidden: Float[Tensor, "*rows hidden"]) -> Float32[Tensor, "*rows vocabulary"]:
        """Return the logits of the next token, in float32."""
        device = self._unembedding.weight.device
        logits = self._unembedding(self._norm(hidden.to(device))) * self._factor
        if self._cap is not None:
            logits = torch.tanh(logits / self._cap) * self._cap
        found: Float32[Tensor, "*rows vocabulary"] = logits.to(torch.float32)
        return found

    def entropies(self, hidden: Float[Tensor, "rows hidden"]) -> Float32[Tensor, " rows"]:
        """Return the entropies of the next token's distributions, nats, each over the whole vocabulary."""
        parts = [
            torch.special.entr(self.logits(part).softmax(dim=-1)).sum(dim=-1).cpu() for part in self._parts(hidden)
        ]
        return torch.cat(parts)

    def logprobs(self, hidden: Float[Tensor, "rows hidden"], tokens: Int[Tensor, " rows"]) -> Float32[Tensor, " rows"]:
        """Return the log-probability of one next token after each hidden state, nats."""
        size = self._size
        parts = [
            self.logits(part).log_softmax(dim=-1).cpu().gather(1, tokens[start * size :][: len(part), None]).squeeze(1)
            for start, part in enumerate(self._parts(hidden))
        ]
        return torch.cat(parts)

    def check(self, last: Float[Tensor, "rows hidden"], logits: Float[Tensor, "rows vocabulary"]) -> None:
        """Check that the last layer's outputs give the model's own logits.

        Raises:
            SignatureError: they don't: the model does something else behind its last layer.
        """
        theirs = logits.to("cpu", torch.float32)
        ours = self.logits(last).cpu()
        allowed = TOLERANCE.get(last.dtype, COARSE) * float(theirs.abs().max())
        far = float((ours - theirs).abs().max())
        if not far <= allowed:
            raise SignatureError(
                f"the logit lens can't read this model: from its last layer's output, {type(self._norm).__name__} and "
                f"the unembedding make logits that are up to {far!r} from its own, and {allowed!r} would be rounding"
            )

    @property
    def _size(self) -> int:
        return max(1, PASS_LOGITS // self.vocabulary)

    def _parts(self, hidden: Tensor) -> Iterator[Tensor]:
        yield from torch.split(hidden, self._size)


def final_norm(network: nn.Module, points: tuple[TapPoint, ...]) -> nn.Module:
    """Find the norm behind the last layer, which transformers' decoders have beside their list of layers.

    Raises:
        SignatureError: there is none by transformers' names, or there are several.
    """
    decoder = points[0].path.rpartition(".")[0].rpartition(".")[0]
    beside = network.get_submodule(decoder)
    found = {name: module for name in NORM_NAMES if isinstance(module := getattr(beside, name, None), nn.Module)}
    if len(found) != 1:
        raise SignatureError(
            f"{type(network).__name__} has {len(found)} final norms {sorted(found)!r} in {decoder!r}, expected one of "
            f"{NORM_NAMES!r}: without it there is no logit lens"
        )
    return next(iter(found.values()))
