"""The commands on traffic that nobody has labelled yet: `adapt` and `choose-rows`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ilis_guard.cli.console import GUARD_YAML, Config, out, print_line, progress_bar, steps
from ilis_guard.cli.lab import load_harvested_model
from ilis_guard.errors import ConfigError
from ilis_guard.types import Fingerprint

if TYPE_CHECKING:  # with pyarrow, which not every command here needs
    from ilis_guard.lab.adapt import Traffic
    from ilis_guard.lab.harvest import HarvestedModel
    from ilis_guard.scoring import Bundle

Source = Annotated[
    Path | None,
    typer.Option(
        "--from", help="Answers that there are: decisions (JSON lines of `ask --json`), or a harvest (.parquet)."
    ),
]
AskedTier = Annotated[str | None, typer.Option("--tier", help="A tier of guard.yaml that answers --questions now.")]
Requests = Annotated[
    Path | None,
    typer.Option("--questions", help="Requests, JSON lines with `messages` or `question`; no labels are needed."),
]

commands = typer.Typer()


@commands.command()
def adapt(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or packaged:NAME.")],
    to: Annotated[Path, typer.Option(help="The profile to write, a JSON file.")],
    source: Source = None,
    tier: AskedTier = None,
    questions: Requests = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="The requests' label that names their kinds (of a harvest: dataset). Without it their prompts tell.",
        ),
    ] = None,
    config: Config = GUARD_YAML,
) -> None:
    """Measure a traffic profile: a bundle then scores answers in units of your own traffic. Nothing is labelled.

    It needs 20 answers. Such a score ranks, and isn't calibrated.
    """
    from ilis_guard.cli.lab_tables import profile_table
    from ilis_guard.lab.adapt import adapt as run, write_profile
    from ilis_guard.scoring import read_bundle

    scoring = read_bundle(bundle)
    traffic, _ = _read_traffic(scoring, source, tier, questions, config)
    profile = run(scoring, traffic, by=by)
    write_profile(profile, to)
    out.print(profile_table(profile))
    known = profile.uncertainties
    print_line(f"{len(known)} answers; the surest 60 % have an uncertainty below {known[int(0.6 * len(known))]:.3f}")
    print_line(f"profile in {to}")


@commands.command()
def choose_rows(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or packaged:NAME.")],
    count: Annotated[int, typer.Option(min=1, help="How many rows to choose.")],
    to: Annotated[Path, typer.Option(help="The file to write, JSON lines.")],
    source: Source = None,
    tier: AskedTier = None,
    questions: Requests = None,
    config: Config = GUARD_YAML,
) -> None:
    """Choose which rows to label next: a random sample of the answers that the bundle can score.

    The chosen lines are written as they are, each with its `probability`. Ask for more of the same traffic later, and
    the earlier ones come first.
    """
    from ilis_guard.lab.choose_rows import choose_rows as run, write_chosen
    from ilis_guard.scoring import read_bundle

    scoring = read_bundle(bundle)
    traffic, read_from = _read_traffic(scoring, source, tier, questions, config)
    chosen = run(scoring, traffic, count)
    write_chosen(chosen, read_from, to)
    print_line(f"{count} of {chosen.scored} scored answers, each with probability {chosen.probability:.3f}")
    print_line(f"rows to label in {to}")


def _read_traffic(
    bundle: "Bundle", source: Path | None, tier: str | None, questions: Path | None, config: Path
) -> "tuple[Traffic, Path]":
    """The traffic, and the file that its lines are in."""
    from ilis_guard.lab.adapt import harvested_traffic, logged_traffic

    if source is not None and tier is None and questions is None:
        read = harvested_traffic if source.suffix == ".parquet" else logged_traffic
        return read(bundle, source), source
    if source is None and tier is not None and questions is not None:
        return _asked_traffic(bundle, tier, questions, config), questions
    raise ConfigError("give either --from FILE, or --tier NAME with --questions FILE")


def _asked_traffic(bundle: "Bundle", tier: str, questions: Path, config: Path) -> "Traffic":
    from ilis_guard.cascade.loading import load_local_model
    from ilis_guard.config.guard_yaml import read_config
    from ilis_guard.lab.adapt import asked_traffic, read_requests

    requests = read_requests(questions)
    chosen, fitted = read_config(config).tier(tier), bundle.metadata.fingerprint
    model: HarvestedModel
    if chosen.remote is None and isinstance(fitted, Fingerprint):
        with steps() as loading:
            model = load_local_model(chosen, fitted=fitted, progress=loading)
    else:
        _, model = load_harvested_model(chosen, None)
    with progress_bar(f"asking {tier}") as progress:
        return asked_traffic(bundle, model, requests, progress=progress)
