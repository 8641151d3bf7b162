"""``guard.yaml``, the operator's file: tiers, their bundles, the policy to follow and where tickets are stored."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from ilis_guard.config import secrets, strict_yaml
from ilis_guard.config.page import PageSettings, are_token_hashes
from ilis_guard.config.queues import EXPIRE, TEMPLATES, EndpointSettings, QueueSettings, moves_in_a_circle
from ilis_guard.config.review import ReviewConfig
from ilis_guard.config.server import ServerSettings
from ilis_guard.config.strict_yaml import Document
from ilis_guard.config.tiers import PACKAGED_PREFIX, QUESTION, TierConfig
from ilis_guard.errors import ConfigError

VERSION: Final = 1
"""Of guard.yaml, apart from the package's."""
FOR_ALL_TIERS: Final = frozenset({"name", "remote", "bundle", "cost", "max_concurrent", "breaker"})
"""A tier's keys that don't ask for a local model."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class GuardConfig(_Section):
    """The whole file."""

    version: Literal[1]
    policy: str = Field(min_length=1)
    """A file beside this one, or the name of a policy that comes with ilis_guard."""
    policy_fingerprint: str | None = Field(default=None, pattern=r"^[0-9a-f]{16}$")
    """The policy's, as `policy check` shows it: another one is refused, and none is reloaded while the guard runs."""
    shadow: str | None = Field(default=None, min_length=1)
    """As `policy`: one that looks on, and says what it would have decided."""
    tiers: tuple[TierConfig, ...]
    """From small to large, at least one."""
    review: ReviewConfig | None = None
    server: ServerSettings | None = None
    """The guard over HTTP; None where it is asked in its own process only."""
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
    problems = [
        *_tier_problems(document, config),
        *_review_problems(document, config.review),
        *_server_problems(document, config.server),
    ]
    if problems:
        raise ConfigError(strict_yaml.listed(problems, len(problems)))
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
            for key in sorted(tier.model_fields_set - FOR_ALL_TIERS):
                what = f"`{key}` doesn't go with `remote`: only a local model can be tapped; take one of them out"
                yield f"{document.key_place((*keys, key))}: {where}: {what}"
        if tier.max_concurrent is not None and tier.max_concurrent < tier.batch:
            what = f"so few requests at once never fill a batch of {tier.batch}; raise it to that, or lower `batch`"
            yield f"{document.place((*keys, 'max_concurrent'))}: {where}.max_concurrent: {what}"
        if (times := tier.prompt.count(QUESTION)) != 1:
            what = f"must hold {QUESTION!r} exactly once, got {times} times"
            yield f"{document.place((*keys, 'prompt'))}: {where}.prompt: {what}"


def _review_problems(document: Document, review: ReviewConfig | None) -> Iterator[str]:
    """URLs and secrets aren't shown: there may be a password in the one, and the other is one."""
    if review is None:
        return
    if not secrets.is_reference(review.storage) and not _is_url(review.storage):
        place = document.place(("review", "storage"))
        yield f"{place}: review.storage: not a database URL; write for instance sqlite:///tickets.db"
    yield from _queue_problems(document, review.queues)
    if review.endpoints or review.internal_hosts:
        yield from _endpoint_problems(document, review)
    if review.page is not None:
        yield from _page_problems(document, review.page)


def _queue_problems(document: Document, queues: Sequence[QueueSettings]) -> Iterator[str]:
    yield from _repeated(document, ("review", "queues"), [queue.name for queue in queues])
    for index, queue in enumerate(queues):
        keys, where = ("review", "queues", index), f"review.queues[{index}]"
        if queue.name == EXPIRE:
            yield f"{document.place((*keys, 'name'))}: {where}.name: {EXPIRE!r} means that tickets expire; rename it"
        if "overdue" in queue.model_fields_set and queue.due is None:
            yield f"{document.key_place((*keys, 'overdue'))}: {where}: `overdue` needs a `due`; add one"
    if (name := moves_in_a_circle(queues)) is not None:
        what = f"overdue tickets of {name!r} would come back to it; let the last queue's expire, or have no `due`"
        yield f"{document.place(('review', 'queues'))}: review.queues: {what}"


def _endpoint_problems(document: Document, review: ReviewConfig) -> Iterator[str]:
    from ilis_guard.config import addresses, endpoints  # with httpx, which files without endpoints don't need

    yield from _repeated(document, ("review", "endpoints"), [endpoint.name for endpoint in review.endpoints])
    hosts = []
    for index, host in enumerate(review.internal_hosts):
        try:
            hosts.append(addresses.host(host))
        except ConfigError as error:
            place = document.place(("review", "internal_hosts", index))
            yield f"{place}: review.internal_hosts[{index}]: {error}"
    for index, endpoint in enumerate(review.endpoints):
        keys, where = ("review", "endpoints", index), f"review.endpoints[{index}]"
        for key, what in endpoints.problems(endpoint, hosts):
            has_key = key in endpoint.model_fields_set
            yield f"{document.place((*keys, key) if has_key else keys)}: {where}.{key}: {what}"


def _page_problems(document: Document, page: PageSettings) -> Iterator[str]:
    yield from _repeated(document, ("review", "page", "reviewers"), [reviewer.name for reviewer in page.reviewers])
    for index, reviewer in enumerate(page.reviewers):
        keys, where = ("review", "page", "reviewers", index), f"review.page.reviewers[{index}]"
        if reviewer.token is None and page.proxy is None:
            what = "without a `token`, and with no `proxy` that signs people in, nobody gets in by this name; add one"
            yield f"{document.place(keys)}: {where}: {what}"
        elif reviewer.token is not None and not _is_token(reviewer.token):
            what = "not a token's hash (sha256:...), nor where one stands; make one with `ilis-guard reviewer-token`"
            yield f"{document.place((*keys, 'token'))}: {where}.token: {what}"
    if page.verdict_secret is not None and not secrets.is_reference(page.verdict_secret):
        place = document.place(("review", "page", "verdict_secret"))
        what = "say where the secret stands, `${NAME}` in the environment or `file:PATH`, and not the secret itself"
        yield f"{place}: review.page.verdict_secret: {what}"


def _server_problems(document: Document, server: ServerSettings | None) -> Iterator[str]:
    if server is None:
        return
    yield from _repeated(document, ("server", "api_keys"), [one.name for one in server.api_keys])
    for index, one in enumerate(server.api_keys):
        if not _is_token(one.key):
            place, where = document.place(("server", "api_keys", index, "key")), f"server.api_keys[{index}].key"
            what = "not a key's hash (sha256:...), nor where one stands; make one with `ilis-guard api-key`"
            yield f"{place}: {where}: {what}"


def _is_token(text: str) -> bool:
    return secrets.is_reference(text) or are_token_hashes(text)


def _repeated(document: Document, keys: tuple[str, ...], names: Sequence[str]) -> Iterator[str]:
    for index, name in enumerate(names):
        if name in names[:index]:
            place = document.place((*keys, index, "name"))
            first = document.place((*keys, names.index(name), "name"))
            where = f"{'.'.join(keys)}[{index}].name"
            yield f"{place}: {where}: duplicate name {name!r}, which already stands at {first}; give each its own"


def _is_url(text: str) -> bool:
    try:
        make_url(text)
    except (SQLAlchemyError, ValueError):
        return False
    return True


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
        endpoints = tuple(_endpoint(endpoint, folder) for endpoint in review.endpoints)
        page = None if review.page is None else _page(review.page, folder)
        places = {"storage": _storage(review.storage, folder), "endpoints": endpoints, "page": page}
        review = review.model_copy(update=places)
    shadow = None if config.shadow is None else _policy(config.shadow, folder)
    server = None if config.server is None else _server(config.server, folder)
    changes = {"tiers": tiers, "review": review, "server": server, "shadow": shadow}
    changes["policy"] = _policy(config.policy, folder)
    return config.model_copy(update=changes)


def _model(name: str | None, folder: Path) -> str | None:
    """A folder beside the file, or one that is written as a path; what else has this shape is a hub id."""
    if name is None or name.startswith(PACKAGED_PREFIX):
        return name
    is_path = name.startswith((".", "~/")) or (folder / name).exists()
    return str(_path(name, folder)) if is_path else name


def _bundle(name: str | None, folder: Path) -> str | None:
    return name if name is None or name.startswith(PACKAGED_PREFIX) else str(_path(name, folder))


def _policy(name: str, folder: Path) -> str:
    """A bare name means a shipped policy whatever lies beside the file: ``policy.loading.locate`` reads it so too."""
    is_path = Path(name).name != name or Path(name).suffix
    return str(_path(name, folder)) if is_path else name


def _endpoint(endpoint: EndpointSettings, folder: Path) -> EndpointSettings:
    places: dict[str, Any] = {"url": secrets.with_absolute_path(endpoint.url, folder)}
    for key in ("secret", "routing_key"):
        if (secret := getattr(endpoint, key)) is not None:
            places[key] = secrets.with_absolute_path(secret, folder)
    if endpoint.template not in TEMPLATES:
        places["template"] = str(_path(endpoint.template, folder))
    return endpoint.model_copy(update=places)


def _page(page: PageSettings, folder: Path) -> PageSettings:
    reviewers = tuple(
        reviewer.model_copy(update={"token": _reference(reviewer.token, folder)}) for reviewer in page.reviewers
    )
    secret = _reference(page.verdict_secret, folder)
    return page.model_copy(update={"reviewers": reviewers, "verdict_secret": secret})


def _server(server: ServerSettings, folder: Path) -> ServerSettings:
    keys = tuple(one.model_copy(update={"key": secrets.with_absolute_path(one.key, folder)}) for one in server.api_keys)
    return server.model_copy(update={"api_keys": keys})


def _reference(text: str | None, folder: Path) -> str | None:
    return None if text is None else secrets.with_absolute_path(text, folder)


def _storage(storage: str, folder: Path) -> str:
    if secrets.is_reference(storage):
        return secrets.with_absolute_path(storage, folder)
    url = make_url(storage)
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return storage  # the review queue takes it as it is, or says why not
    return url.set(database=str(_path(str(url.database), folder))).render_as_string(hide_password=False)


def _path(name: str, folder: Path) -> Path:
    """An absolute path."""
    return Path.home() / name[2:] if name.startswith("~/") else folder / name
