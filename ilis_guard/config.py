"""``guard.yaml``, the operator's file: tiers, their bundles, the policy to follow and where tickets are stored."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from ilis_guard import strict_yaml
from ilis_guard.errors import ConfigError
from ilis_guard.models.prompts import QUESTION
from ilis_guard.models.weights import PREFIX as PACKAGED
from ilis_guard.strict_yaml import Document
from ilis_guard.types import Precision

VERSION: Final = 1
"""Of guard.yaml, apart from the package's."""
NAME: Final = r"^[A-Za-z][A-Za-z0-9_-]*$"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RemoteConfig(_Section):
    """A LangChain chat model."""

    chat_model: str = Field(pattern=r"^[\w.]+:\w+$")
    """Import path, ``package.module:Class``."""
    arguments: Mapping[str, Any] = Field(default_factory=dict)
    """Passed to the class. Secrets don't belong here: LangChain's integrations read them from the environment."""


class TierConfig(_Section):
    """A named model: local (`model`) or remote (`remote`)."""

    name: str = Field(pattern=NAME)
    model: str | None = Field(default=None, min_length=1)
    """A folder, a hub id, or ``packaged:NAME``."""
    remote: RemoteConfig | None = None
    precision: Precision = "full"
    prompt: str = "{question}"
    """The wording around the user's last turn. A base model needs worked examples here."""
    max_new_tokens: int = Field(default=64, ge=1)
    decoding: Mapping[str, str | int | float | bool] = Field(default_factory=dict)
    """Options of transformers' GenerationConfig, such as ``do_sample``; greedy without any."""
    device_map: str | None = Field(default=None, min_length=1)
    """A device, or ``auto`` to spread the layers over all; by default one device, CUDA where there is one."""
    proof: bool = True
    """Whether each tap is disturbed once at the first start, to see that the logits move."""
    bundle: str | None = Field(default=None, min_length=1)
    """A folder, or ``packaged:NAME`` for one that comes with ilis_guard."""
    prompt_bundle: str | None = Field(default=None, min_length=1)
    """As `bundle`: fitted to the stage `prompt`, for policies with rules of that stage."""


class ReviewConfig(_Section):
    """The human queue."""

    storage: str
    """A database URL, such as ``sqlite:///tickets.db``."""


class GuardConfig(_Section):
    """The whole file."""

    version: Literal[1]
    policy: str = Field(min_length=1)
    """A file beside this one, or the name of a policy that comes with ilis_guard."""
    tiers: tuple[TierConfig, ...]
    """From small to large, at least one."""
    review: ReviewConfig | None = None
    log_texts: bool = False
    """Whether log events may carry prompts and answers."""

    def tier(self, name: str) -> TierConfig:
        """Look a tier up by name.

        Raises:
            ConfigError: there is none of that name.
        """
        for tier in self.tiers:
            if tier.name == name:
                return tier
        raise ConfigError(f"there is no tier {name!r}; there are {[tier.name for tier in self.tiers]!r}")


def read_config(path: str | Path) -> GuardConfig:
    """Read ``guard.yaml``. Relative paths in it start at its own folder, ``~/`` at the user's home.

    Raises:
        ConfigError: the file is missing or wrong; every problem is named with its line and column.
    """
    path = Path(path)
    document = strict_yaml.read(path, error=ConfigError)
    _check_version(document)
    config = strict_yaml.validated(document, GuardConfig, error=ConfigError)
    if problems := [*_tier_problems(document, config), *_storage_problems(document, config)]:
        raise ConfigError("\n".join(problems))
    return _with_absolute_paths(config, path.resolve().parent)


def _check_version(document: Document) -> None:
    """Before the shape: all else that would be said of another version's file is noise."""
    version: Any = document.data.get("version", VERSION)
    if type(version) is not int or version != VERSION:
        raise ConfigError(
            f"{document.place(('version',))}: this ilis_guard reads version {VERSION} of guard.yaml, got {version!r}; "
            f"write `version: {VERSION}`, or install the release that reads this file"
        )


def _tier_problems(document: Document, config: GuardConfig) -> Iterator[str]:
    """What the shape can't say."""
    if not config.tiers:
        yield f"{document.place(('tiers',))}: tiers: there must be at least one"
    first: dict[str, str] = {}
    for index, tier in enumerate(config.tiers):
        keys, where = ("tiers", index), f"tiers[{index}]"
        place = document.place((*keys, "name"))
        if tier.name in first:
            what = f"duplicate name {tier.name!r}, which already stands at {first[tier.name]}; give each tier its own"
            yield f"{place}: {where}.name: {what}"
        first.setdefault(tier.name, place)
        if tier.model is None and tier.remote is None:
            what = "a tier needs a `model` (local) or a `remote` (a LangChain chat model)"
            yield f"{document.place(keys)}: {where}: {what}"
        if tier.remote is not None:
            for key in sorted(tier.model_fields_set - {"name", "remote"}):
                what = f"`{key}` doesn't go with `remote`: only a local model can be tapped; take one of them out"
                yield f"{document.key_place((*keys, key))}: {where}: {what}"
        if (times := tier.prompt.count(QUESTION)) != 1:
            what = f"must hold {QUESTION!r} exactly once, got {times} times"
            yield f"{document.place((*keys, 'prompt'))}: {where}.prompt: {what}"


def _storage_problems(document: Document, config: GuardConfig) -> Iterator[str]:
    """The URL isn't shown: there may be a password in it."""
    if config.review is None:
        return
    try:
        make_url(config.review.storage)
    except (SQLAlchemyError, ValueError):
        place = document.place(("review", "storage"))
        yield f"{place}: review.storage: not a database URL; write for instance sqlite:///tickets.db"


def _with_absolute_paths(config: GuardConfig, folder: Path) -> GuardConfig:
    tiers = tuple(
        tier.model_copy(
            update={
                "model": _model(tier.model, folder),
                "bundle": _bundle(tier.bundle, folder),
                "prompt_bundle": _bundle(tier.prompt_bundle, folder),
            }
        )
        for tier in config.tiers
    )
    review = config.review
    if review is not None:
        review = review.model_copy(update={"storage": _storage(review.storage, folder)})
    return config.model_copy(update={"tiers": tiers, "review": review, "policy": _policy(config.policy, folder)})


def _model(name: str | None, folder: Path) -> str | None:
    """A folder beside the file, or one that is written as a path; what else has this shape is a hub id."""
    if name is None or name.startswith(PACKAGED):
        return name
    is_path = name.startswith((".", "~/")) or (folder / name).exists()
    return str(_path(name, folder)) if is_path else name


def _bundle(name: str | None, folder: Path) -> str | None:
    return name if name is None or name.startswith(PACKAGED) else str(_path(name, folder))


def _policy(name: str, folder: Path) -> str:
    """A bare name means a shipped policy whatever lies beside the file: ``policy.loading.locate`` reads it so too."""
    is_path = Path(name).name != name or Path(name).suffix
    return str(_path(name, folder)) if is_path else name


def _storage(storage: str, folder: Path) -> str:
    url = make_url(storage)
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return storage  # the review queue takes it as it is, or says why not
    return url.set(database=str(_path(str(url.database), folder))).render_as_string(hide_password=False)


def _path(name: str, folder: Path) -> Path:
    """An absolute path."""
    return Path.home() / name[2:] if name.startswith("~/") else folder / name
