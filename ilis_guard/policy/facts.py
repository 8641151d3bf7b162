"""Facts: what a rule's condition may read, and under which names; and which requests a sample holds."""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from ilis_guard.types import FinishReason, Label, Labels, Obstacle, Statistics, to_float
from ilis_guard.types.requests import (
    MAX_LABEL_NAME,
    MAX_LABEL_NUMBER,
    MAX_LABEL_TEXT,
    MAX_LABELS,
    label_problem,
    nfc,
)

LONGEST_TEXT: Final = 10_000
"""Characters of a text that conditions see."""
AUDIT_SALT: Final = "(audit)"
"""The salt that audits are sampled by; no rule has this id."""
COLD_START_SALT: Final = "(cold start)"
"""As `AUDIT_SALT`, of the requests that are enforced while they can't be ranked yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of one attempt when a policy is evaluated. Prompts and answers are no facts."""

    uncertainty: float | None = None
    """Probability, 0 to 1, that the answer is wrong; None or NaN where the attempt has no score."""
    typicality: float | None = None
    """From 0 (unlike the calibration signatures) to 1 (like them); None or NaN where it is unknown."""
    calibrated: bool = True
    """Whether the uncertainty may be read as a probability; else it only ranks. Conditions see false where there is
    none."""
    rank: float | None = None
    """The share of its traffic's answers that are surer, 0 to 1; None or NaN where no traffic profile says."""
    threshold: float | None = None
    """The uncertainty, 0 to 1, up to which the policy's guarantee holds on this tier; None or NaN where it can't be
    certified, or the policy gives none."""
    tier: str = ""
    """The tier that made the attempt."""
    last_tier: bool = True
    """Whether no larger tier is left."""
    larger_tiers: tuple[str, ...] | None = None
    """The tiers a retry may still go to; None where that is unknown, and then only `last_tier` is looked at."""
    attempt: int = 1
    """Number of the attempt, from 1."""
    tokens: int | None = 0
    """Answer tokens generated so far for the request, at least 0; None where a provider didn't say."""
    seconds: float = 0.0
    """Time spent so far on the request, at least 0."""
    cost: float | None = 0.0
    """What the request has cost so far, at least 0, in the unit of guard.yaml's prices; None where that isn't known."""
    prompt_length: int = 0
    """Characters of the user's last turn."""
    text_length: int = 0
    """Characters of the answer."""
    finish_reason: FinishReason | Literal[""] = ""
    """Why the answer ended: `length` where it was cut off. Empty where there is none, or the model doesn't tell."""
    labels: Labels = field(default_factory=dict)
    """The caller's labels."""
    error: str = ""
    """Why the attempt has no scored answer, as `ErrorInfo.kind`; empty where it has one."""
    statistics: Statistics | None = None
    """Output statistics of the attempt."""
    answer_blocked_by: Obstacle | None = None
    """Why no rule may answer, whatever it says: a rule of stage `prompt` might have stopped it, or a stream did."""
    sampling_key: str = ""
    """What samples are drawn from: the decision's id, or a row's in a simulation. Conditions don't see it."""

    @property
    def has_uncertainty(self) -> bool:
        """Whether the uncertainty is a number from 0 to 1."""
        return _is_share(self.uncertainty)

    @property
    def has_score(self) -> bool:
        """Whether there is an uncertainty, or at least a rank: without labelled rows there is no more."""
        return self.has_uncertainty or _is_share(self.rank)

    @property
    def certified(self) -> bool:
        """Whether the policy's guarantee covers this answer: its score is calibrated, and at most the threshold."""
        threshold = to_float(self.threshold)
        if self.error or not self.has_uncertainty or not self.calibrated or threshold is None:
            return False
        assert self.uncertainty is not None, "has_uncertainty says so"
        return self.uncertainty <= threshold  # false where the threshold is NaN

    @property
    def label_problem(self) -> str:
        """What is wrong with the labels, so that nothing may be answered; empty where nothing is."""
        return label_problem(self.labels) if self.labels else ""


def _is_share(value: float | None) -> bool:
    number = to_float(value)
    return number is not None and 0.0 <= number <= 1.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What values a fact may have, as conditions see it."""

    cel: Literal["double", "int", "string", "bool"]
    low: float = -math.inf
    high: float = math.inf
    may_be_missing: bool = False
    """Whether it may not be known: conditions see NaN as a fraction, and nothing as a whole number."""
    values: tuple[str, ...] = ()
    """All that a string may be; empty where it may be anything."""


_STATISTIC: Final = Kind("double", may_be_missing=True)

VISIBLE: Final[Mapping[str, Kind]] = {
    "uncertainty": Kind("double", low=0.0, high=1.0, may_be_missing=True),
    "typicality": Kind("double", low=0.0, high=1.0, may_be_missing=True),
    "calibrated": Kind("bool"),
    "rank": Kind("double", low=0.0, high=1.0, may_be_missing=True),
    "threshold": Kind("double", low=0.0, high=1.0, may_be_missing=True),
    "certified": Kind("bool"),
    "tier": Kind("string"),
    "last_tier": Kind("bool"),
    "attempt": Kind("int", low=1),
    "tokens": Kind("int", low=0, may_be_missing=True),
    "seconds": Kind("double", low=0.0),
    "cost": Kind("double", low=0.0, may_be_missing=True),
    "prompt_length": Kind("int", low=0),
    "text_length": Kind("int", low=0),
    "finish_reason": Kind("string", values=("", *get_args(FinishReason))),
    "error": Kind("string"),
    "statistics.logprob_sum": _STATISTIC,
    "statistics.logprob_mean": _STATISTIC,
    "statistics.entropy_mean": _STATISTIC,
    "statistics.margin_min": _STATISTIC,
}
"""The facts conditions see by name, apart from ``labels.NAME``, whose names and types are the caller's."""

UNKNOWN_AT_PROMPT: Final = frozenset(
    {"error", "certified", "threshold", "text_length", "finish_reason"}
    | {name for name in VISIBLE if name.startswith("statistics.")}
)
"""What there is only once the model answered, or failed."""
OF_THE_GUARANTEE: Final = frozenset({"certified", "threshold"})
"""What there is only in a policy that gives a guarantee."""

_NO_STATISTICS: Final = Statistics(
    logprob_sum=math.nan, logprob_mean=math.nan, entropy_mean=math.nan, margin_min=math.nan
)


def fact_values(facts: Facts, names: Iterable[str] | None = None) -> dict[str, Any]:
    """The facts as conditions see them: a missing number is NaN, so every comparison with it is false.

    Args:
        facts: as they are known.
        names: those to look at, of `VISIBLE` and `labels`; None for all.
    """
    return {name: _READERS[name](facts) for name in (_READERS if names is None else names)}


def _number(value: float | None) -> float:
    number = to_float(value)
    return math.nan if number is None else number


def _integer(value: int | None) -> int | float:
    return math.nan if value is None else max(-MAX_LABEL_NUMBER, min(MAX_LABEL_NUMBER, value))


def _text(value: str) -> str:
    """In NFC, no longer than is read in every decision, and without lone surrogates, which CEL can't hold."""
    value = value[:LONGEST_TEXT]
    return str(value) if value.isascii() else nfc(value.encode("utf-8", "replace").decode("utf-8"))


def _labels(of_caller: Mapping[Any, Any]) -> Iterator[tuple[str, Label]]:
    """Labels as CEL can hold them; those it can't hold, and those too long to look at in every decision, aren't there.

    `Facts.label_problem` says so, and then nothing is answered.
    """
    for name, value in itertools.islice(of_caller.items(), MAX_LABELS):
        if not isinstance(name, str) or len(name) > MAX_LABEL_NAME:
            continue
        if isinstance(value, bool):  # an int for Python, which must stay a bool for CEL
            yield _text(name), value
        elif isinstance(value, float):
            yield _text(name), float(value)
        elif isinstance(value, int):
            yield _text(name), int(_integer(value))
        elif isinstance(value, str) and len(value) <= MAX_LABEL_TEXT:
            yield _text(name), _text(value)


_CONVERTERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "double": _number,
    "int": _integer,
    "string": _text,
    "bool": bool,
}


def _reader(name: str, kind: Kind) -> Callable[[Facts], Any]:
    convert, statistic = _CONVERTERS[kind.cel], name.removeprefix("statistics.")
    if statistic != name:
        return lambda facts: convert(getattr(facts.statistics or _NO_STATISTICS, statistic))
    return lambda facts: convert(getattr(facts, name))


_READERS: Final = {name: _reader(name, kind) for name, kind in VISIBLE.items()} | {
    "calibrated": lambda facts: bool(facts.calibrated) and facts.has_uncertainty,
    "labels": lambda facts: dict(_labels(facts.labels)) if facts.labels else {},
}
"""How conditions see each of them."""


def is_sampled(sampling_key: str, salt: str, share: float) -> bool:
    """Whether a key is in the sample of a share, 0 to 1: the same on every machine and in every release.

    The first 53 bits of SHA-256 over the salt's length, the salt and the key make a number from 0 to below 1, and
    the key is sampled where it lies below the share. Over keys these numbers are uniform; with another salt they are
    independent of these. So a smaller sample is part of every larger one with the same salt.

    Args:
        sampling_key: what is sampled, a decision's id for instance.
        salt: what the sample is for, a rule's id for instance.
        share: of all keys.
    """
    hashed = f"{len(salt)}:{salt}{sampling_key}".encode("utf-8", "surrogatepass")
    return (int.from_bytes(hashlib.sha256(hashed).digest()[:8]) >> 11) / 2**53 < share
