"""The commands from labelled questions to bundles and tables for simulations: `harvest`, `fit`, `score`, ..."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ilis_guard.cli.console import GUARD_YAML, Config, out, print_line, progress_bar, steps
from ilis_guard.errors import ConfigError, SimulationError
from ilis_guard.types import Site, Stage

if TYPE_CHECKING:  # with pyarrow, which not every command here needs
    from ilis_guard.config.guard_yaml import GuardConfig
    from ilis_guard.config.tiers import TierConfig
    from ilis_guard.lab.attempts import AttemptTable
    from ilis_guard.lab.harvest import HarvestedModel
    from ilis_guard.scoring.features import FeatureGroup

ACCEPT_HELP = "Write the bundle even if its score is no better than chance, or its figures are no evidence."
FIT_GROUP_BY = (
    "A column of the table whose equal values mean that rows depend on one another, beside equal questions; or the one "
    "that the questions were grouped by when they were harvested."
)

commands = typer.Typer()


@commands.command()
def harvest(  # noqa: PLR0917 - each is an option
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
        typer.Option(
            help="package.module:function of your own, of (question, text), that returns whether the answer is right."
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="The questions' key whose equal values mean that they depend on one another: a document's or a "
            "user's. Equal and nearly equal questions always do.",
        ),
    ] = None,
    wordings: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML with system messages and earlier turns: each question is asked in one of them, drawn by its id.",
        ),
    ] = None,
) -> None:
    """Run a tier over labelled questions; write correctness, statistics and, of a local tier, signatures.

    A run that was stopped or killed continues when the same command is given again.
    """
    from ilis_guard.cli.lab_tables import dependence_line, wording_lines
    from ilis_guard.config.guard_yaml import read_config
    from ilis_guard.lab.attempts import read_attempts
    from ilis_guard.lab.grading import load_judge
    from ilis_guard.lab.harvest import harvest as run
    from ilis_guard.lab.questions import read_questions
    from ilis_guard.lab.wordings import read_wordings

    chosen = read_config(config).tier(tier)
    labelled = read_questions(questions, group_by=group_by)
    named = () if wordings is None else read_wordings(wordings)
    judged_by, judging = load_judge(judge)
    name, model = load_harvested_model(chosen, site)
    with progress_bar(f"asking {tier}") as progress:
        run(
            model,
            labelled,
            to,
            name=name,
            batch_size=batch_size,
            judge=judging,
            judged_by=judged_by,
            group_by=group_by,
            wordings=named,
            progress=progress,
        )
    groups = set(read_attempts(to).table["group"].to_pylist())
    print_line(dependence_line(len(labelled), len(groups)))
    for line in wording_lines(labelled, named):
        print_line(line)
    print_line(f"{len(labelled)} rows in {to}")


def load_harvested_model(config: "TierConfig", site: Site | None) -> "tuple[str, HarvestedModel]":
    """The model's name in the manifest, and the model."""
    from ilis_guard.cascade.loading import load_local_model, load_remote_model

    if config.remote is None:
        with steps() as progress:
            return str(config.model), load_local_model(config, site=site or "mlp", progress=progress)
    if site is not None:
        raise ConfigError(f"the tier {config.name!r} is remote and has no layers to tap: leave --site out")
    from ilis_guard.cascade.caller import ModelCaller
    from ilis_guard.lab.harvest import ConcurrentRemoteModel

    remote = load_remote_model(config.remote)
    model = ConcurrentRemoteModel(remote, ModelCaller(config.name), max_concurrent=config.max_concurrent)
    return remote.fingerprint.model or config.remote.chat_model, model


@commands.command()
def observe(
    harvest: Annotated[Path, typer.Argument(help="A harvested Parquet file.")],
    questions: Annotated[Path, typer.Option(help="The questions that were harvested, JSONL.")],
    tier: Annotated[str, typer.Option(help="The tier of guard.yaml that was harvested.")],
    to: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    config: Config = GUARD_YAML,
) -> None:
    """Run harvested answers through their model once more, for the methods that a scorer is compared with.

    A run that was stopped or killed continues when the same command is given again.
    """
    from ilis_guard.cascade.loading import load_local_model
    from ilis_guard.config.guard_yaml import read_config
    from ilis_guard.lab.attempts import read_attempts
    from ilis_guard.lab.baselines.observe import observe as run
    from ilis_guard.lab.questions import read_questions

    chosen = read_config(config).tier(tier)
    manifest = read_attempts(harvest).harvest
    harvested = manifest.tapped()
    with steps() as progress:
        model = load_local_model(chosen, fitted=harvested, progress=progress)
    with progress_bar(f"tokens through {tier}") as progress:
        run(model, harvest, read_questions(questions, group_by=manifest.group_by), to, progress=progress)
    print_line(f"observations in {to}")


@commands.command()
def fit(
    harvests: Annotated[
        list[Path],
        typer.Argument(metavar="HARVEST...", help="Harvested Parquet files of one model; their prompts may differ."),
    ],
    to: Annotated[Path, typer.Option(help="The bundle's folder.")],
    *,
    stage: Annotated[Stage, typer.Option(help="What is scored: answers, or prompts before a token is generated.")] = (
        "answer"
    ),
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP",
            help="The trees' features, a group each time; without it validation rows select them. "
            "An unknown group's error lists all.",
        ),
    ] = None,
    group_by: Annotated[str | None, typer.Option(metavar="COLUMN", help=FIT_GROUP_BY)] = None,
    seed: Annotated[int, typer.Option(help="Of the splits and the trees.")] = 0,
    prior: Annotated[
        str | None,
        typer.Option(
            metavar="BUNDLE",
            help="Learn from few rows of your own traffic, 25 or more, beside what this bundle knows. It also takes an "
            "export with its signatures.",
        ),
    ] = None,
    tier: Annotated[
        str | None, typer.Option(help="With --prior and an export: only rows in which this tier's answer was judged.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="With --prior: the traffic profile of the rows; without one it is measured on them."),
    ] = None,
    kept: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.8,
            help="With --prior: the share of the rows that teaches nothing, and guarantees may rest on; 0.4 of 100 "
            "or more.",
        ),
    ] = None,
    accept: Annotated[bool, typer.Option("--accept", help=ACCEPT_HELP)] = False,
) -> None:
    """Fit a scorer to harvested rows, calibrate it, and write a bundle.

    A score that isn't shown to be better than chance is refused, with exit status 2, and no bundle is written.
    """
    from ilis_guard.cli.lab_tables import (
        candidates_table,
        dependence_line,
        finding_lines,
        held_out_table,
        listed_wordings_line,
    )
    from ilis_guard.lab.attempts import read_answers
    from ilis_guard.lab.fit import fit as run

    if prior is not None:
        if stage != "answer" or features or seed:
            raise ConfigError("--prior goes with neither --stage, --features nor --seed: they are those of its bundle")
        _fit_to_few(harvests, to, prior, profile, tier=tier, group_by=group_by, kept=kept, accept=accept)
        return
    if any(option is not None for option in (tier, profile, kept)):
        raise ConfigError("--tier, --profile and --kept go with --prior BUNDLE")
    # `fit` refuses names that aren't groups of features, and lists those that are.
    with progress_bar("training trees") as progress:
        metadata = run(
            read_answers(harvests, group_by=group_by, any_prompt=True),
            to,
            stage=stage,
            features=cast("list[FeatureGroup]", features or []),
            seed=seed,
            accept=accept,
            progress=progress,
        )
    out.print(candidates_table(metadata))
    out.print(held_out_table(metadata))
    print_line(dependence_line(sum(metadata.rows[name] for name in metadata.groups), sum(metadata.groups.values())))
    print_line(listed_wordings_line(metadata))
    for line in finding_lines(metadata.findings):
        print_line(line)
    print_line(f"bundle in {to}")


def _fit_to_few(
    rows: list[Path],
    to: Path,
    prior: str,
    profile: Path | None,
    *,
    tier: str | None,
    group_by: str | None,
    kept: float | None,
    accept: bool,
) -> None:
    from ilis_guard.cli.lab_tables import correction_table, finding_lines
    from ilis_guard.lab.calibration_rows import read_calibration_rows
    from ilis_guard.lab.recalibrate import correct
    from ilis_guard.scoring import read_bundle
    from ilis_guard.scoring.profile import read_profile

    if len(rows) > 1:
        raise ConfigError(f"with --prior one file of rows is fitted to, got {len(rows)}")
    known, traffic = read_bundle(prior), None if profile is None else read_profile(profile)
    labelled = read_calibration_rows(known, rows[0], tier=tier, group_by=group_by, profile=traffic)
    metadata = correct(known, labelled, to, kept=kept, accept=accept)
    assert metadata.recalibrated is not None, "a correction is recorded as a recalibration"
    out.print(correction_table(metadata.recalibrated))
    if labelled.fitted_to:
        out.print(f"{labelled.fitted_to} rows are left out: the bundle was fitted to them, or to ones they depend on")
    for line in finding_lines(metadata.findings):
        print_line(line)
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
    decisions: Annotated[
        Path | None, typer.Option(help="In place of harvests: decisions as `ask --json` prints them, JSONL.")
    ] = None,
    verdicts: Annotated[
        Path | None, typer.Option(help="What `queue export` wrote: which of the decisions were wrong. Or alone.")
    ] = None,
) -> None:
    """Make the table of attempts that `policy simulate` runs on, from harvests, or from a guard's decisions."""
    from ilis_guard.config.guard_yaml import read_config
    from ilis_guard.lab.attempts import write_attempts
    from ilis_guard.lab.score import score_decisions, score_verdicts

    guard = read_config(config)
    names = [one.name for one in guard.tiers]
    if harvests or tier:
        if decisions is not None or verdicts is not None:
            raise SimulationError("a table is made either from harvests or from decisions and verdicts; leave one out")
        attempts = _score_harvests(guard, harvests or [], tier or [])
    elif decisions is not None:
        attempts = score_decisions(names, decisions, verdicts)
    elif verdicts is not None:
        attempts = score_verdicts(names, verdicts)
    else:
        raise SimulationError("there is nothing to make a table from; give HARVEST --tier NAME, or --decisions FILE")
    write_attempts(to, attempts)
    print_line(f"{len(attempts)} rows in {to}")


def _score_harvests(config: "GuardConfig", harvests: list[Path], tiers: list[str]) -> "AttemptTable":
    from ilis_guard.lab.score import score as run

    if len(harvests) != len(tiers) or len(set(tiers)) < len(tiers):
        raise SimulationError(
            f"each harvest goes with a tier of its own: got {len(harvests)} files and the tiers {tiers!r}; write "
            "HARVEST --tier NAME for each"
        )
    with progress_bar("scoring") as progress:
        return run(config, dict(zip(tiers, harvests, strict=True)), progress=progress)


@commands.command()
def recalibrate(
    bundle: Annotated[str, typer.Argument(help="The bundle's folder, or packaged:NAME.")],
    rows: Annotated[Path, typer.Argument(help="What `queue export` wrote, or a harvested Parquet file.")],
    to: Annotated[Path, typer.Option(help="The new bundle's folder.")],
    tier: Annotated[
        str | None, typer.Option(help="Of an export: only rows in which this tier's answer was judged.")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="A key of the export's lines, or labels.NAME, whose equal values mean that rows depend on one "
            "another; of a table, a column. Equal and nearly equal questions always do.",
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="The traffic profile that the rows are of (`ilis-guard adapt`): the new bundle scores in its units."
        ),
    ] = None,
    accept: Annotated[bool, typer.Option("--accept", help=ACCEPT_HELP)] = False,
) -> None:
    """Calibrate a bundle on labelled rows of your own traffic; its trees stay as they are.

    A score that isn't shown to be better than chance on them is refused, with exit status 2: no bundle is written.
    """
    from ilis_guard.cli.lab_tables import dependence_line, finding_lines
    from ilis_guard.lab.calibration_rows import read_calibration_rows
    from ilis_guard.lab.recalibrate import recalibrate as run
    from ilis_guard.scoring import read_bundle
    from ilis_guard.scoring.profile import read_profile

    known = read_bundle(bundle)
    traffic = None if profile is None else read_profile(profile)
    labelled = read_calibration_rows(known, rows, tier=tier, group_by=group_by, profile=traffic)
    metadata = run(known, labelled, to, accept=accept)
    size = len(read_bundle(str(to)).calibration_set.wrong)
    out.print(f"calibrated on {len(labelled)} rows; {size} of them are a random sample, for thresholds")
    if labelled.fitted_to:
        out.print(f"{labelled.fitted_to} more are left out: the bundle was fitted to them, or to ones they depend on")
    if metadata.recalibrated is not None:
        print_line(dependence_line(metadata.recalibrated.rows, metadata.recalibrated.groups))
    for line in finding_lines(metadata.findings):
        print_line(line)
    print_line(f"bundle in {to}")
