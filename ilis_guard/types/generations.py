"""Generations: what a model returned, what was measured inside it, and the score of that."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, Self, get_args

import numpy as np
from jaxtyping import Float32

from ilis_guard.types.requests import Message
from ilis_guard.types.scalars import to_known
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


Departure = Literal["labels", "wording", "system", "history", "decoding", "length", "traffic"]
"""`labels`: there are no labelled rows, so the score is no probability. Else what a request has of its own, and the
labelled rows that a score was calibrated by hadn't: the wording around its question (`Fingerprint.prompt`), a system
message, turns before its question, how tokens are chosen, how long answers may be, or the traffic in whose units it is
scored."""
DEPARTURES: Final[tuple[Departure, ...]] = get_args(Departure)
_ARGUMENT: Final = "arguments."
"""Starts the names of a chat model's arguments among the differences of fingerprints."""
_DECODING_ARGUMENTS: Final = frozenset(
    {"best_of", "do_sample", "frequency_penalty", "logit_bias", "min_p", "mirostat", "mirostat_eta", "mirostat_tau"}
    | {"n", "presence_penalty", "random_seed", "repeat_last_n", "repeat_penalty", "repetition_penalty", "seed"}
    | {"stop", "stop_sequences", "temperature", "tfs_z", "top_k", "top_p", "typical_p"}
)
_LENGTH_ARGUMENTS: Final = frozenset(
    {"max_completion_tokens", "max_new_tokens", "max_output_tokens", "max_tokens", "num_predict"}
)
SOFT_ARGUMENTS: Final[Mapping[str, Departure]] = {
    **dict.fromkeys(_DECODING_ARGUMENTS, "decoding"),
    **dict.fromkeys(_LENGTH_ARGUMENTS, "length"),
}
"""Arguments of chat models that only say how tokens are chosen, where an answer is cut, and how long it may be."""


def in_order(departures: Iterable[Departure]) -> tuple[Departure, ...]:
    """Each departure once, in the order of `DEPARTURES`."""
    found = frozenset(departures)
    return tuple(name for name in DEPARTURES if name in found)


Signature = Float32[np.ndarray, "layers layers"]
"""The L x L map of directed KL divergences at one token position, in nats: row i, column j is KL(p_i || p_j)."""


class _Fingerprint:
    """What fingerprints of both kinds can."""

    __slots__: tuple[str, ...] = ()
    _SOFT: ClassVar[Mapping[str, Departure]] = {}
    """What may differ without making scores meaningless: they are uncalibrated then. All else is hard."""

    def differences(self, other: "_Fingerprint") -> tuple[str, ...]:
        """Names of what the two differ in; of two kinds, all of both."""
        mine, others = self.to_dict(), other.to_dict()
        return tuple(name for name in mine | others if mine.get(name) != others.get(name))

    def hard_differences(self, other: "_Fingerprint") -> tuple[str, ...]:
        """Those of the differences with which a score means nothing: a bundle refuses the other model."""
        return tuple(name for name in self.differences(other) if name not in self._SOFT)

    @property
    def source(self) -> str:
        """Names all models whose scores can be compared with this one's: they have no hard differences."""
        return ", ".join(f"{name} {value}" for name, value in self.to_dict().items() if name not in self._SOFT)

    def departures(self, other: "_Fingerprint") -> tuple[Departure, ...]:
        """What the other differences are called: a bundle scores the other model, and isn't calibrated for it."""
        return in_order(self._SOFT[name] for name in self.differences(other) if name in self._SOFT)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, flat."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.to_dict().items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint(_Fingerprint):
    """What makes a model's signatures comparable.

    A bundle refuses models whose fingerprint differs from its own in more than decoding and prompt. Where these differ,
    signatures still rank answers, and how many of them are wrong at a score is another matter.
    """

    _SOFT: ClassVar[Mapping[str, Departure]] = {"decoding": "decoding", "prompt": "wording"}

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
    its name without notice. As with a `Fingerprint`, arguments that only say how tokens are chosen and how long answers
    may be are soft: with others, a bundle's scores aren't calibrated.
    """

    _SOFT: ClassVar[Mapping[str, Departure]] = {f"{_ARGUMENT}{name}": soft for name, soft in SOFT_ARGUMENTS.items()}

    chat_model: str
    """Import path of its chat model's class, ``package.module:Class``."""
    model: str
    """Its provider's name for it; empty where the class doesn't say."""
    arguments: Mapping[str, bool | int | float | str]
    """Its other arguments, by name: truth values and numbers as they are, all else as a digest. Secrets,
    time-outs and the like aren't among them; its address is, for another server may hold another model of that name."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, flat: each argument as ``arguments.NAME``."""
        arguments = {f"{_ARGUMENT}{name}": value for name, value in self.arguments.items()}
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
    departures: tuple[Departure, ...] = ()
    """What this call had of its own that neither its conversation nor the model's fingerprint tells: a stop sequence
    that cut the answer, options of one call, or a chain's own wording."""

    @property
    def usage(self) -> Usage:
        """The tokens."""
        return Usage(prompt_tokens=self.prompt_tokens, tokens=self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a scorer says of one generation."""

    uncertainty: float
    """Probability, 0 to 1, that the answer is wrong; higher is more uncertain. Where the score isn't `calibrated`, it
    only ranks. NaN where there are no labelled rows, and so no probability."""
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
            "uncertainty": to_known(self.uncertainty),
            "typicality": to_known(self.typicality),
            "rank": to_known(self.rank),
            "calibrated": self.calibrated,
            "departures": list(self.departures),
        }

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """A score from the JSON values that `to_dict` made."""
        names = ("uncertainty", "typicality", "rank")
        numbers = {name: math.nan if values[name] is None else values[name] for name in names}
        return cls(departures=tuple(values["departures"]), **numbers)


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
    bundle; None where there is nothing to score yet or nothing to score it with. Its `departures` are those that the
    whole answer's score will have; until the last step its uncertainty is only on the way there."""
