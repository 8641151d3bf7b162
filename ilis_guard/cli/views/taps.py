"""What the command line shows of a model's taps."""

from collections.abc import Sequence
from typing import Final

from rich.table import Table

from ilis_guard.cli.views.text import escape
from ilis_guard.signature.proof import Proof

PROOF: Final = "logits moved"
"""By so many standard deviations, when the tap was disturbed."""


def taps_table(title: str, proofs: Sequence[Proof]) -> Table:
    """One row a layer: what is tapped, and how far the logits moved when it was disturbed."""
    table = Table(title=escape(title), title_justify="left")
    for heading in ("layer", "module", "shape", "dtype", "device", PROOF):
        table.add_column(heading, overflow="fold", justify="right" if heading in ("layer", PROOF) else "left")
    for proof in proofs:
        shape = f"[*, *, {', '.join(map(str, proof.shape))}]"  # batch and sequence
        moved = f"{proof.moved:.2g} sd"
        cells = (str(proof.point.layer), proof.point.path, shape, proof.dtype, proof.device, moved)
        table.add_row(*map(escape, cells))
    return table
