"""What the command line shows of a bundle that was fitted."""

from rich.table import Table

from ilis_guard.scoring.bundle import BundleMetadata, Figure, HeldOut


def held_out_table(metadata: BundleMetadata) -> Table:
    """A bundle's figures beside those of the output statistics alone, on the same rows."""
    rows = metadata.held_out.rows
    table = Table(
        title=f"{rows} held-out rows, {metadata.held_out.wrong / rows:.0%} of the answers wrong", title_justify="left"
    )
    alone = "output statistics alone" if metadata.stage == "answer" else "output statistics, once it answered"
    for heading in ("figure", "this bundle", alone):
        table.add_column(heading)
    for name in HeldOut.model_fields:
        value = getattr(metadata.held_out, name)
        if isinstance(value, Figure):
            table.add_row(name, _figure(value), _figure(getattr(metadata.baseline, name)))
    return table


def _figure(figure: Figure) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def candidates_table(metadata: BundleMetadata) -> Table:
    """What was tried, and how it fared; the first row is the bundle's."""
    table = Table(title="tried, by log-loss on the validation rows", title_justify="left")
    for column in ("features", "leaves", "columns a tree", "trees", "log-loss"):
        table.add_column(column, justify="left" if column == "features" else "right")
    for one in metadata.candidates:
        table.add_row(
            ", ".join(one.features),
            str(one.num_leaves),
            f"{one.feature_fraction:.0%}",
            str(one.trees),
            f"{one.loss:.4f}",
        )
    return table
