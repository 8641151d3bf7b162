"""The measurements as a printed table and as a CSV file."""

import csv
import platform
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from rich.table import Table

from benchmarks.neighbours.rounds import Outcome
from benchmarks.neighbours.worker import BARE, BARE_SDPA, SCORED

HEADINGS: Final = (
    "version",
    "transformers, torch",
    "attention",
    "packages",
    "bare, s",
    "ratio, wall",
    "range",
    "ratio, processor",
    "against sdpa",
)
"""Medians of all pairs, but for the range of the ratio of wall clock. The last is scored, with the
attention that the library needs, against bare with sdpa: of wall clock too."""
WIDTH: Final = 170
"""Columns that the table needs: where the output is no terminal, rich takes 80 and cuts names off."""
FIELDS: Final = (
    "neighbour",
    "version",
    "transformers",
    "torch",
    "python",
    "processor",
    "packages",
    "attention",
    "tokens",
    "pairs",
    "pair",
    "run",
    "wall_seconds",
    "processor_seconds",
    "error",
)
CPU_INFO: Final = Path("/proc/cpuinfo")


def table(outcomes: Sequence[Outcome], title: str) -> Table:
    """One row a neighbour; of one that failed, it holds the failure."""
    made = Table(title=title, title_justify="left")
    made.add_column("what", overflow="fold", min_width=34)
    for heading in HEADINGS:
        made.add_column(heading, justify="right", no_wrap=True)
    for outcome in outcomes:
        made.add_row(*_row(outcome))
    return made


def write_csv(outcomes: Sequence[Outcome], tokens: int, file: Path) -> None:
    """Write one line a run; a neighbour that failed has one line, with its error and no run."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as output:
        writer = csv.DictWriter(output, FIELDS, lineterminator="\n")
        writer.writeheader()
        for outcome in outcomes:
            writer.writerows(_lines(outcome, tokens))


def processor_name() -> str:
    """The processor's model name, or its architecture where the system doesn't tell."""
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _row(outcome: Outcome) -> list[str]:
    title = outcome.neighbour.title
    if outcome.error is not None or outcome.about is None:
        return [f"{title} failed: {outcome.error}"]
    about = outcome.about
    wall = outcome.ratios(SCORED, BARE, "wall_seconds")
    plain = BARE_SDPA if BARE_SDPA in about.runs else BARE
    return [
        title,
        about.version,
        f"{about.transformers}, {about.torch}",
        about.attention,
        str(about.packages),
        f"{statistics.median(pair[BARE].wall_seconds for pair in outcome.pairs):.2f}",
        f"{statistics.median(wall):.3f}",
        f"{min(wall):.3f} to {max(wall):.3f}",
        f"{statistics.median(outcome.ratios(SCORED, BARE, 'processor_seconds')):.3f}",
        f"{statistics.median(outcome.ratios(SCORED, plain, 'wall_seconds')):.3f}",
    ]


def _lines(outcome: Outcome, tokens: int) -> Iterator[dict[str, object]]:
    common: dict[str, object] = {
        "neighbour": outcome.neighbour.name,
        "python": platform.python_version(),
        "processor": processor_name(),
        "tokens": tokens,
        "pairs": len(outcome.pairs),
    }
    if outcome.about is not None:
        common |= outcome.about.model_dump(exclude={"runs"})
    if outcome.error is not None:
        yield common | {"pairs": 0, "error": outcome.error}
        return
    for number, pair in enumerate(outcome.pairs, start=1):
        for run, measured in pair.items():
            yield common | {"pair": number, "run": run} | measured.model_dump(exclude={"token_ids"})
