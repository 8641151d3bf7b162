"""guard.yaml: errors name their place, and paths are relative to the file."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ilis_guard import guard as guard_module
from ilis_guard.cascade.tier import Tier
from ilis_guard.config.guard_yaml import GuardConfig, read_config
from ilis_guard.errors import BundleMismatchError, ConfigError, PolicyError, ReviewError
from ilis_guard.guard import Guard
from ilis_guard.testing import FakeModel, FixedScorer

HEAD = "version: 1\npolicy: default\n"
TIER = "tiers:\n  - name: a\n    model: m\n"
REMOTE = "tiers:\n  - name: a\n    remote: {chat_model: 'x.y:Z'}\n"
ALIAS_BOMB = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (HEAD + TIER + "colour: 1\n", "6:1", "unknown key 'colour'; take it out"),
        (HEAD + TIER + "log_text: true\n", "6:1", "unknown key 'log_text'; did you mean 'log_texts'?"),
        (HEAD + TIER + "    bundel: b\n", "6:5", "tiers[0]: unknown key 'bundel'; did you mean 'bundle'?"),
        (HEAD + TIER + "review: {storage: 'sqlite:///t.db', url: x}\n", "6:37", "review: unknown key 'url'"),
        (HEAD + TIER + "policy: clinical\n", "6:1", "duplicate key 'policy', which already stands at"),
        (ALIAS_BOMB, "1:4", "got the anchor '&a'"),
        (HEAD, "1:1", "the key 'tiers' is missing"),
        ("version: 1\n" + TIER, "1:1", "the key 'policy' is missing"),
        (HEAD + "tiers: []\n", "3:8", "tiers: there must be at least one"),
        (HEAD + "tiers:\n", "3:1", "tiers: should be a list, each item of which starts with `- `, got None"),
        ("policy: default\n" + TIER, "1:1", "the key 'version' is missing"),
        ("version: 2\nnew: 1\n", "1:10", "this ilis_guard reads version 1 of guard.yaml, got 2; write `version: 1`"),
        ("version: '1'\n", "1:10", "got '1'"),
        ("version: true\n", "1:10", "got True"),
        ("version: 1.0\n", "1:10", "got 1.0"),
        (HEAD + "tiers:\n  - name: a\n", "4:5", "tiers[0]: a tier needs a `model` (local) or a `remote`"),
        (HEAD + REMOTE + "    model: m\n", "6:5", "tiers[0]: `model` doesn't go with `remote`"),
        (HEAD + REMOTE + "    precision: nf4\n", "6:5", "tiers[0]: `precision` doesn't go with `remote`"),
        (HEAD + REMOTE + "    prompt_bundle: b\n", "6:5", "tiers[0]: `prompt_bundle` doesn't go with `remote`"),
        (HEAD + REMOTE + "    batch: 4\n", "6:5", "tiers[0]: `batch` doesn't go with `remote`"),
        (HEAD + TIER + "    batch: 0\n", "6:12", "tiers[0].batch: should be greater than or equal to 1, got 0"),
        (
            HEAD + TIER + "    batch: 4\n    max_concurrent: 3\n",
            "7:21",
            "tiers[0].max_concurrent: so few requests never fill a batch of 4; raise it to that, or lower",
        ),
        (HEAD + REMOTE.replace("x.y:Z", "Z"), "5:26", "tiers[0].remote.chat_model: "),
        (HEAD + TIER + "    precision: int8\n", "6:16", "tiers[0].precision: should be 'nf4' or 'full', got 'int8'"),
        (HEAD + TIER + "    max_new_tokens: '5'\n", "6:21", "tiers[0].max_new_tokens: should be a valid integer"),
        (HEAD + TIER + "    max_new_tokens: 0\n", "6:21", "should be greater than or equal to 1, got 0"),
        (HEAD + TIER + "    prompt: Answer!\n", "6:13", "must hold '{question}' exactly once, got 0 times"),
        (HEAD + TIER + '    prompt: "{question}{question}"\n', "6:13", "exactly once, got 2 times"),
        (HEAD + TIER + "  - name: b\n    model: n\n  - name: a\n    model: o\n", "8:11", "duplicate name 'a', which"),
        (HEAD + "tiers:\n  - name: a b\n    model: m\n", "4:11", "tiers[0].name: "),
        (HEAD + "tiers:\n  - name: a\n    model: ''\n", "5:12", "tiers[0].model: "),
        (HEAD + TIER + "log_texts: yes\n", "6:12", "log_texts: should be a valid boolean, got 'yes'"),
        (HEAD + TIER + "review:\n  storage: 7\n", "7:12", "review.storage: should be a valid string, got 7"),
        (HEAD + TIER + "review:\n  storage: tickets.db\n", "7:12", "review.storage: not a database URL; write for"),
        (HEAD + TIER + "review:\n  storage: 'x://h:port/d'\n", "7:12", "review.storage: not a database URL"),
    ],
)
def test_error_names_place_and_problem(write: Callable[[str], Path], text: str, place: str, words: str) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as refused:
        read_config(path)
    # One line: a wrong tier brings no second complaint about the tiers that are then missing.
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"{path}:{place}: ")
    assert words in line


def test_all_problems_are_listed(write: Callable[[str], Path]) -> None:
    path = write(HEAD + REMOTE + "    precision: nf4\n  - name: a\n    model: m\nreview: {storage: x}\n")
    with pytest.raises(ConfigError) as refused:
        read_config(path)
    places = [line.removeprefix(f"{path}:").split(": ")[0] for line in str(refused.value).splitlines()]
    assert places == ["6:5", "7:11", "9:19"]


def test_a_password_in_a_storage_url_stays_out_of_the_message(write: Callable[[str], Path]) -> None:
    path = write(HEAD + TIER + "review: {storage: 'postgresql//me:hunter2@host/db'}\n")
    with pytest.raises(ConfigError) as refused:
        read_config(path)
    assert "hunter2" not in str(refused.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^nowhere.yaml: there is no such file"):
        read_config("nowhere.yaml")


def read(write: Callable[[str], Path], *, policy: str = "default", tier: str = "", storage: str = "") -> GuardConfig:
    text = f"version: 1\npolicy: {policy}\ntiers:\n  - {{name: a, {tier or 'model: org/name'}}}\n"
    return read_config(write(text + (f"review: {{storage: '{storage}'}}\n" if storage else "")))


def test_relative_paths_start_at_the_files_folder(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    # The same names where the process stands are not what is meant.
    (elsewhere / "bundles" / "b").mkdir(parents=True)
    (tmp_path / "models" / "m").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    tier = "model: models/m, bundle: bundles/b"
    config = read(write, policy="policy.yml", tier=tier, storage="sqlite:///data/t.db")
    assert config.policy == str(tmp_path / "policy.yml")
    assert config.tiers[0].model == str(tmp_path / "models/m")
    assert config.tiers[0].bundle == str(tmp_path / "bundles/b")
    assert config.review is not None
    assert config.review.storage == f"sqlite:///{tmp_path}/data/t.db"


def test_a_config_read_by_a_relative_path_gives_absolute_paths(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("version: 1\npolicy: p.yaml\ntiers:\n  - {name: a, model: ./m}\n")
    monkeypatch.chdir(tmp_path)
    config = read_config("guard.yaml")
    assert (config.policy, config.tiers[0].model) == (str(tmp_path / "p.yaml"), str(tmp_path / "m"))


def test_absolute_paths_stay(write: Callable[[str], Path]) -> None:
    config = read(write, policy="/p.yaml", tier="model: /m, bundle: /b", storage="sqlite:////var/t.db")
    assert (config.policy, config.tiers[0].bundle) == ("/p.yaml", "/b")
    assert config.review is not None
    assert config.review.storage == "sqlite:////var/t.db"


def test_a_tilde_is_the_users_home(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    config = read(write, policy="~/p.yaml", tier="model: ~/m, bundle: ~/b", storage="sqlite:///~/t.db")
    assert (config.policy, config.tiers[0].model) == (str(home / "p.yaml"), str(home / "m"))
    assert config.tiers[0].bundle == str(home / "b")
    assert config.review is not None
    assert config.review.storage == f"sqlite:///{home}/t.db"


def test_names_stay_names(write: Callable[[str], Path]) -> None:
    config = read(write, policy="clinical", tier="model: org/name, bundle: 'packaged:x'")
    assert (config.policy, config.tiers[0].model, config.tiers[0].bundle) == ("clinical", "org/name", "packaged:x")
    assert read(write, tier="model: 'packaged:x'").tiers[0].model == "packaged:x"


def test_bare_policy_name_means_the_shipped_policy(write: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "clinical").mkdir()
    assert read(write, policy="clinical").policy == "clinical"
    assert read(write, policy="./clinical").policy == str(tmp_path / "clinical")


@pytest.mark.parametrize("storage", ["sqlite:///:memory:", "sqlite://"])
def test_tickets_are_not_kept_in_memory_nor_in_a_file_of_that_name(
    write: Callable[[str], Path], tmp_path: Path, storage: str
) -> None:
    read(write, storage=storage)
    with pytest.raises(ReviewError, match="can't be kept in memory"):
        Guard.from_config(tmp_path / "guard.yaml")
    assert [file.name for file in tmp_path.iterdir()] == ["guard.yaml"]


def test_a_tier_is_found_by_its_name(write: Callable[[str], Path]) -> None:
    config = read(write)
    assert config.tier("a").model == "org/name"
    with pytest.raises(ConfigError, match=r"there is no tier 'b'; there are \['a'\]"):
        config.tier("b")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tiers that were loaded, as fakes."""
    loaded: list[str] = []

    def load(config: object, progress: object) -> Tier:  # noqa: ARG001 - as `load_tier` has it
        name = str(getattr(config, "name", ""))
        loaded.append(name)
        if name == "misfit":
            raise BundleMismatchError("the bundle doesn't fit")
        return Tier(name=name, model=FakeModel("yes"), scorer=FixedScorer(0.1))

    monkeypatch.setattr(guard_module, "load_tier", load)
    return loaded


@pytest.mark.parametrize(
    ("policy", "review", "error"),
    [
        ("version: 1\nname: p\nrules:\n  - {id: a, do: answer}\n", "", PolicyError),
        ("version: 1\nname: p\nrules:\n  - {id: a, do: retry, to: z}\n", "", ConfigError),
        ("version: 1\nname: p\nrules:\n  - {id: a, do: escalate}\n", "", ConfigError),
        ("version: 1\nname: p\nrules:\n  - {id: a, do: escalate}\n", "mysql://h/db", ReviewError),
    ],
)
def test_problems_are_reported_before_models_load(
    write: Callable[[str], Path], tmp_path: Path, loads: list[str], policy: str, review: str, error: type[Exception]
) -> None:
    (tmp_path / "p.yaml").write_text(policy, "utf-8")
    read(write, policy="p.yaml", storage=review)
    with pytest.raises(error):
        Guard.from_config(tmp_path / "guard.yaml")
    assert loads == []


def test_a_guard_from_a_config_has_its_tiers_policy_and_queue(
    write: Callable[[str], Path], tmp_path: Path, loads: list[str]
) -> None:
    path = write(
        "version: 1\npolicy: default\n"
        "tiers:\n  - {name: a, model: m}\n  - {name: b, model: n}\n"
        "review: {storage: 'sqlite:///tickets.db'}\n"
    )
    with Guard.from_config(path) as guard:
        assert guard.decide("?").text == "yes"
    assert guard.policy.name == "default"
    assert loads == ["a", "b"]
    assert (tmp_path / "tickets.db").is_file()


def test_a_bundle_that_does_not_fit_stops_the_start(write: Callable[[str], Path], loads: list[str]) -> None:
    policy_needs_no_queue = "version: 1\nname: p\nrules:\n  - {id: a, do: abstain}\n"
    path = write("version: 1\npolicy: p.yaml\ntiers:\n  - {name: a, model: m}\n  - {name: misfit, model: n}\n")
    (path.parent / "p.yaml").write_text(policy_needs_no_queue, "utf-8")
    with pytest.raises(BundleMismatchError):
        Guard.from_config(path)
    assert loads == ["a", "misfit"]


HOOK = "{name: a, url: 'https://hooks.example.org/', secret: '${S}'}"


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        (
            "{name: a, url: 'http://hooks.example.org/s3cret', secret: '${S}'}",
            ".url: the endpoint's address must start",
        ),
        (
            "{name: a, url: 'https://s3cret@hooks.example.org/', secret: '${S}'}",
            ".url: the endpoint's address has a user",
        ),
        ("{name: a, url: 's3cret', secret: '${S}'}", ".url: the endpoint's address has no host"),
        ("{name: a, url: 'https://hooks.example.org/'}", ".secret: webhooks must be signed"),
        (
            "{name: a, url: 'https://hooks.example.org/', secret: whsec_s3cret}",
            ".secret: give a reference to the secret",
        ),
        (
            "{name: a, url: '${U}', template: pagerduty, routing_key: s3cret}",
            ".routing_key: give a reference to the secret",
        ),
        ("{name: a, url: '${U}', template: pagerduty}", ".routing_key: the template pagerduty needs one"),
        ("{name: a, url: '${U}', template: slack, routing_key: '${K}'}", ".routing_key: the template pagerduty needs"),
        ("{name: a, url: '${U}', template: teams}", ".template: one of generic, slack, pagerduty, or a file that ends"),
        ("{name: a, url: '${U}', secret: '${S}', per_second: 0}", ".per_second: should be greater than 0, got 0"),
        ("{name: a, url: '${U}', secret: '${S}', events: [ticket.lost]}", ".events[0]: should be 'ticket.created'"),
    ],
)
def test_invalid_endpoint_is_refused_without_showing_its_secrets(
    write: Callable[[str], Path], endpoint: str, words: str
) -> None:
    path = write(f"{HEAD}{TIER}review:\n  storage: sqlite:///t.db\n  endpoints:\n    - {endpoint}\n")
    with pytest.raises(ConfigError) as refused:
        read_config(path)
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"{path}:9:")
    assert f"review.endpoints[0]{words}" in line
    assert "s3cret" not in line


def test_internal_hosts_need_no_https_and_are_bare_names(write: Callable[[str], Path]) -> None:
    inside = "    - {name: a, url: 'http://Hooks.Internal:8080/', secret: '${S}'}\n"
    review = f"{HEAD}{TIER}review:\n  storage: sqlite:///t.db\n  endpoints:\n{inside}  internal_hosts: "
    assert read_config(write(review + "[hooks.internal, '10.0.0.7', '::1']\n")).review is not None
    with pytest.raises(ConfigError, match=r"10:20: review\.internal_hosts\[0\]: an internal host is a bare name"):
        read_config(write(review + "['hooks.internal:8080']\n"))


def test_a_template_starts_at_the_files_folder(write: Callable[[str], Path], tmp_path: Path) -> None:
    own = "{name: a, url: '${U}', template: forms/own.j2}"
    path = write(f"{HEAD}{TIER}review: {{storage: 'sqlite:///t.db', endpoints: [{HOOK.replace('a,', 'b,')}, {own}]}}\n")
    review = read_config(path).review
    assert review is not None
    assert [endpoint.template for endpoint in review.endpoints] == ["generic", str(tmp_path / "forms" / "own.j2")]


PAGE = HEAD + TIER + "review:\n  storage: sqlite:///t.db\n  page:\n    url: https://review.example.org/\n"
HASH = "sha256:" + 64 * "0"


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        (PAGE.replace("https", "http"), "9:10", "the page needs https, or http on this machine alone"),
        (PAGE.replace("org/", "org/sub"), "9:10", "an address is a scheme, a host and perhaps a port"),
        (PAGE.replace("https://", "https://me:it@"), "9:10", "this looks like a password in a URL"),
        (PAGE.replace("https://", "https://me@"), "9:10", "an address is a scheme, a host and perhaps a port"),
        (PAGE + "    reviewers: [{name: ana}]\n", "10:17", "reviewers[0]: without a `token`, and with no `proxy`"),
        (PAGE + "    reviewers: [{name: ana, token: hunter2}]\n", "10:36", "reviewers[0].token: not a token's hash"),
        (
            PAGE + f"    reviewers: [{{name: a, token: '{HASH}'}}, {{name: a, token: '{HASH}'}}]\n",
            "10:117",
            "review.page.reviewers[1].name: duplicate name 'a'",
        ),
        (PAGE + f"    reviewers: [{{name: a, token: '{HASH}', role: boss}}]\n", "10:115", "role: should be 'reviewer'"),
        (PAGE + "    proxy: {header: X-User, addresses: [nowhere]}\n", "10:41", "'nowhere' does not appear to be"),
        (PAGE + "    proxy: {header: X-User, addresses: []}\n", "10:40", "addresses: "),
        (PAGE + "    verdict_secret: hunter2\n", "10:21", "verdict_secret: give a reference to the secret"),
    ],
)
def test_a_page_that_is_wrong_is_refused_with_its_place(
    write: Callable[[str], Path], text: str, place: str, what: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(f":{place}: ")) as caught:
        read_config(write(text))
    assert what in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_page_says_where_its_tickets_are_and_where_its_secrets_stand(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    text = PAGE + "    reviewers: [{name: ana, token: 'file:ana.hash'}]\n    verdict_secret: file:verdicts\n"
    review = read_config(write(text)).review
    assert review is not None
    assert review.page is not None
    assert review.page.ticket_url("3f") == "https://review.example.org/tickets/3f"
    assert [(one.name, one.role, one.token) for one in review.page.reviewers] == [
        ("ana", "reviewer", f"file:{tmp_path}/ana.hash")
    ]
    assert review.page.verdict_secret == f"file:{tmp_path}/verdicts"
