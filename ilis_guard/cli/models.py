"""`models ...`: inspect models."""

from typing import Annotated, Final

import typer

from ilis_guard.cli.console import escape, make_table, out, steps
from ilis_guard.types import Precision, Site

commands = typer.Typer(name="models", help="Inspect models.", no_args_is_help=True)
MOVED: Final = "logits moved"
"""The column of the proofs: the change of the logits when the tap was perturbed, in standard deviations."""


@commands.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or packaged:NAME.")],
    precision: Annotated[Precision, typer.Option(help="How its weights are held.")] = "full",
    site: Annotated[Site, typer.Option(help="What is tapped of each layer: its MLP's output, or its own.")] = "mlp",
) -> None:
    """Show where a model is tapped, and prove that each tap lies on the path to its answers."""
    from ilis_guard.models.checkpoint import Checkpoint
    from ilis_guard.signature import locate, prove

    with steps() as progress:
        checkpoint = Checkpoint.load(model, precision=precision, progress=progress)
    title = escape(f"{type(checkpoint.model).__name__}, {precision}, site {site}")
    table = make_table("layer", "module", "shape", "dtype", "device", MOVED, title=title, right=("layer", MOVED))
    points = locate(checkpoint.model, checkpoint.layers, site)
    for proof in prove(checkpoint.model, points, hidden=checkpoint.hidden):
        shape = f"[*, *, {', '.join(map(str, proof.shape))}]"  # batch and sequence
        cells = (str(proof.point.layer), proof.point.path, shape, proof.dtype, proof.device, f"{proof.moved:.2g} sd")
        table.add_row(*map(escape, cells))
    out.print(table)
