"""`serve`: the guard over HTTP and the reviewers' page; `api-key` and `reviewer-token`, with which people get in."""

import secrets
from typing import Annotated

import typer

from ilis_guard.cli.terminal import GUARD_YAML, Config, err, out
from ilis_guard.errors import MissingDependencyError

commands = typer.Typer()


@commands.command()
def serve(
    config: Config = GUARD_YAML,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on.")] = 8000,
) -> None:
    """Serve the guard as an OpenAI-compatible model, the reviewers' page, or both; deliver webhooks on the side."""
    try:
        from ilis_guard_server import serve as run
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "multipart", "prometheus_client", "python_multipart", "starlette", "uvicorn"):
            raise
        raise MissingDependencyError(
            f"the server needs {error.name!r}, which isn't installed: pip install 'ilis-guard[server]'"
        ) from None
    run(config, host=host, port=port, on_start=lambda line: err.print(line, highlight=False, soft_wrap=True))


@commands.command("reviewer-token")
def reviewer_token() -> None:
    """Make a token with which somebody signs in, and its hash for guard.yaml."""
    _print_with_hash("token, for the reviewer", secrets.token_urlsafe(32))


@commands.command("api-key")
def api_key() -> None:
    """Make a key with which a program asks the server, and its hash for guard.yaml."""
    _print_with_hash("API key, for the client", f"ilis-{secrets.token_urlsafe(32)}")


def _print_with_hash(what: str, secret: str) -> None:
    from ilis_guard.config.page import token_hash

    out.print(f"{what}, shown only now:  {secret}", highlight=False, soft_wrap=True)
    out.print(f"its hash, for guard.yaml:                 {token_hash(secret)}", highlight=False, soft_wrap=True)
