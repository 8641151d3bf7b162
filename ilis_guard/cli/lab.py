"""From questions to bundles, and to tables for simulations: `harvest`, `fit`, `evaluate`, `score` and more."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ilis_guard.cli.console import GUARD_YAML, Config, out, print_line, progress_bar, step_bars, steps
from ilis_guard.errors import ConfigError, SimulationError
from ilis_guard.types import Site, Stage

if TYPE_CHECKING:  # with pyarrow, which not every command here needs
    from ilis_guard.config.guard_yaml import GuardConfig
    from ilis_guard.config.tiers import TierConfig
    from ilis_guard.lab.answering import HarvestedModel
    from ilis_guard.lab.scored import ScoredManifest
    from ilis_guard.scoring.features import FeatureGroup

commands = typer.Typer()


@commands.command()
def harvest(
    questions: Annotated[Path, typer.Argument(help="Labelled questions, JSONL.")],
    tier: Annotated[str, typer.Option(help="A tier of guard.yaml.")],
    to: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    config: Config = GUARD_YAML,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Questions a forward pass; of a remote tier, at once, as far as it allows.")
    ] = 32,
    site: Annotated[
        Site | None,
        typer.Option(help="What is tapped of a local tier's layers: the MLP's output (the default), or their own."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="package.module:function of your own, told (question, text): whether the answer is right."),
    ] = None,
) -> None:
    """Run a tier over labelled questions; write correctness, statistics and, of a local tier, signatures.

    A run that was stopped or killed goes on where it was when the same command is given again.
    """
    from ilis_guard.config.guard_yaml import read_config
    from ilis_guard.lab.harvest import harvest as run
    from ilis_guard.lab.judging import load_judge
    from ilis_guard.lab.questions import read_questions

    chosen = read_config(config).tier(tier)
    asked = read_questions(questions)
    judged_by, judging = load_judge(judge)
    name, model = _harvested_model(chosen, site)
    with progress_bar(f"asking {tier}") as progress:
        run(
            model,
            asked,
            to,
            name=name,
            batch_size=batch_size,
            judge=judging,
            judged_by=judged_by,
            progress=progress,
        )
    print_line(f"{len(asked)} rows in {to}")


def _harvested_model(config: "TierConfig", site: Site | None) -> "tuple[str, HarvestedModel]":
    """What the manifest calls it, and the model."""
    from ilis_guard.cascade.tier import load_local_model, load_remote_model

    if config.remote is None:
        with steps() as progress:
            return str(config.model), load_local_model(config, site=site or "mlp", progress=progress)
    if site is not None:
        raise ConfigError(f"the tier {config.name!r} is remote and has no layers to tap: leave --site out")
    from ilis_guard.cascade.caller import ModelCaller
    from ilis_guard.lab.side_by_side import SideBySide

    remote = load_remote_model(config.remote)
    model = SideBySide(remote, ModelCaller(config.name), max_concurrent=config.max_concurrent)
    return remote.fingerprint.model or config.remote.chat_model, model


@commands.command()
def observe(
    harvest: Annotated[Path, typer.Argument(help="A harvested Parquet file.")],
    questions: Annotated[Path, typer.Option(help="The questions that were harvested, JSONL.")],
    tier: Annotated[str, typer.Option(help="The tier of guard.yaml that was harvested.")],
    to: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    config: Config = GUARD_YAML,
) -> None:
    """Put harvested answers through their model once more, for the methods that a scorer is compared with.

    Run again after it was cut off, it goes on where it stopped.
    """
    from ilis_guard.cascade.tier import load_local_model
    from ilis_guard.config.guard_yaml import read_config
    from ilis_guard.lab.baselines.observing import observe as run
    from ilis_guard.lab.harvest import read_manifest
    from ilis_guard.lab.questions import read_questions

    chosen = read_config(config).tier(tier)
    asked = read_questions(questions)
    harvested = read_manifest(harvest).tapped()
    with steps() as progress:
        model = load_local_model(
            chosen,
            temperature=harvested.temperature,
            dtype=harvested.dtype,
            site=harvested.site,
            progress=progress,
        )
    with progress_bar(f"tokens through {tier}") as progress:
        run(model, harvest, asked, to, progress=progress)
    print_line(f"observations in {to}")


@commands.command()
def fit(
    rows: Annotated[Path, typer.Argument(help="A harvested Parquet file.")],
    to: Annotated[Path, typer.Option(help="The bundle's folder.")],
    stage: Annotated[Stage, typer.Option(help="What is scored: answers, or prompts before a token is generated.")] = (
        "answer"
    ),
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP",
            help="A group of features for the trees, a group each time; without it validation rows choose. "
            "An unknown group's error lists all.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the splits and the trees.")] = 0,
) -> None:
    """Fit a scorer to harvested rows, calibrate it, and write a bundle."""
    from ilis_guard.cli.lab_tables import candidates_table, held_out_table
    from ilis_guard.lab.fit import fit as run
    from ilis_guard.lab.harvest import read_harvest

    # Names that aren't groups of features are refused there, with those that are.
    with progress_bar("growing trees") as progress:
        metadata = run(
            read_harvest(rows),
            to,
            stage=stage,
            features=cast("list[FeatureGroup]", features or []),
            seed=seed,
            progress=progress,
        )
    out.print(candidates_table(metadata))
    out.print(held_out_table(metadata))
    print_line(f"bundle in {to}")


@commands.command()
def score(
    to: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    harvests: Annotated[
        list[Path] | None, typer.Argument(metavar="[HARVEST]...", help="Harvested Parquet files, one a tier.")
    ] = None,
    tier: Annotated[
        list[str] | None, typer.Option(help="The tier of guard.yaml that was harvested; one for each file, in order.")
    ] = None,
    config: Config = GUARD_YAML,
    questions: Annotated[
        Path | None, typer.Option(help="What was asked, for policies that look at prompt_length.")
    ] = None,
    decisions: Annotated[
        Path | None, typer.Option(help="In place of harvests: decisions as `ask --json` prints them, JSONL.")
    ] = None,
    verdicts: Annotated[
        Path | None, typer.Option(help="What `queue export` wrote: which of the decisions were wrong. Or alone.")
    ] = None,
) -> None:
    """Make the table that `policy simulate` runs on, from harvests, or from what a guard decided."""
    from ilis_guard.config.guard_yaml import read_config
    from ilis_guard.lab.logged import score_decisions, score_verdicts
    from ilis_guard.lab.scored import write_scored

    guard = read_config(config)
    names = [one.name for one in guard.tiers]
    if harvests or tier:
        if decisions is not None or verdicts is not None:
            raise SimulationError("a table is made either from harvests or from decisions and verdicts; leave one out")
        manifest, rows = _harvested(guard, harvests or [], tier or [], questions)
    elif decisions is not None:
        manifest, rows = score_decisions(names, decisions, verdicts)
    elif verdicts is not None:
        manifest, rows = score_verdicts(names, verdicts)
    else:
        raise SimulationError("there is nothing to make a table from; give HARVEST --tier NAME, or --decisions FILE")
    write_scored(to, manifest, rows)
    print_line(f"{len(rows)} rows in {to}")


def _harvested(
    config: "GuardConfig", harvests: list[Path], tiers: list[str], questions: Path | None
) -> "tuple[ScoredManifest, list[dict[str, Any]]]":
    from ilis_guard.lab.questions import read_questions
    from ilis_guard.lab.score import score as run

    if len(harvests) != len(tiers) or len(set(tiers)) < len(tiers):
        raise SimulationError(
            f"each harvest goes with a tier of its own: got {len(harvests)} files and the tiers {tiers!r}; write "
            "HARVEST --tier NAME for each"
        )
    with progress_bar("scoring") as progress:
        return run(
            config,
            dict(zip(tiers, harvests, strict=True)),
            questions=() if questions is None else read_questions(questions),
            progress=progress,
        )


@commands.command()
def recalibrate(
    bundle: Annotated[str, typer.Argument(help="The bundle's folder, or packaged:NAME.")],
    rows: Annotated[Path, typer.Argument(help="What `queue export` wrote, or a harvested Parquet file.")],
    to: Annotated[Path, typer.Option(help="The new bundle's folder.")],
    tier: Annotated[
        str | None, typer.Option(help="Of an export: only rows in which this tier's answer was judged.")
    ] = (None),
) -> None:
    """Calibrate a bundle anew on labelled rows of your own traffic; its trees stay as they are."""
    from ilis_guard.lab.recalibrate import read_labelled
    from ilis_guard.lab.recalibrate import recalibrate as run
    from ilis_guard.scoring import read_bundle

    known = read_bundle(bundle)
    labelled = read_labelled(known, rows, tier=tier)
    run(known, labelled, to)
    size = len(read_bundle(str(to)).calibration_set.wrong)
    out.print(f"calibrated on {len(labelled.wrong)} rows; {size} of them are a random sample, for thresholds")
    print_line(f"bundle in {to}")


@commands.command()
def evaluate(
    harvests: Annotated[list[Path], typer.Argument(metavar="HARVEST...", help="Harvested Parquet files of one model.")],
    to: Annotated[Path, typer.Option(help="The folder to write tables and report.html into.")],
    observations: Annotated[
        list[Path] | None, typer.Option(help="What `observe` wrote, a file for each harvest of which a set counts.")
    ] = None,
    applied_to: Annotated[
        list[Path] | None, typer.Option(help="Harvests of the same questions at another precision.")
    ] = None,
    applied_observations: Annotated[list[Path] | None, typer.Option(help="As --observations, of --applied-to.")] = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option(help="What was asked, JSONL: finds sets on which a constant answer does as well."),
    ] = None,
    show_texts: Annotated[bool, typer.Option(help="Put questions and answers of the worst cases in.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="How often rows are dealt out anew.")] = 5,
) -> None:
    """Compare all methods on harvested answers, in-distribution and on sets never seen; write tables and a report."""
    from ilis_guard.cli.lab_tables import evaluation_view
    from ilis_guard.lab.evaluation.evaluate import Source
    from ilis_guard.lab.evaluation.evaluate import evaluate as run
    from ilis_guard.lab.evaluation.page import page
    from ilis_guard.lab.evaluation.tables import write_tables
    from ilis_guard.lab.questions import read_questions

    to.mkdir(parents=True, exist_ok=True)
    with step_bars() as progress:
        evaluation = run(
            Source(harvests=harvests, observations=observations or ()),
            applied=Source(harvests=applied_to, observations=applied_observations or ()) if applied_to else None,
            questions=[asked for path in questions for asked in read_questions(path)] if questions else None,
            show_texts=show_texts,
            seeds=seeds,
            progress=progress,
        )
    # Where its files lie is nobody's business who reads the report.
    words = (Path(word).name if "/" in word else word for word in sys.argv[1:])
    report = page(evaluation, command=shlex.join(["ilis-guard", *words]))
    write_tables(evaluation, to)
    (to / "report.html").write_text(report, encoding="utf-8")
    out.print(evaluation_view(evaluation))
    print_line(f"tables and report in {to}")


@commands.command("world-facts")
def world_facts(
    to: Annotated[Path, typer.Option(help="The JSONL file to write.")],
    seed: Annotated[int, typer.Option(help="Which questions are drawn.")] = 0,
) -> None:
    """Generate a few thousand labelled questions about the world and small numbers."""
    from ilis_guard.lab.questions import write_questions
    from ilis_guard.lab.world_facts import world_facts as generate

    questions = generate(seed)
    write_questions(to, questions)
    print_line(f"{len(questions)} questions in {to}")
