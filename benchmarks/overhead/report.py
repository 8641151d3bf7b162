"""The results as a table, a CSV file and a picture."""

import csv
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import torch

from benchmarks.common import machine, show
from benchmarks.overhead.cases import Case
from benchmarks.overhead.pairs import Measured, Spent

CSV = Path("benchmarks/results/overhead.csv")
PICTURE = Path("docs/overhead.png")
COLUMNS = (
    *("machine", "torch", "model", "precision", "layers", "hidden", "prompts", "prefill", "tokens", "pair"),
    *("guarded_wall", "bare_wall", "guarded_processor", "bare_processor"),
)


def print_table(measured: Sequence[Measured]) -> None:
    """A row a case."""
    rows = []
    for each in measured:
        wall, processor = ("{:.3f} ({:.3f} to {:.3f})".format(*each.ratio(clock)) for clock in ("wall", "processor"))
        added = f"{each.milliseconds_a_token:.2f}"
        rows.append([str(each.case), str(len(each.bare)), f"{each.seconds:.2f}", wall, processor, added])
    headings = ("case", "pairs", "bare, s", "ratio, wall", "ratio, processor", "added, ms a token")
    show(f"guarded / bare, medians with 95 % intervals, {machine()}, one thread", headings, rows)


def append_to_csv(path: Path, measured: Measured) -> None:
    """Every pair, so that anybody may take other medians."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        if is_new:
            table.writerow(COLUMNS)
        case = measured.case
        known = [machine(), torch.__version__, case.model, case.precision, measured.layers, measured.hidden]
        known += [case.prompts, case.prefill, case.tokens]
        for pair, (on, off) in enumerate(zip(measured.guarded, measured.bare, strict=True)):
            seconds = [on.wall, off.wall, on.processor, off.processor]
            table.writerow([*known, pair, *(f"{value:.4f}" for value in seconds)])


def read_csv(path: Path) -> list[Measured]:
    """What was written, case by case."""
    with path.open(newline="", encoding="utf-8") as file:
        by_case = groupby(csv.DictReader(file), key=lambda row: [row[name] for name in COLUMNS[:9]])
        return [_measured(list(rows)) for _, rows in by_case]


def _measured(rows: Sequence[Mapping[str, str]]) -> Measured:
    first = rows[0]
    case = Case(
        model=first["model"],
        precision="nf4" if first["precision"] == "nf4" else "full",
        prompts=int(first["prompts"]),
        prefill=int(first["prefill"]),
        tokens=int(first["tokens"]),
    )
    runs = {
        run: tuple(Spent(float(row[f"{run}_wall"]), float(row[f"{run}_processor"])) for row in rows)
        for run in ("guarded", "bare")
    }
    return Measured(case=case, layers=int(first["layers"]), hidden=int(first["hidden"]), **runs)


def draw(measured: Sequence[Measured]) -> None:
    """Left, what guarding costs case by case; right, what it adds to a token against the map's flops."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (ratios, growth) = plt.subplots(1, 2, figsize=(13, 8), width_ratios=(2, 1), layout="constrained")
    places = range(len(measured))
    for clock, colour, away in (("wall", "#9aa5b1", 0.15), ("processor", "#1f6feb", -0.15)):
        found = [each.ratio(clock) for each in measured]
        middle = [ratio for ratio, _, _ in found]
        errors = [[ratio - low for ratio, low, _ in found], [high - ratio for ratio, _, high in found]]
        at = [place + away for place in places]
        ratios.errorbar(middle, at, xerr=errors, fmt="o", markersize=4, color=colour, label=f"{clock} time")
    for line, style in ((1.0, "-"), (1.01, "--"), (1.03, ":")):
        ratios.axvline(line, color="#57606a", linewidth=0.8, linestyle=style)
    ratios.set_yticks(list(places), [str(each.case) for each in measured], fontsize=8)
    ratios.invert_yaxis()
    ratios.set_xlabel("guarded / bare: median and 95 % interval (lines at 1.00, 1.01 and 1.03)")
    ratios.legend(loc="lower right")
    for each in measured:
        if str(each.case.model).startswith("random"):
            growth.plot(each.map_flops / 1e6, each.milliseconds_a_token, "o", color="#1f6feb")
            growth.annotate(
                f"{each.layers} x {each.hidden}", (each.map_flops / 1e6, each.milliseconds_a_token), fontsize=8
            )
    growth.set_xlabel("Mflop of the map, 2 L L D a token")
    growth.set_ylabel("ms of processor time added a token")
    growth.set_ylim(bottom=0)
    growth.set_title("random weights: layers x width", fontsize=10)
    figure.suptitle(f"What guarding costs ({machine()}, one thread)")
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})
