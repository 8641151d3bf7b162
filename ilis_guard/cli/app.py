"""The application: all commands, and the exit status of errors.

The modules of the commands import only the types of their options: ``--help`` is quick, and each command imports what
it runs.
"""

import os
import sys
from typing import Annotated

import typer

from ilis_guard import __version__
from ilis_guard.cli import ask, evaluation, lab, models, policy, queue, serve, traffic
from ilis_guard.cli.console import configure_logs, err, escape, print_line
from ilis_guard.errors import IlisGuardError

app = typer.Typer(name="ilis-guard", no_args_is_help=True, pretty_exceptions_enable=False)
for module in (ask, lab, traffic, evaluation, models, policy, queue, serve):
    app.add_typer(module.commands)
EXIT_BAD_INPUT = 2
LAB_PACKAGES = ("matplotlib", "pyarrow", "scipy", "sklearn")


def main() -> None:
    """Run a command. An error of this package is one message and exit status 2, never a traceback."""
    # Transformers' own progress bars would overwrite ours. Transformers reads this when it is imported.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except ModuleNotFoundError as error:
        if error.name not in LAB_PACKAGES:
            raise
        err.print(f"[red]error:[/red] this command needs {error.name!r}: pip install 'ilis-guard\\[hf,lab]'")
        sys.exit(EXIT_BAD_INPUT)
    except (IlisGuardError, OSError) as error:  # an OSError where a path can't be written, for instance
        err.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(EXIT_BAD_INPUT)


def _show_version(wanted: bool) -> None:
    if wanted:
        print_line(f"ilis-guard {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Decides what to do with an LLM's answer: answer, abstain, retry on a larger model, or escalate to a person."""
    configure_logs()
