"""What the command line shows of an evaluation."""

from rich.console import Group, RenderableType
from rich.table import Table

from ilis_guard.cli.views.text import escape
from ilis_guard.lab.evaluation.evaluate import REFERENCE, Evaluation
from ilis_guard.lab.evaluation.tables import Table as MethodTable
from ilis_guard.lab.evaluation.tables import ahead, by_protocol


def evaluation_view(evaluation: Evaluation) -> RenderableType:
    """The headline, how far ahead the reference is, and last what the reader must know."""
    left_out = [(one, "left out") for one in evaluation.sets if not one.counts]
    left_out += [(one, "left out at the other precision") for one in evaluation.applied_sets if not one.counts]
    return Group(
        _table(by_protocol(evaluation)),
        *([_table(ahead(evaluation))] if evaluation.differences else []),
        *(f"[dim]{where}:[/] {escape(one.name)}: {escape(one.why_left_out)}" for one, where in left_out),
        *(f"[yellow]note:[/] {escape(note)}" for note in evaluation.notes),
    )


def _table(shown: MethodTable) -> Table:
    table = Table(title=escape(shown.title), title_justify="left")
    for name in shown.columns:
        table.add_column(escape(name), justify="left" if name == shown.columns[0] else "right")
    for row in shown.rows:
        table.add_row(*map(escape, row), style="bold" if row[0] == REFERENCE else None)
    return table
