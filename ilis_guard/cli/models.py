"""`models ...`: look into models."""

from typing import Annotated

import typer

from ilis_guard.cli.terminal import out, steps
from ilis_guard.types import Precision, Site

commands = typer.Typer(name="models", help="Look into models.", no_args_is_help=True)


@commands.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or packaged:NAME.")],
    precision: Annotated[Precision, typer.Option(help="How its weights are held.")] = "full",
    site: Annotated[Site, typer.Option(help="What is tapped of each layer: its MLP's output, or its own.")] = "mlp",
) -> None:
    """Show where a model is tapped, and prove that each tap sits in the path to its answers."""
    from ilis_guard.cli.views.taps import taps_table
    from ilis_guard.models.checkpoint import Checkpoint
    from ilis_guard.signature import locate, prove

    with steps() as progress:
        checkpoint = Checkpoint.load(model, precision=precision, progress=progress)
    points = locate(checkpoint.model, checkpoint.layers, site)
    proofs = prove(checkpoint.model, points, hidden=checkpoint.hidden)
    out.print(taps_table(f"{type(checkpoint.model).__name__}, {precision}, site {site}", proofs))
