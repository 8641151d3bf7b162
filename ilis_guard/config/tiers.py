"""guard.yaml, `tiers`: the models, their bundles, costs and limits."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from ilis_guard.config.base import StrictModel, absolute_path, relative_to_file
from ilis_guard.config.strict_yaml import Document
from ilis_guard.config.validation import duplicate_names
from ilis_guard.types import Precision, Stage, Usage

QUESTION: Final = "{question}"
"""The user's last turn in a prompt's template."""
GREEDY: Final = "greedy"
"""The name of decoding without options."""
PACKAGED_PREFIX: Final = "packaged:"
"""Starts the name of weights or bundles that come as Python packages."""
_REMOTE_KEYS: Final = frozenset({"name", "remote", "bundle", "profile", "cost", "max_concurrent", "breaker"})
"""The keys that a remote tier may have."""
_OF_THE_PROVIDER: Final = (
    "`chat_template_kwargs` doesn't go with `remote`: its provider applies the chat template; take it out, and give "
    "the chat model what it takes for this (of a vLLM server: arguments: {extra_body: {chat_template_kwargs: {...}}})"
)


TemplateArgument = str | int | float | bool | None
"""A variable of a chat template: a JSON scalar."""
_GUARDS_OWN: Final = frozenset(
    {"add_generation_prompt", "chat_template", "continue_final_message", "conversation", "conversations", "documents"}
    | {"max_length", "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors"}
    | {"sanitize_control_tokens", "tokenize", "tokenizer_kwargs", "tools", "truncation"}
    | {"raise_exception", "strftime_now", "additional_special_tokens"}
    | {f"{name}_token" for name in ("bos", "cls", "eos", "mask", "pad", "sep", "unk")}
)
"""What the guard and transformers themselves pass to a chat template, and to the method that applies it."""
_WORDS_FOR_BOOLEANS: Final = frozenset({"false", "n", "no", "off", "on", "true", "y", "yes"})


def decoding_name(decoding: Mapping[str, Any]) -> str:
    """Name options of decoding, for a fingerprint."""
    return json.dumps(dict(sorted(decoding.items()))) if decoding else GREEDY


def template_argument_problem(name: str, value: TemplateArgument) -> str:
    """What is wrong with an argument of a chat template; empty where nothing is."""
    if name in _GUARDS_OWN:
        return "is the guard's to set; take it out"
    if not name.isidentifier():
        return "is no name of a variable; write it as the chat template does"
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, got {value!r}"
    # To a chat template, any word but an empty one is true.
    if isinstance(value, str) and value.strip().lower() in _WORDS_FOR_BOOLEANS:
        return f"must be true or false, got the word {value!r}"
    return ""


def _resolve_model(name: str, folder: Path) -> str:
    """Take an existing folder beside the file, or a name written as a path, for a path; any other is a hub id."""
    if name.startswith(PACKAGED_PREFIX):
        return name
    is_path = name.startswith((".", "~/")) or (folder / name).exists()
    return absolute_path(name, folder) if is_path else name


def _resolve_bundle(name: str, folder: Path) -> str:
    return name if name.startswith(PACKAGED_PREFIX) else absolute_path(name, folder)


Bundle = Annotated[str, Field(min_length=1), relative_to_file(_resolve_bundle)]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""In the currency of the policy's ``max_cost``."""


class TierCost(StrictModel):
    """The prices of a tier. At least one is given; the others are 0."""

    per_request: Price = 0.0
    """For each call of the model, also a failed or abandoned one."""
    per_million_prompt_tokens: Price = 0.0
    per_million_tokens: Price = 0.0
    """Of the answer."""

    @model_validator(mode="after")
    def _has_a_price(self) -> Self:
        if not self.model_fields_set:
            names = ", ".join(type(self).model_fields)
            raise ValueError(f"must have at least one of {names}; a tier that is free says per_request: 0")
        return self

    def of(self, calls: int, usage: Usage) -> float | None:
        """The cost of an attempt: its calls, and its tokens; None where tokens have a price and aren't known."""
        cost = calls * self.per_request
        for tokens, price in (
            (usage.prompt_tokens, self.per_million_prompt_tokens),
            (usage.tokens, self.per_million_tokens),
        ):
            if price and tokens is None:
                return None
            cost += _millions(tokens or 0) * price
        return cost

    def of_prompt(self, usage: Usage) -> float | None:
        """The cost of an attempt up to the stage `prompt`: the model has read the prompt and generated nothing.

        Args:
            usage: of the generation that followed, or would have followed.
        """
        return self.of(1, replace(usage, tokens=0))


def _millions(tokens: int) -> float:
    # A user's own model may report any integer; not every integer fits a float.
    return min(tokens, 2**63) / 1e6


class BreakerSettings(StrictModel):
    """A tier's circuit breaker."""

    failures: int = Field(default=5, ge=1)
    """The number of failed calls in a row that opens the circuit: the tier isn't called any more."""
    seconds: float = Field(default=30.0, gt=0, le=86_400)
    """The time until one trial call; its outcome closes the circuit or opens it again."""


class RollingProfileConfig(StrictModel):
    """A profile of the last answers of a tier's own traffic."""

    rolling: int = Field(ge=50, le=100_000)
    """How many answers it keeps."""
    file: Annotated[str, Field(min_length=1), relative_to_file(absolute_path)]
    """Where; it is made if there is none, and belongs to this tier alone."""


def _profile_kind(value: Any) -> Literal["(file)", "(rolling)"]:
    """Which one is meant; no key has such a name, so that errors find the keys."""
    return "(rolling)" if isinstance(value, Mapping | RollingProfileConfig) else "(file)"


Profile = Annotated[
    Annotated[str, Field(min_length=1), relative_to_file(absolute_path), Tag("(file)")]
    | Annotated[RollingProfileConfig, Tag("(rolling)")],
    Discriminator(_profile_kind),
]


class RemoteConfig(StrictModel):
    """A LangChain chat model."""

    chat_model: str = Field(pattern=r"^[\w.]+:\w+$")
    """Import path, ``package.module:Class``."""
    arguments: Mapping[str, Any] = Field(default_factory=dict)
    """Passed to the class. Secrets don't belong here: LangChain's integrations read them from the environment."""
    reports_endings: bool = True
    """False for a chat model that never says why an answer ended: then one may be unfinished, and nobody knows."""


class TierConfig(StrictModel):
    """A named model: local (`model`) or remote (`remote`)."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    model: Annotated[str, Field(min_length=1), relative_to_file(_resolve_model)] | None = None
    """A folder, a hub id, or ``packaged:NAME``."""
    remote: RemoteConfig | None = None
    precision: Precision = "full"
    prompt: str = "{question}"
    """The template around the user's last turn. A base model needs worked examples here."""
    max_new_tokens: int = Field(default=64, ge=1)
    decoding: Mapping[str, str | int | float | bool] = Field(default_factory=dict)
    """Options of transformers' GenerationConfig, such as ``do_sample``; greedy decoding without any."""
    chat_template_kwargs: Mapping[str, TemplateArgument] = Field(default_factory=dict)
    """Variables of the model's chat template, such as ``enable_thinking``, as transformers and vLLM call them."""
    device_map: str | None = Field(default=None, min_length=1)
    """A device, or ``auto`` to spread the layers over all; by default one device, CUDA where there is one."""
    batch: int = Field(default=1, ge=1)
    """The largest number of concurrent requests in one forward pass."""
    proof: bool = True
    """Whether the first start perturbs each tap once and checks that the logits move."""
    bundle: Bundle | None = None
    """A folder, or ``packaged:NAME`` for one that comes with ilis_guard."""
    prompt_bundle: Bundle | None = None
    """As `bundle`, fitted to the stage `prompt`, for policies with rules of that stage."""
    profile: Profile | None = None
    """What answers are ranked in: the file of a traffic profile (`ilis-guard adapt`), which belongs to `bundle`, stays
    as it is, and gives the units, too; or a profile of the last answers. Without either they have no rank, and are
    scored in units of the bundle's own traffic."""
    prompt_profile: Annotated[str, Field(min_length=1), relative_to_file(absolute_path)] | None = None
    """The file of a traffic profile, for `prompt_bundle`."""
    cost: TierCost | None = None
    """None where it isn't known: then no policy can limit the cost."""
    max_concurrent: int | None = Field(default=None, ge=1)
    """The number of concurrent calls of its model; further ones wait. None for no limit."""
    breaker: BreakerSettings | None = None
    """None for no circuit breaker."""

    def profile_of(self, stage: Stage) -> str | None:
        """The file of the traffic profile that goes with a stage's bundle, and doesn't change."""
        if stage == "prompt":
            return self.prompt_profile
        return self.profile if isinstance(self.profile, str) else None


def tier_problems(document: Document, tiers: Sequence[TierConfig]) -> Iterator[str]:
    """Describe what the types can't exclude."""
    if not tiers:
        yield document.problem(("tiers",), "there must be at least one")
    for index, tier in enumerate(tiers):
        keys = ("tiers", index)
        if tier.model is None and tier.remote is None:
            yield document.problem(keys, "a tier needs a `model` (local) or a `remote` (a LangChain chat model)")
        if tier.remote is not None:
            yield from _remote_problems(document, keys, tier)
        for name, value in tier.chat_template_kwargs.items():
            if problem := template_argument_problem(name, value):
                yield document.problem((*keys, "chat_template_kwargs", name), problem)
        if tier.max_concurrent is not None and tier.max_concurrent < tier.batch:
            message = f"so few requests never fill a batch of {tier.batch}; raise it to that, or lower `batch`"
            yield document.problem((*keys, "max_concurrent"), message)
        yield from _profile_problems(document, keys, tier)
        if (count := tier.prompt.count(QUESTION)) != 1:
            yield document.problem((*keys, "prompt"), f"must hold {QUESTION!r} exactly once, got {count} times")
    yield from _shared_profiles(document, tiers)
    yield from duplicate_names(document, ("tiers",), [tier.name for tier in tiers])


def _profile_problems(document: Document, keys: tuple[str | int, ...], tier: TierConfig) -> Iterator[str]:
    rolls = "; without one, write `profile: {rolling: 500, file: profiles/NAME.db}`: the last answers"
    for key, of, remedy in (("profile", "bundle", rolls), ("prompt_profile", "prompt_bundle", "")):
        if isinstance(getattr(tier, key), str) and getattr(tier, of) is None:
            made = f"`{key}` goes with the `{of}` that it was made with (`ilis-guard adapt`), and there is none{remedy}"
            yield document.key_problem((*keys, key), made)


def _shared_profiles(document: Document, tiers: Sequence[TierConfig]) -> Iterator[str]:
    """Rolling profiles of two tiers: answers of two models can't be ranked among one another."""
    owners: dict[str, str] = {}
    for index, tier in enumerate(tiers):
        if not isinstance(tier.profile, RollingProfileConfig):
            continue
        owner = owners.setdefault(tier.profile.file, tier.name)
        if owner != tier.name:
            message = f"the tier {owner!r} has its answers in this file; give each tier a file of its own"
            yield document.problem(("tiers", index, "profile", "file"), message)


def _remote_problems(document: Document, keys: tuple[str | int, ...], tier: TierConfig) -> Iterator[str]:
    for key in sorted(tier.model_fields_set - _REMOTE_KEYS):
        of_local = f"`{key}` doesn't go with `remote`: only a local model can be tapped; take one of them out"
        message = _OF_THE_PROVIDER if key == "chat_template_kwargs" else of_local
        yield document.key_problem((*keys, key), message)
