"""Measure what a bundle is worth on a set that it wasn't fitted to: without a label, and by labels.

    python -m benchmarks.learning_curve --harvests FOLDER [--observations FOLDER] [--samplers]
        [--to benchmarks/results/learning_curve.csv]

The folder holds harvests of one model (``ilis-guard harvest``), one Parquet file a set. Each set is left out in turn: a
bundle is fitted to the others, and of its rows 200, drawn at random, may be looked at. They are the traffic that
a profile is measured on, and the rows that are labelled; the remaining ones test. Sets with fewer than 260 rows are
only fitted to.

Output statistics are given all that the bundle is given: the other sets, each in its own units, the same profile,
improbability, the same labels with the same kind of correction. With a second folder, of what was observed of each
harvest (``ilis-guard observe``, a file of the same name), so are probes and TriLens, and more scores that need no label
are compared.

Beside the table there is a picture of the same name (.png). With ``--samplers`` the ways to choose the rows to label
are compared, and that table stands beside the other. Bundles are kept in a folder, and a second run takes them from
there.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import matplotlib as mpl
import typer

from benchmarks.common import show
from benchmarks.learning_curve.comparison import comparison, headings as compared
from benchmarks.learning_curve.figures import CurveFigure, curve_figures, find, write_figures
from benchmarks.learning_curve.left_out import leave_out, sources_in
from benchmarks.learning_curve.picture import draw
from benchmarks.learning_curve.rivals import PROBES
from benchmarks.learning_curve.trials import BUNDLE, OBSERVED, Draw, Sizes, Trial
from ilis_guard.errors import FitError
from ilis_guard.lab.attempts import read_attempts
from ilis_guard.lab.evaluation.bootstrap import MEAN, POOLED

RESULTS: Final = Path(__file__).parents[1] / "results" / "learning_curve.csv"
SIZES: Final = Sizes()
CACHE: Final = Path("build/learning_curve")


def measure(
    harvests: Path, folder: Path, sizes: Sizes, draws: int, *, observations: Path | None = None, samplers: bool
) -> Iterator[Trial]:
    """Leave each set out that has enough rows.

    Args:
        harvests: a folder of Parquet files.
        observations: another, with what was observed of each.
        folder: keeps the bundles.
        sizes: how many rows are taken for what.
        draws: of each set's rows.
        samplers: compare ways to choose the rows to label, and nothing else.

    Raises:
        FitError: no set has enough rows, they are no harvests of one model, or the observations aren't theirs.
    """
    sources = sources_in(harvests, observations)
    least = sizes.pool + sizes.tested
    enough = [name for name, source in sources.items() if len(read_attempts(source.harvest)) >= least]
    if not enough:
        raise FitError(f"no set in {str(harvests)!r} has {least} rows: {sizes.pool} to look at, and the others to test")
    for name in enough:
        left_out = leave_out(name, sources, folder)
        for seed in range(draws):
            drawn = Draw(left_out, sizes, seed)
            if samplers:
                yield from drawn.sampled()
            else:
                yield from drawn.unlabelled()
                yield from drawn.labelled()


def table(found: list[CurveFigure]) -> list[list[str]]:
    """The means over sets, a row a setting."""
    rows = []
    for setting in dict.fromkeys(one.setting for one in found):
        cells = [
            find(found, setting, name, left_out)
            for name, left_out in (("auroc", MEAN), ("ece", MEAN), ("ece", POOLED), ("certified coverage", MEAN))
        ]
        values = ["" if one is None else f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})" for one in cells]
        rows.append(
            [setting.method, setting.sampler, *map(str, (setting.profile, setting.labels, setting.kept)), *values]
        )
    return rows


def run(
    harvests: Path,
    to: Path,
    folder: Path,
    sizes: Sizes,
    draws: int,
    *,
    observations: Path | None = None,
    samplers: bool,
) -> list[CurveFigure]:
    """Measure, and write tables and the picture."""
    trials = list(measure(harvests, folder, sizes, draws, observations=observations, samplers=False))
    found = curve_figures(trials)
    write_figures(found, to)
    sets = len({trial.left_out for trial in trials})
    draw(found, sizes, f"Each of {sets} sets left out, {draws} draws", to.with_suffix(".png"))
    if samplers:
        at_random = [one for one in trials if one.setting.method == BUNDLE and one.setting.labels in sizes.sampled]
        chosen = curve_figures([*at_random, *measure(harvests, folder, sizes, draws, samplers=True)])
        write_figures(chosen, to.with_name(f"{to.stem}_samplers.csv"))
        found += chosen
    return found


def main(
    harvests: Annotated[Path, typer.Option(help="A folder of harvests of one model, a file a set.")],
    observations: Annotated[
        Path | None, typer.Option(help="A folder of their observations, by the same names.")
    ] = None,
    to: Annotated[Path, typer.Option(help="The table; the picture stands beside it.")] = RESULTS,
    folder: Annotated[Path, typer.Option(help="Keeps the bundles.")] = CACHE,
    draws: Annotated[int, typer.Option(min=1, help="Of each set's rows.")] = 5,
    samplers: Annotated[bool, typer.Option("--samplers", help="Compare ways to choose rows, too.")] = False,
) -> None:
    """Measure a bundle on sets that it wasn't fitted to, by labels."""
    mpl.use("Agg")
    found = run(harvests, to, folder, SIZES, draws, observations=observations, samplers=samplers)
    headings = ("method", "chosen", "profile", "labels", "kept", "AUROC", "ECE of each", "ECE of all", "certified")
    show("means over sets, and 95 % bootstrap intervals over them", headings, table(found))
    show("AUROC, means over sets", compared(SIZES), comparison(found, SIZES))
    if observations is None:
        typer.echo(f"without --observations these are missing: {', '.join([*OBSERVED, *PROBES])}")


if __name__ == "__main__":
    typer.run(main)
