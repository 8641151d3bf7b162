"""Review settings in guard.yaml: queues, webhook endpoints and secrets."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ilis_guard.config.guard_yaml import read_config
from ilis_guard.config.review import ReviewConfig
from ilis_guard.errors import ConfigError
from ilis_guard.guard import open_queue
from ilis_guard.review import EVENTS
from ilis_guard.types import Attempt, Request

HEAD = "version: 1\npolicy: default\ntiers: [{name: a, model: m}]\nreview:\n  storage: sqlite:///t.db\n"
Q = HEAD + "  queues:\n    - "
R = HEAD + "  endpoints:\n    - "
URL = ", url: 'https://x.example'}"
SIGNED = ", secret: '${KEY}'"


def review_in(path: Path) -> ReviewConfig:
    review = read_config(path).review
    assert review is not None
    return review


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (Q + "{name: a, due: 1e12}\n", "7:22", "queues[0].due: should be less than or equal to 3155760000, got "),
        (Q + "{name: a, lease: 1e12}\n", "7:24", "queues[0].lease: should be less than or equal to 3155760000, got "),
        (Q + "{name: a, due: 0}\n", "7:22", "queues[0].due: should be greater than 0, got 0"),
        (Q + "{name: a, due: 1h}\n", "7:22", "queues[0].due: should be a valid number, got '1h'"),
        (Q + "{name: a, lease: 0.5}\n", "7:24", "queues[0].lease: should be greater than or equal to 1, got 0.5"),
        (Q + "{name: a, priority: 101}\n", "7:27", "less than or equal to 100, got 101"),
        (Q + "{name: a, duee: 1}\n", "7:17", "unknown key 'duee'; did you mean 'due'?"),
        (Q + "{name: ' a'}\n", "7:14", "queues[0].name: "),
        (Q + "{due: 1}\n", "7:7", "the key 'name' is missing"),
        (Q + "{name: expire}\n", "7:14", "queues[0].name: 'expire' means that tickets expire; rename the queue"),
        (Q + "{name: a, overdue: b}\n", "7:17", "queues[0]: `overdue` needs a `due`; add one"),
        (Q + "{name: a}\n    - {name: a}\n", "8:14", "queues[1].name: duplicate name 'a', which already stands at"),
        (Q + "{name: a, due: 1, overdue: a}\n", "7:5", "queues: overdue tickets of 'a' would return to it"),
        (R + "{name: a}\n", "7:7", "the key 'url' is missing"),
        (R + "{name: a b" + URL + "\n", "7:14", "endpoints[0].name: "),
        (R + "{name: a, events: [ticket.closed]" + URL + "\n", "7:26", "got 'ticket.closed'"),
        (
            R + "{name: a" + SIGNED + URL + "\n    - {name: a" + SIGNED + URL + "\n",
            "8:14",
            "endpoints[1].name: duplicate name 'a'",
        ),
        (R + "{name: a, secret: s3cret" + URL + "\n", "7:25", "`${NAME}` in the environment or `file:PATH`"),
    ],
)
def test_error_names_place_and_problem(write: Callable[[str], Path], text: str, place: str, words: str) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as refused:
        read_config(path)
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"{path}:{place}: ")
    assert words in line
    assert "s3cret" not in line


def test_tickets_wait_as_their_queue_says(write: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(Q + "{name: chemists, priority: 3, due: 60, overdue: seniors, lease: 30}\n")
    with open_queue(review_in(path)) as queue:
        ticket = queue.escalate(
            decision="d",
            request=Request.of("?"),
            attempts=[Attempt(tier="small", text="x")],
            queue="chemists",
            policy="p",
            rule=None,
        )
        assert (ticket.priority, ticket.due_at) == (3, ticket.created_at + 60)
        assert queue.get(ticket.id).overdue == "seniors"
        claimed = queue.claim(ticket.id, reviewer="ada")
        assert claimed.claimed_until is not None
        assert claimed.claimed_until < claimed.created_at + 60
    assert (tmp_path / "t.db").is_file()


def test_endpoint_gets_all_events_by_default(write: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(
        R
        + "{name: all"
        + SIGNED
        + URL
        + "\n    - {name: some, url: 'file:hook', secret: 'file:key', events: [ticket.resolved], queues: [legal]}\n"
    )
    all_, some = review_in(path).endpoints
    assert (all_.events, all_.queues, all_.secret) == (EVENTS, None, "${KEY}")
    assert all(all_.receives(event, ["any"]) for event in EVENTS)
    assert (some.url, some.secret) == (f"file:{tmp_path}/hook", f"file:{tmp_path}/key")
    assert some.receives("ticket.resolved", ["other", "legal"])
    assert not some.receives("ticket.resolved", ["other"])
    assert not some.receives("ticket.created", ["legal"])


def test_a_storage_with_a_password_stands_in_the_environment_or_a_file(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TICKETS", f"sqlite:///{tmp_path}/from-environment.db")
    path = write(HEAD.replace("sqlite:///t.db", "${TICKETS}"))
    open_queue(review_in(path)).close()
    assert (tmp_path / "from-environment.db").is_file()

    (tmp_path / "url").write_text(f"sqlite:///{tmp_path}/from-file.db\n")
    open_queue(review_in(write(HEAD.replace("sqlite:///t.db", "file:url")))).close()
    assert (tmp_path / "from-file.db").is_file()

    monkeypatch.delenv("TICKETS")
    with pytest.raises(ConfigError, match=r"the secret '\$\{TICKETS\}' is empty or isn't there"):
        open_queue(review_in(write(HEAD.replace("sqlite:///t.db", "${TICKETS}"))))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada:s3cret@db.example/tickets",
        "postgresql+psycopg://ada:s3cret@db.example:5432/tickets?sslmode=require",
        "postgresql://ada@db.example/tickets?password=s3cret",
        "postgresql:///tickets?host=db.example&user=ada&password=s3cret",
        "postgresql://ada@db.example/tickets?sslpassword=s3cret",
        "postgresql://ada:${PASSWORD}@db.example/tickets",
        "postgresql://ada:@db.example/tickets",
        "sqlite://ada:s3cret@host/tickets.db",
        "mysql://:s3cret@host/tickets",
    ],
)
def test_a_storage_url_with_a_password_in_it_is_refused_and_not_shown(write: Callable[[str], Path], url: str) -> None:
    path = write(HEAD.replace("sqlite:///t.db", f"'{url}'"))
    with pytest.raises(
        ConfigError, match=r"a password.*give a reference to .*`\$\{NAME\}` in the environment"
    ) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path}:5:1")
    assert "s3cret" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model: m", "remote: {chat_model: 'x.y:Z', arguments: {api_key: SECRET}}"),
        ("model: m", "remote: {chat_model: 'x.y:Z', arguments: {default_headers: {Authorization: 'Bearer SECRET'}}}"),
        ("model: m", "remote: {chat_model: 'x.y:Z', arguments: {base_url: 'https://ada:SECRET@models.example/v1'}}"),
        ("model: m", "model: m, SECRET: 1"),
        ("policy: default", "policy: default  # SECRET"),
        ("sqlite:///t.db", "{url: 'postgresql://ada:SECRET@db/tickets'}"),
        ("sqlite:///t.db", 'sqlite:///t.db\n  page: {url: "https://ada:SECRET@review.example"}'),
        (
            "sqlite:///t.db",
            "sqlite:///t.db\n  endpoints: [{name: a, url: 'https://ada:SECRET@hooks.example', secret: '${KEY}'}]",
        ),
        ("sqlite:///t.db", "sqlite:///t.db\n  endpoints: [{name: a, url: 'https://hooks.example', secret: [SECRET]}]"),
    ],
)
def test_a_secret_anywhere_in_guard_yaml_is_refused_and_not_shown(
    write: Callable[[str], Path], old: str, new: str
) -> None:
    secret = "sk-" + "proj-" + "abc123" * 8
    assert old in HEAD
    path = write(HEAD.replace(old, new.replace("SECRET", secret)))
    with pytest.raises(
        ConfigError, match=r"this looks like .*: give a reference to the secret, .*then revoke"
    ) as caught:
        read_config(path)
    assert secret not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


def test_a_storage_url_without_a_password_is_taken(write: Callable[[str], Path]) -> None:
    url = "postgresql://ada@db.example/tickets?sslmode=require&passfile=/run/secrets/pgpass"
    assert review_in(write(HEAD.replace("sqlite:///t.db", url))).storage_url == url
