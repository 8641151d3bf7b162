"""`policy ...`: check policies, and say what they may be made of."""

from pathlib import Path
from typing import Annotated

import typer

from ilis_guard import views, views_check
from ilis_guard.cli.terminal import out

commands = typer.Typer(name="policy", help="Check policies.", no_args_is_help=True)
EXIT_WARNINGS = 1


@commands.command()
def check(
    policy: Annotated[str, typer.Argument(help="A policy file, or the name of one that comes with ilis_guard.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Check it against this guard.yaml.")] = None,
    strict: Annotated[bool, typer.Option(help="Exit with status 1 where there is a warning.")] = False,
) -> None:
    """Say what is wrong with a policy, with file, line and column, or show its rules and warn of what may not be meant.

    What can't be meant is an error, and no guard loads it: exit status 2. What may be meant is a warning. A note (the
    policy is in shadow mode) is neither.
    """
    from ilis_guard import notices
    from ilis_guard.config import read_config
    from ilis_guard.policy import Policy
    from ilis_guard.wiring import check_config

    checked = Policy.load(policy)
    found, certified = checked.notices(), None
    if config is not None:
        operated = read_config(config)
        certified = check_config(checked, operated)
        found += notices.notices(checked, operated)
    warnings = sum(notice.level == "warning" for notice in found)
    out.print(views_check.checked(checked))
    if certified:
        out.print(views_check.certificates_table(certified))
    for notice in found:
        out.print(views_check.notice(notice), highlight=False, soft_wrap=True)
    is_ok = not (strict and warnings)
    verdict = "[green]ok[/green]" if is_ok else "[red]refused[/red]"
    counted = f" ({warnings} warning{'' if warnings == 1 else 's'})" if warnings else ""
    line = f"{verdict}: {views.escape(policy)}, fingerprint {checked.fingerprint}{counted}"
    out.print(line, highlight=False, soft_wrap=True)
    if not is_ok:
        raise typer.Exit(EXIT_WARNINGS)


@commands.command()
def schema() -> None:
    """Print the language as a JSON Schema, with which editors complete a policy's keys and underline what is wrong.

    Save it, and name it in the policy's first line: # yaml-language-server: $schema=policy.schema.json
    """
    from ilis_guard.policy import json_schema

    typer.echo(json_schema.as_text(), nl=False)
