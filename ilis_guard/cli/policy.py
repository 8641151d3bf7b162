"""`policy ...`: check policies."""

from pathlib import Path
from typing import Annotated

import typer

from ilis_guard import views
from ilis_guard.cli.terminal import out

commands = typer.Typer(name="policy", help="Check policies.", no_args_is_help=True)


@commands.command()
def check(
    policy: Annotated[str, typer.Argument(help="A policy file, or the name of one that comes with ilis_guard.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Check it against this guard.yaml.")] = None,
) -> None:
    """Say what is wrong with a policy, with file, line and column, or show its rules."""
    from ilis_guard.config import read_config
    from ilis_guard.policy import Policy
    from ilis_guard.wiring import check_config

    checked = Policy.load(policy)
    certificates = {} if config is None else check_config(checked, read_config(config))
    out.print(views.rules_table(checked))
    if certificates:
        out.print(views.certificates_table(certificates))
    out.print(
        f"[green]ok[/green]: {views.escape(policy)}, fingerprint {checked.fingerprint}", highlight=False, soft_wrap=True
    )
