"""Measure the time of a harvest against plain batched generation of the same answers.

    python -m benchmarks.harvest_throughput [--rounds 5] [--questions 96] [--batch-size 32] [--threads 1]

"Harvested" is `ilis-guard harvest` after the model is loaded: it generates with taps, grades, and writes each batch to
disk before the next. "Plain" is transformers' own `generate` on the same batches: padded on the left, greedy, with the
same token limit, and without output. Each round runs both, in alternating order, so that a drift of the machine favours
neither. Each round gives a ratio; medians have 95 % bootstrap intervals. Plain generation computes every row until its
whole batch is done and a harvest doesn't, which may compensate for the taps.

Every round is written to `benchmarks/results/harvest_throughput.csv`.
"""

import csv
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import torch
import transformers
import typer
from rich.progress import track

from benchmarks.common import machine, show
from benchmarks.laboratory.sets import GENERAL, question_sets
from benchmarks.overhead.pairs import Spent, median_ratio, timed
from ilis_guard.cascade.loading import load_local_model
from ilis_guard.config.guard_yaml import read_config
from ilis_guard.lab.attempts import read_attempts
from ilis_guard.lab.harvest import harvest
from ilis_guard.lab.questions import Question
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Generation, Message

CONFIG: Final = Path(__file__).parent / "bundles.yaml"
RESULTS: Final = Path(__file__).parent / "results" / "harvest_throughput.csv"
TIERS: Final = ("smollm2-135m-instruct-full", "smollm2-135m-instruct-nf4")
ASKED: Final = ("addition", "who-lives-where")
"""Sets of the laboratory, one of short prompts and one of longer ones."""

Batch = Sequence[Sequence[Message]]


class Watched:
    """A model that remembers in which batches it was asked."""

    def __init__(self, model: LocalModel) -> None:
        self.fingerprint = model.fingerprint
        self.prompt = model.prompt
        self.max_new_tokens = model.max_new_tokens
        self.batches: list[Batch] = []
        self._model = model

    def generate_batch(self, conversations: Batch) -> list[Generation]:
        """As the model does."""
        self.batches.append(conversations)
        return self._model.generate_batch(conversations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The rounds of one tier on one set."""

    tier: str
    set_: str
    batch_size: int
    rows: Sequence[Generation]
    alike: int
    """Rows whose answer is the same in both ways, letter by letter."""
    harvested: Sequence[Spent]
    plain: Sequence[Spent]
    """As many, round by round."""

    @property
    def prompt_tokens(self) -> float:
        """Of a prompt, on average."""
        return statistics.mean(row.prompt_tokens or 0 for row in self.rows)

    @property
    def tokens(self) -> float:
        """Of an answer, on average."""
        return statistics.mean(row.tokens or 0 for row in self.rows)

    def a_second(self, runs: Sequence[Spent]) -> float:
        """Questions, by the median run's wall clock."""
        return len(self.rows) / statistics.median(spent.wall for spent in runs)


def measure(
    model: LocalModel, questions: Sequence[Question], *, tier: str, set_: str, batch_size: int, rounds: int
) -> Measured:
    """Harvest and generate the same in turn; a first round warms up, shows the batches, and isn't counted."""
    with tempfile.TemporaryDirectory() as folder:
        path, watched = Path(folder) / "rows.parquet", Watched(model)
        harvest(watched, questions, path, name=tier, batch_size=batch_size)
        rows = [answer for _, answer in read_attempts(path).generations()]
        said = [text for batch in watched.batches for text in model.generate_bare_batch(batch)]
        asked = [turns[-1].content for batch in watched.batches for turns in batch]
        by_prompt = dict(zip(asked, said, strict=True))
        runs = (
            lambda: harvest(model, questions, path, name=tier, batch_size=batch_size),
            lambda: [model.generate_bare_batch(batch) for batch in watched.batches],
        )
        spent: tuple[list[Spent], list[Spent]] = ([], [])
        for number in track(range(rounds), f"{tier}: {set_}"):
            for which in (0, 1) if number % 2 else (1, 0):
                spent[which].append(timed(runs[which]))
    return Measured(
        tier=tier,
        set_=set_,
        batch_size=batch_size,
        rows=rows,
        alike=sum(by_prompt[one.prompt()] == row.text for one, row in zip(questions, rows, strict=True)),
        harvested=spent[0],
        plain=spent[1],
    )


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    questions: Annotated[int, typer.Option(min=1, help="Of each set.")] = 96,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions a forward pass.")] = 32,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    to: Annotated[Path, typer.Option(help="The CSV file to write.")] = RESULTS,
) -> None:
    """Measure, print a table, and write the CSV."""
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers types it partly
    measured = list(_all(rounds=rounds, questions=questions, batch_size=batch_size))
    _print(measured, threads)
    _write(to, measured, threads)


def _all(*, rounds: int, questions: int, batch_size: int) -> Iterator[Measured]:
    config, sets = read_config(CONFIG), question_sets(GENERAL, None)
    for tier in TIERS:
        model = load_local_model(config.tier(tier))
        for name in ASKED:
            yield measure(model, sets[name][:questions], tier=tier, set_=name, batch_size=batch_size, rounds=rounds)


def _print(measured: Sequence[Measured], threads: int) -> None:
    rows = []
    for each in measured:
        ratios = (median_ratio(each.harvested, each.plain, clock) for clock in ("wall", "processor"))
        rows.append(
            [
                f"{each.tier}: {each.set_}",
                f"{each.prompt_tokens:.0f} + {each.tokens:.1f}",
                f"{each.a_second(each.harvested):.2f}",
                f"{each.a_second(each.plain):.2f}",
                *("{:.3f} ({:.3f} to {:.3f})".format(*ratio) for ratio in ratios),
                f"{each.alike} of {len(each.rows)}",
            ]
        )
    headings = ("what", "tokens", "harvested a s", "plain a s", "time, wall", "time, processor", "same answers")
    title = f"harvested / plain, {len(measured[0].harvested)} rounds, batches of {measured[0].batch_size}"
    show(f"{title}, {machine()}, {threads} thread", headings, rows)


COLUMNS: Final = (
    *(
        "machine",
        "torch",
        "transformers",
        "threads",
        "tier",
        "set",
        "questions",
        "batch_size",
        "prompt_tokens",
        "tokens",
    ),
    *("alike", "round", "harvested_wall", "plain_wall", "harvested_processor", "plain_processor"),
)


def _write(path: Path, measured: Sequence[Measured], threads: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for each in measured:
            known = [machine(), torch.__version__, transformers.__version__, threads, each.tier, each.set_]
            known += [len(each.rows), each.batch_size, f"{each.prompt_tokens:.1f}", f"{each.tokens:.1f}", each.alike]
            for number, (ours, plain) in enumerate(zip(each.harvested, each.plain, strict=True)):
                seconds = (ours.wall, plain.wall, ours.processor, plain.processor)
                table.writerow([*known, number, *(f"{value:.4f}" for value in seconds)])


if __name__ == "__main__":
    typer.run(main)
