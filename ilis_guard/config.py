"""``guard.yaml``, the operator's file: tiers, their bundles, the policy to follow and where tickets are stored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from ilis_guard import strict_yaml
from ilis_guard.errors import ConfigError
from ilis_guard.types import Precision

NAME = r"^[A-Za-z][A-Za-z0-9_-]*$"


def _checked_url(url: str) -> str:
    try:
        make_url(url)
    except ArgumentError as error:
        raise ValueError("not a database URL; write for instance sqlite:///tickets.db") from error
    return url


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
    bundle: str | None = Field(default=None, min_length=1)
    """A folder, or ``packaged:NAME`` for one that comes with ilis_guard."""

    @model_validator(mode="after")
    def _is_local_or_remote(self) -> Self:
        if (self.model is None) == (self.remote is None):
            raise ValueError("a tier has either a `model` (local) or a `remote` (a LangChain chat model)")
        if self.remote is not None and (extra := self.model_fields_set - {"name", "remote"}):
            raise ValueError(f"a remote tier has no {', '.join(sorted(extra))}: only a local model can be tapped")
        return self


class ReviewConfig(_Section):
    """The human queue."""

    storage: Annotated[str, AfterValidator(_checked_url)]
    """A database URL, such as ``sqlite:///tickets.db``."""


class GuardConfig(_Section):
    """The whole file."""

    version: Literal[1]
    policy: str = Field(min_length=1)
    """A file beside this one, or the name of a policy that comes with ilis_guard."""
    tiers: tuple[TierConfig, ...] = Field(min_length=1)
    """From small to large."""
    review: ReviewConfig | None = None
    log_texts: bool = False
    """Whether log events may carry prompts and answers."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [tier.name for tier in self.tiers]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"tiers must have different names, {', '.join(map(repr, doubled))} occurs more than once")
        return self

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
    """Read ``guard.yaml``. Relative paths in it start at its own folder.

    Raises:
        ConfigError: the file is missing or wrong; every problem is named with its line and column.
    """
    path = Path(path)
    document = strict_yaml.read(path, error=ConfigError)
    config = strict_yaml.validated(document, GuardConfig, error=ConfigError)
    return _with_absolute_paths(config, path.resolve().parent)


def _with_absolute_paths(config: GuardConfig, folder: Path) -> GuardConfig:
    tiers = tuple(
        tier.model_copy(update={key: _absolute(getattr(tier, key), folder) for key in ("model", "bundle")})
        for tier in config.tiers
    )
    review = config.review
    if review is not None:
        review = review.model_copy(update={"storage": _absolute_url(review.storage, folder)})
    return config.model_copy(
        update={"tiers": tiers, "review": review, "policy": _absolute(config.policy, folder, suffix=".yaml")}
    )


def _absolute(name: str | None, folder: Path, suffix: str = "") -> str | None:
    """A path beside the file becomes absolute; a name (``packaged:...``, a hub id, a shipped policy) stays."""
    if name is None:
        return None
    beside = folder / name
    return str(beside) if beside.exists() or (suffix and name.endswith(suffix)) or name.startswith(".") else name


def _absolute_url(storage: str, folder: Path) -> str:
    url = make_url(storage)
    if url.get_backend_name() != "sqlite" or not url.database:
        return storage
    return url.set(database=str(folder / url.database)).render_as_string(hide_password=False)
