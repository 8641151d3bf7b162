"""``guard.yaml``, the operator's file: tiers and their bundles, the policy, the human queue and the server."""

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from ilis_guard.config import strict_yaml
from ilis_guard.config.base import StrictModel, absolute_path, relative_to_file
from ilis_guard.config.review import ReviewConfig, review_problems
from ilis_guard.config.secrets import REFERENCE_REQUIRED, secrets_in
from ilis_guard.config.server import ServerSettings, server_problems
from ilis_guard.config.strict_yaml import Document
from ilis_guard.config.tiers import TierConfig, tier_problems
from ilis_guard.config.validation import validate
from ilis_guard.errors import ConfigError

VERSION: Final = 1
"""The version of guard.yaml, apart from the package's."""


def _resolve_policy(name: str, folder: Path) -> str:
    """Take a bare name for a shipped policy, whatever the folder holds; ``policy.loader.locate`` does so too."""
    is_path = Path(name).name != name or Path(name).suffix
    return absolute_path(name, folder) if is_path else name


PolicyName = Annotated[str, Field(min_length=1), relative_to_file(_resolve_policy)]
"""A file beside guard.yaml, or the name of a policy that comes with ilis_guard."""


class GuardConfig(StrictModel):
    """The whole file."""

    version: Literal[1]
    policy: PolicyName
    policy_fingerprint: str | None = Field(default=None, pattern=r"^[0-9a-f]{16}$")
    """The policy's, as `policy check` shows it: any other is refused, and none is reloaded while the guard runs."""
    shadow: PolicyName | None = None
    """A second policy whose rulings are recorded and not acted on."""
    tiers: tuple[TierConfig, ...]
    """From small to large, at least one."""
    review: ReviewConfig | None = None
    server: ServerSettings | None = None
    """The guard over HTTP; None where it runs in the caller's own process only."""
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
    _check_secrets(document)
    _check_version(document)
    config = validate(document, GuardConfig, error=ConfigError, folder=path.resolve().parent)
    problems = [*tier_problems(document, config.tiers)]
    if config.review is not None:
        problems += review_problems(document, config.review)
    if config.server is not None:
        problems += server_problems(document, config.server)
    if problems:
        raise ConfigError(strict_yaml.list_problems(problems, len(problems)))
    return config


def _check_secrets(document: Document) -> None:
    """Before all else: other complaints quote what they complain of."""
    whole = "a reference stands for the whole value, and a chat model reads its key from the environment"
    remedy = f"{REFERENCE_REQUIRED} ({whole}); then revoke this one"
    if lines := [f"{place}: this looks like {kind}: {remedy}" for place, kind in secrets_in(document)]:
        raise ConfigError(strict_yaml.list_problems(lines, len(lines)))


def _check_version(document: Document) -> None:
    """Check the version before the types: another version's file would give misleading errors."""
    version: Any = document.data.get("version", VERSION)
    if type(version) is not int or version != VERSION:
        raise ConfigError(
            f"{document.place(('version',))}: this ilis_guard reads version {VERSION} of guard.yaml, got {version!r}; "
            f"write `version: {VERSION}`, or install the release that reads this file"
        )
