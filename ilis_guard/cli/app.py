"""The application: all commands together, and what becomes of an error."""

import os
import sys
from typing import Annotated

import typer

from ilis_guard import __version__
from ilis_guard.cli import asking, deliveries, lab, models, policy, queue, serve
from ilis_guard.cli.terminal import configure_logs, err, out
from ilis_guard.cli.views.text import escape
from ilis_guard.errors import IlisGuardError

app = typer.Typer(
    name="ilis-guard",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for group in (asking, lab, models, policy, queue, serve):
    app.add_typer(group.commands)
queue.commands.add_typer(deliveries.commands)
EXIT_BAD_INPUT = 2
LAB_PACKAGES = ("matplotlib", "pyarrow", "scipy", "sklearn")


def main() -> None:
    """Run a command; an error of ours is one message and exit status 2, never a traceback."""
    configure_logs()
    # One progress bar at a time: transformers' own would run across ours. Read when transformers is imported.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except ModuleNotFoundError as error:
        if error.name not in LAB_PACKAGES:
            raise
        err.print(f"[red]error:[/red] this command needs {error.name!r}: pip install 'ilis-guard\\[hf,lab]'")
        sys.exit(EXIT_BAD_INPUT)
    except (IlisGuardError, OSError) as error:  # the latter where a path can't be written, for instance
        err.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(EXIT_BAD_INPUT)


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"ilis-guard {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Decides what to do with an LLM's answer: answer, abstain, retry on a larger model, or escalate to a person."""
