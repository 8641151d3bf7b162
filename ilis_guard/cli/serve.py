"""`serve`: the guard over HTTP and the reviewers' page; `api-key` and `reviewer-token`: credentials for both."""

import secrets
from typing import Annotated, Any

import typer

from ilis_guard.cli.console import GUARD_YAML, Config, err, print_line
from ilis_guard.errors import MissingDependencyError

commands = typer.Typer()
SERVERS = "ilis_guard.servers"
"""The group of entry points that name servers: functions of the config's path, `host`, `port` and `on_start`."""


@commands.command()
def serve(
    config: Config = GUARD_YAML,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on.")] = 8000,
) -> None:
    """Serve the guard as an OpenAI-compatible model, the reviewers' page, or both; also deliver webhooks."""
    run = _load_server()
    run(config, host=host, port=port, on_start=lambda line: err.print(line, highlight=False, soft_wrap=True))


@commands.command()
def reviewer_token() -> None:
    """Make a sign-in token for a reviewer, and its hash for guard.yaml."""
    _print_with_hash("token, for the reviewer", secrets.token_urlsafe(32))


@commands.command()
def api_key() -> None:
    """Make an API key for a client of the server, and its hash for guard.yaml."""
    _print_with_hash("API key, for the client", f"ilis-{secrets.token_urlsafe(32)}")


def _load_server() -> Any:
    from importlib.metadata import entry_points

    install = "pip install 'ilis-guard[server]'"
    for entry in entry_points(group=SERVERS):
        try:
            return entry.load()
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("ilis_guard"):
                raise
            raise MissingDependencyError(f"the server needs {error.name!r}, which isn't installed: {install}") from None
    raise MissingDependencyError(f"no package has an entry point in the group {SERVERS!r}: {install}")


def _print_with_hash(what: str, secret: str) -> None:
    from ilis_guard.config.secrets import hash_token

    print_line(f"{what}, shown only now:  {secret}")
    print_line(f"its hash, for guard.yaml:                 {hash_token(secret)}")
