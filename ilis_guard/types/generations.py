"""Generations: what a model returned, what was measured inside it, and the score of that."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self

import numpy as np
from jaxtyping import Float32

from ilis_guard.types.requests import Message
from ilis_guard.types.thinking import Problem

Position = Literal["prompt", "last", "mean", "answer"]
"""A token position: the last prompt token, the last answer token, the mean over all answer tokens, or the mean over
those that lie in a span of the text (only where a span was given)."""
POSITIONS: Final[tuple[Position, ...]] = ("prompt", "last", "mean")
"""Those that every answer has, whether or not a span was given."""

Site = Literal["mlp", "residual"]
"""Where a layer is tapped: `mlp` is the MLP module's output, before it is added to the residual stream; `residual` is
the layer's output, the stream itself."""
Precision = Literal["nf4", "full"]
"""How weights are held: bitsandbytes NF4 (4 bits, double quantisation), or as floating-point numbers."""
FinishReason = Literal["stop", "length"]
"""The model ended its answer itself, or it was cut off at its length limit."""
Dtype = Literal["float32", "bfloat16", "float16"]
Statistic = Literal["logprob_sum", "logprob_mean", "entropy_mean", "margin_min"]
"""The name of one of the output `Statistics`."""
STATISTICS: Final[tuple[Statistic, ...]] = ("logprob_sum", "logprob_mean", "entropy_mean", "margin_min")


Signature = Float32[np.ndarray, "layers layers"]
"""The L x L map of directed KL divergences at one token position, in nats: row i, column j is KL(p_i || p_j)."""


class _Fingerprint:
    """What fingerprints of both kinds can."""

    __slots__: tuple[str, ...] = ()

    def differences(self, other: "_Fingerprint") -> tuple[str, ...]:
        """Names of what the two differ in; of two kinds, all of both."""
        mine, others = self.to_dict(), other.to_dict()
        return tuple(name for name in mine | others if mine.get(name) != others.get(name))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, flat."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.to_dict().items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint(_Fingerprint):
    """What makes a model's signatures comparable. A bundle holds only for models whose fingerprint equals its own."""

    weights: str
    """Digest of the checkpoint's tensors, hexadecimal."""
    precision: Precision
    dtype: Dtype
    """What activations are computed in: maps in bfloat16 differ from maps in float32 by percents."""
    layers: int
    hidden: int
    site: Site
    taps: str
    """Where the tapped modules are, the layer's number as a star: `model.layers.*.mlp`."""
    temperature: float
    decoding: str
    """How tokens are chosen: `greedy`, or what differs from it, as JSON."""
    prompt: str
    """Digest of how a question becomes a prompt, hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFingerprint(_Fingerprint):
    """As `Fingerprint`, of a model that can't be tapped: what makes the output statistics of its answers comparable.

    It gets conversations unchanged, so there is no prompt format to record. Its provider may change the model behind
    its name without notice.
    """

    chat_model: str
    """Import path of its chat model's class, ``package.module:Class``."""
    model: str
    """Its provider's name for it; empty where the class doesn't say."""
    arguments: Mapping[str, bool | int | float | str]
    """Its other arguments, by name: truth values and numbers as they are, all else as a digest. Secrets,
    time-outs and the like aren't among them; its address is, for another server may hold another model of that name."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, flat: each argument as ``arguments.NAME``."""
        arguments = {f"arguments.{name}": value for name, value in self.arguments.items()}
        return {"chat_model": self.chat_model, "model": self.model, **arguments}


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Output statistics of the pass that generated an answer, over its answer tokens (natural logarithms)."""

    logprob_sum: float
    """Log-probability of the whole answer, nats, at most 0."""
    logprob_mean: float
    """The same per answer token, nats, at most 0."""
    entropy_mean: float
    """Mean entropy of the next-token distributions, nats, at least 0."""
    margin_min: float
    """Smallest gap between the probabilities of the likeliest and the second token, 0 to 1."""

    def to_dict(self) -> dict[str, float]:
        """As JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The tokens that a model read and wrote; None where that isn't known."""

    prompt_tokens: int | None = 0
    tokens: int | None = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What a model returned, with what was seen inside it on the way."""

    text: str
    """The answer, without what the model thought before it."""
    tokens: int | None
    """Generated tokens, those of thinking too; end-of-sequence and other special tokens don't count. None where the
    provider doesn't say."""
    prompt_tokens: int | None
    """As `tokens`."""
    finish_reason: FinishReason | None
    """None where the generation isn't at its end: while tokens come, or where it was stopped at the prompt; and at its
    end where the model never says (see `ilis_guard.models.base.reports_endings`)."""
    seconds: float
    token_ids: tuple[int, ...] = ()
    """Everything generated up to the end token, special tokens too; what `LocalModel.read` takes."""
    signatures: Mapping[Position, Signature] = field(default_factory=dict)
    """Signatures by token position; empty where the model can't be tapped. `last` and `mean` are missing where no
    generated token passed through the model."""
    statistics: Statistics | None = None
    """As the signatures, over the answer's tokens: not over those of thinking."""
    thinking_problem: Problem = ""
    """Why there is no answer in what the model wrote: then the text is empty."""
    sent: tuple[Message, ...] = ()
    """The conversation that the model was really sent, where it makes its own, as a chain does: larger tiers, facts and
    tickets get this one. Empty where it is the request's."""

    @property
    def usage(self) -> Usage:
        """The tokens."""
        return Usage(prompt_tokens=self.prompt_tokens, tokens=self.tokens)


Departure = Literal["wording", "system", "history", "decoding", "length", "traffic"]
"""What a request has of its own, and the labelled rows that a score was calibrated by hadn't: the wording around its
question (`Fingerprint.prompt`), a system message, turns before its question, how tokens are chosen, how long answers
may be; or a traffic profile that no row with a label belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a scorer says of one generation."""

    uncertainty: float
    """Probability, 0 to 1, that the answer is wrong; higher is more uncertain. Where the score isn't `calibrated`, it
    only ranks."""
    typicality: float
    """From 0 (unlike the calibration signatures) to 1 (like them); uniform on data exchangeable with them. NaN where
    the scorer can't tell."""
    rank: float = math.nan
    """The share of its traffic's answers that are surer than this one, 0 to 1; NaN where no traffic profile says."""
    departures: tuple[Departure, ...] = ()
    """Why the uncertainty isn't calibrated; empty where it is."""

    @property
    def calibrated(self) -> bool:
        """Whether the uncertainty may be read as a probability; else it only ranks."""
        return not self.departures

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: NaN is none."""
        return {
            "uncertainty": self.uncertainty,
            "typicality": None if math.isnan(self.typicality) else self.typicality,
            "rank": None if math.isnan(self.rank) else self.rank,
            "departures": list(self.departures),
        }

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """A score from the JSON values that `to_dict` made."""
        numbers = {name: math.nan if values[name] is None else values[name] for name in ("typicality", "rank")}
        return cls(uncertainty=values["uncertainty"], departures=tuple(values["departures"]), **numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A generation as far as it has come: after the prompt, after each token, and at its end."""

    token: str
    """What the text grew by: texts joined are the whole answer. Empty after the prompt, and where a special token or
    part of a character came."""
    generation: Generation
    """So far: `prompt` is there from the first step, `last`, `mean` and statistics once a token passed."""
    score: Score | None = None
    """What is known so far of how uncertain the answer is: at the prompt by the tier's prompt bundle, then by its
    bundle; None where there is nothing to score yet or nothing to score it with. Only the last step's is calibrated."""
