"""``python -m benchmarks.laboratory``."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.laboratory.answers import Sets, answer, keep_questions
from benchmarks.laboratory.sets import CODE, GENERAL, family_of, question_sets
from benchmarks.laboratory.tables import show_sets, show_targets, write_summary
from benchmarks.laboratory.targets import targets
from ilis_guard.cli.console import configure_logs, out, step_bars
from ilis_guard.cli.lab_tables import evaluation_view
from ilis_guard.config.guard_yaml import read_config
from ilis_guard.config.tiers import TierConfig
from ilis_guard.errors import ConfigError, IlisGuardError
from ilis_guard.lab.evaluation.evaluate import Evaluation, Source, evaluate
from ilis_guard.lab.evaluation.page import page
from ilis_guard.lab.evaluation.tables import write_tables

BENCHMARKS: Final = Path(__file__).parents[1]
CONFIG: Final = BENCHMARKS / "bundles.yaml"
RESULTS: Final = BENCHMARKS / "results" / "laboratory"
FOLDER: Final = BENCHMARKS.parent / "build" / "laboratory"
WHOLE: Final = "evaluation"
"""In a tier's folder: all tables, and the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What is evaluated."""

    source: Source
    applied: Source | None


def answer_all(tier: TierConfig, sets: Sets, *, to: Path, applied_to: TierConfig | None = None) -> Answered:
    """Harvest and observe, and evaluate nothing.

    Args:
        tier: whose answers methods are fitted to.
        sets: what is asked.
        to: the folder for questions, harvests and observations.
        applied_to: the same model at another precision; it's asked the same.

    Raises:
        IlisGuardError: as the steps say.
        OSError: something can't be written.
    """
    if applied_to is not None:
        _check_pair(tier, applied_to)
    keep_questions(sets, to / "questions")
    source = answer(tier, sets, to / tier.name)
    applied = None if applied_to is None else answer(applied_to, sets, to / applied_to.name, beside=source)
    return Answered(source=source, applied=applied)


def run(
    tier: TierConfig,
    sets: Sets,
    *,
    to: Path,
    results: Path,
    applied_to: TierConfig | None = None,
    seeds: int = 5,
) -> Evaluation:
    """All of it.

    Args:
        tier: whose answers methods are fitted to.
        sets: what is asked.
        to: the folder for questions, harvests, observations, and the whole evaluation with its page.
        results: the folder for what is committed.
        applied_to: the same model at another precision; it's asked the same.
        seeds: how often rows are dealt out anew.

    Raises:
        IlisGuardError: as the steps say.
        OSError: something can't be written.
    """
    answered = answer_all(tier, sets, to=to, applied_to=applied_to)
    with step_bars() as progress:
        evaluation = evaluate(
            answered.source,
            applied=answered.applied,
            questions=[asked for questions in sets.values() for asked in questions],
            show_texts=True,
            seeds=seeds,
            progress=progress,
        )
    whole = to / tier.name / WHOLE
    whole.mkdir(exist_ok=True)
    write_tables(evaluation, whole)
    (whole / "report.html").write_text(page(evaluation, command=_command(tier, applied_to)), encoding="utf-8")
    write_summary(evaluation, targets(evaluation), results)
    return evaluation


def _check_pair(tier: TierConfig, other: TierConfig) -> None:
    """See that it's worth asking both: whether they are one model is known only hours later."""
    is_pair = tier.model_copy(update={"name": other.name, "precision": other.precision}) == other
    if not is_pair or tier.precision == other.precision:
        raise ConfigError(
            f"{tier.name!r} and {other.name!r} aren't one model at two precisions: they must differ in `precision` and "
            "in nothing else"
        )


def _command(tier: TierConfig, applied_to: TierConfig | None) -> str:
    """Without folders: where they lie is nobody's business who reads the page."""
    also = [] if applied_to is None else ["--applied-to", applied_to.name]
    return shlex.join(["python", "-m", "benchmarks.laboratory", "--tier", tier.name, *also])


def main(
    tier: Annotated[str, typer.Option(help="Of --config: methods are fitted to its answers.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help=f"A folder with question files of others: {', '.join(GENERAL.files)}; for a model for code "
            f"{' and '.join(CODE.files)}."
        ),
    ] = None,
    applied_to: Annotated[
        str | None, typer.Option(help="The tier of the same model at another precision, for precision transfer.")
    ] = None,
    to: Annotated[Path, typer.Option(help="The folder to work in; what is there isn't made again.")] = FOLDER,
    config: Annotated[Path, typer.Option(help="The file that has the tiers.")] = CONFIG,
    answers_only: Annotated[
        bool, typer.Option(help="Harvest and observe, and stop: what is evaluated can be chosen first.")
    ] = False,
) -> None:
    """Ask, observe, evaluate, and write benchmarks/results/laboratory/TIER."""
    configure_logs()
    try:
        tiers = read_config(config)
        chosen, other = tiers.tier(tier), None if applied_to is None else tiers.tier(applied_to)
        family = family_of(tier)
        sets = question_sets(family, data)
        if data is None:
            out.print(f"without --data, these sets are missing: {', '.join(family.from_folder)}", style="yellow")
        if answers_only:
            answer_all(chosen, sets, to=to, applied_to=other)
            out.print(f"harvests and observations in {to}", highlight=False, soft_wrap=True)
            return
        evaluation = run(chosen, sets, to=to, results=RESULTS / tier, applied_to=other)
    except IlisGuardError as error:
        raise SystemExit(str(error)) from error
    out.print(evaluation_view(evaluation))
    show_sets(evaluation)
    show_targets(targets(evaluation))
    whole = to / tier / WHOLE
    out.print(f"tables in {RESULTS / tier}; all of them and the page in {whole}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
