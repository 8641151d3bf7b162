"""`policy ...`: check policies, and see beforehand what they would change."""

from pathlib import Path
from typing import Annotated

import typer

from ilis_guard import views
from ilis_guard.cli.terminal import counted, out

commands = typer.Typer(name="policy", help="Check and simulate policies.", no_args_is_help=True)


@commands.command()
def check(
    policy: Annotated[str, typer.Argument(help="A policy file, or the name of one that comes with ilis_guard.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Check it against this guard.yaml.")] = None,
) -> None:
    """Say what is wrong with a policy, with file, line and column, or show its rules."""
    from ilis_guard.config import read_config
    from ilis_guard.guard import check_config
    from ilis_guard.policy import Policy

    checked = Policy.load(policy)
    if config is not None:
        check_config(checked, read_config(config))
    out.print(views.rules_table(checked))
    out.print(
        f"[green]ok[/green]: {views.escape(policy)}, fingerprint {checked.fingerprint}", highlight=False, soft_wrap=True
    )


@commands.command()
def simulate(
    old: Annotated[str, typer.Argument(help="The policy in force: a file, or a name that comes with ilis_guard.")],
    new: Annotated[str, typer.Argument(help="The policy that may take its place.")],
    on: Annotated[Path, typer.Option(help="A scored table, made by `ilis-guard score`.")],
    requests_per_hour: Annotated[float, typer.Option(min=0, help="The traffic that reviews are counted for.")] = 100,
    html: Annotated[Path | None, typer.Option(help="Also write it all to this HTML file.")] = None,
    changed: Annotated[
        Path | None, typer.Option(help="Also write every request whose action changes to this JSONL file.")
    ] = None,
    all_rows: Annotated[
        bool, typer.Option("--all-rows", help="Also on requests that a bundle has seen, which flatter it.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
) -> None:
    """Say what would change from one policy to another, on recorded requests; nothing is asked again."""
    from ilis_guard import views_simulation
    from ilis_guard.lab.report import report
    from ilis_guard.lab.simulating import simulate_both, write_changes
    from ilis_guard.policy import Policy

    policies = Policy.load(old), Policy.load(new)
    with counted() as progress:
        simulated = simulate_both(
            *policies, on, requests_per_hour=requests_per_hour, all_rows=all_rows, seed=seed, progress=progress
        )
    out.print(views_simulation.simulation(simulated), highlight=False)
    if html is not None:
        html.write_text(report(simulated, old=policies[0], new=policies[1]), encoding="utf-8")
        out.print(f"page in {html}", highlight=False, soft_wrap=True)
    if changed is not None:
        rows = write_changes(changed, simulated)
        out.print(f"{'1 row' if rows == 1 else f'{rows} rows'} in {changed}", highlight=False, soft_wrap=True)
