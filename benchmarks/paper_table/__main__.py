"""``python -m benchmarks.paper_table``."""

import gc
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
import transformers
import typer

from benchmarks.laboratory.answers import SITE, Sets, TierAnswers, keep_questions
from benchmarks.paper_table.bar import WholeBar
from benchmarks.paper_table.differences import cell_differences, matrix_cells, mean_differences
from benchmarks.paper_table.matrix import Matrix
from benchmarks.paper_table.models import check_memory, model_name, tiers_of
from benchmarks.paper_table.page import page
from benchmarks.paper_table.published import overview
from benchmarks.paper_table.sets import judge_sets, read_sets, split_parts
from benchmarks.paper_table.tables import PaperTable, show_table, write_overview, write_table_files
from ilis_guard.cascade.loading import load_local_model
from ilis_guard.cli.console import configure_logs, out
from ilis_guard.config.tiers import TierConfig
from ilis_guard.errors import IlisGuardError
from ilis_guard.lab.attempts import Answers, read_answers, read_attempts
from ilis_guard.lab.evaluation.evaluate import Source
from ilis_guard.lab.evaluation.sets import QuestionSet, counted_sets
from ilis_guard.models.local import LocalModel

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "benchmarks" / "results" / "paper_table"
FOLDER: Final = ROOT / "build" / "paper_table"
PAGE: Final = "page.html"
SEEDS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answered:
    """One precision's answers."""

    source: Source
    rows: Answers
    """Of the sets that count, without observations."""
    sets: tuple[QuestionSet, ...]


def run(
    tiers: tuple[TierConfig, TierConfig],
    sets: Sets,
    *,
    to: Path,
    results: Path,
    command: str,
    seeds: int = SEEDS,
    batch_size: int = 32,
) -> PaperTable:
    """All of it.

    Args:
        tiers: the model at full precision, and at 4 bits.
        sets: what is asked.
        to: the model's folder for questions, answers, observations and trials.
        results: the folder for what is committed, with a folder for each model.
        command: the command line that is shown on the page.
        seeds: how often rows are split and methods fitted again.
        batch_size: questions asked together.

    Raises:
        IlisGuardError: as the steps say; no set counts.
        OSError: something can't be written.
    """
    full_tier, other_tier = tiers
    asked = sum(map(len, sets.values()))
    with WholeBar(5 * asked) as bar:
        keep_questions(sets, to / "questions")

        def answered(tier: TierConfig, some: Sets, judge: Callable[[Answers], tuple[QuestionSet, ...]]) -> _Answered:
            answers = TierAnswers(
                tier, some, to / tier.precision, load=_loader(bar), bar=bar.part, batch_size=batch_size
            )
            harvests = answers.harvest()
            rows = read_answers(harvests)
            judged = judge(rows)
            names = [one.name for one in judged if one.counts]
            observations = answers.observe(names)
            return _Answered(
                source=Source(harvests=harvests, observations=observations),
                rows=rows.take(np.isin(rows.datasets, names)),
                sets=judged,
            )

        questions = [one for of_set in sets.values() for one in of_set]

        def judge_full(rows: Answers) -> tuple[QuestionSet, ...]:
            judged = judge_sets(rows, questions, seeds)
            counted_sets(judged)  # says why, where none does
            return judged

        full = answered(full_tier, sets, judge_full)
        bar.reach(2 * asked)
        _free_device()
        parts = split_parts(full.rows, seeds)
        counting = {one.name: sets[one.name] for one in full.sets if one.counts}
        other = answered(other_tier, counting, lambda rows: judge_sets(rows, questions, seeds, parts))
        bar.reach(4 * asked)
        matrix = Matrix(
            full.source,
            full.rows,
            other.source,
            other.rows if len(other.rows) else None,
            seeds=seeds,
            folder=to / "trials",
        )
        with bar.part("fitting", asked) as progress:
            trials = matrix.trials(progress)
        bar.say("resampling")
        cells = matrix_cells(trials)
        differences = cell_differences(cells)
    table = PaperTable(
        model=model_name(str(full_tier.model)),
        seeds=seeds,
        manifests=tuple(read_attempts(path).harvest for of in (full, other) for path in of.source.harvests),
        sets=full.sets,
        other_sets=other.sets,
        cells=tuple(cells),
        differences=tuple(differences),
        means=tuple(mean_differences(differences)),
    )
    folder = results / table.model
    write_table_files(table, folder)
    rows = overview(results)
    write_overview(rows, results)
    (folder / PAGE).write_text(page(table, rows, command=command), encoding="utf-8")
    show_table(table)
    return table


def _loader(bar: WholeBar) -> Callable[[TierConfig], LocalModel]:
    def load(tier: TierConfig) -> LocalModel:
        bar.say(f"loading {tier.name}")
        check_memory(tier)
        return load_local_model(
            tier, site=SITE, progress=lambda step, _done, _total: bar.say(f"preparing weights (once): {step}")
        )

    return load


def _free_device() -> None:
    """Give the memory of a model that nothing refers to any more back, before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _command(model: str, options: Sequence[tuple[str, str | None]]) -> str:
    """Without folders: where they lie is nobody's business who reads the page."""
    given = [part for name, value in options if value is not None for part in (name, value)]
    return shlex.join(["python", "-m", "benchmarks.paper_table", "--model", model, "--data", "FOLDER", *given])


def main(
    *,
    model: Annotated[str, typer.Option(help="A folder, a hub id, or packaged:NAME.")],
    data: Annotated[Path, typer.Option(help="A folder of question files (JSONL), one a set.")],
    prompt: Annotated[
        str | None, typer.Option(help="The wording around {question}; without it, that of this repository's bundles.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 16,
    questions: Annotated[int, typer.Option(min=1, help="Of each set, at most; a sample of more.")] = 850,
    batch: Annotated[int, typer.Option(min=1, help="Questions asked together; fewer take less memory.")] = 32,
    device_map: Annotated[str | None, typer.Option(help="transformers' own, such as auto for several GPUs.")] = None,
    to: Annotated[Path, typer.Option(help="The folder to work in; what is there isn't made again.")] = FOLDER,
    results: Annotated[Path, typer.Option(help="The folder for tables and the page.")] = RESULTS,
) -> None:
    """Ask a model at two precisions, fit scorers and probes to each set, test them on all, and write the table."""
    configure_logs()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers types it partly
    try:
        sets = read_sets(data, questions)
        tiers = tiers_of(model, prompt=prompt, max_new_tokens=max_new_tokens, device_map=device_map)
        shown = _command(
            model if not Path(model).is_dir() else model_name(model),
            [("--prompt", prompt), ("--max-new-tokens", str(max_new_tokens)), ("--questions", str(questions))],
        )
        run(tiers, sets, to=to / model_name(model), results=results, command=shown, batch_size=batch)
    except IlisGuardError as error:
        raise SystemExit(str(error)) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise SystemExit(
            f"the memory isn't enough to ask {model!r} {batch} questions at once: {error}. Run the same command with a "
            "smaller --batch, or with --device-map auto on several devices: it goes on where it was"
        ) from error
    out.print(f"tables and {PAGE} in {results / model_name(model)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
