"""`serve`: the reviewers' page, and `reviewer-token`, with which somebody signs in there."""

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
    """Serve the reviewers' page, deliver webhooks, and take verdicts from other tools."""
    try:
        from ilis_guard_server import serve as run
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "multipart", "python_multipart", "starlette", "uvicorn"):
            raise
        raise MissingDependencyError(
            f"the server needs {error.name!r}, which isn't installed: pip install 'ilis-guard[server]'"
        ) from None
    run(config, host=host, port=port, started=lambda url: err.print(f"the page is at {url}", highlight=False))


@commands.command("reviewer-token")
def reviewer_token() -> None:
    """Make a token with which somebody signs in, and its hash for guard.yaml."""
    from ilis_guard.review.page import token_hash

    token = secrets.token_urlsafe(32)
    out.print(f"token, for the reviewer, shown only now:  {token}", highlight=False, soft_wrap=True)
    out.print(f"its hash, for guard.yaml:                 {token_hash(token)}", highlight=False, soft_wrap=True)
