"""The command line. Thin: every command calls one function of the rooms above and shows what came back."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ilis_guard.errors import IlisGuardError
from ilis_guard.types import Decision, Ticket, Verdict

app = typer.Typer(
    name="ilis-guard",
    help="Decides what to do with an LLM's answer: answer, abstain, retry on a larger model, or escalate to a person.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
policy_app = typer.Typer(help="Check policies.", no_args_is_help=True)
queue_app = typer.Typer(help="The human queue: list, show and resolve tickets.", no_args_is_help=True)
app.add_typer(policy_app, name="policy")
app.add_typer(queue_app, name="queue")

out = Console()
err = Console(stderr=True)

Config = Annotated[Path, typer.Option("--config", "-c", help="The operator's file.")]
GUARD_YAML = Path("guard.yaml")
EXIT_BAD_INPUT = 2


def main() -> None:
    """Run a command; an error of ours is one message and exit status 2, never a traceback."""
    _log_to_stderr()
    try:
        app()
    except IlisGuardError as error:
        err.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(EXIT_BAD_INPUT)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where guard.yaml and the tickets go.")] = Path("ilis-guard-demo"),
) -> None:
    """Ask ten questions, easy to impossible, through a 4-bit model and a larger one, and show what is decided."""
    from ilis_guard.lab import demo as room

    config = room.prepare(folder)
    terms = room.terms(config)
    for notice in terms:
        err.print(f"[yellow]{escape(notice)}[/yellow]", highlight=False, soft_wrap=True)
    with _steps() as progress:
        guard = room.load(config, progress)
    with guard:
        table = room.table()
        for asked, decision in room.decisions(guard, _track):
            room.add_row(table, asked, decision)
    out.print(table)
    out.print(room.closing(config), highlight=False, soft_wrap=True)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question; - reads it from standard input.")],
    config: Config = GUARD_YAML,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, seen by the policy as labels.NAME.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole decision as JSON.")] = False,
) -> None:
    """Ask one question and show the decision."""
    from ilis_guard.guard import Guard

    prompt = sys.stdin.read() if question == "-" else question
    labels = dict(_label(text) for text in label or [])
    with _steps() as progress:
        guard = Guard.from_config(config, progress)
    with guard:
        decision = guard.decide(prompt, labels=labels)
    if as_json:
        print(json.dumps(decision.to_dict()))  # noqa: T201 - rich would wrap the JSON
    else:
        _show_decision(decision)


@app.command()
def harvest(
    questions: Annotated[Path, typer.Argument(help="Labelled questions, JSONL.")],
    tier: Annotated[str, typer.Option(help="A local tier of guard.yaml.")],
    to: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    config: Config = GUARD_YAML,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions a forward pass.")] = 32,
) -> None:
    """Run a tier over labelled questions; write signatures, statistics and correctness."""
    from ilis_guard.config import read_config
    from ilis_guard.lab.harvest import harvest as run
    from ilis_guard.lab.questions import read_questions
    from ilis_guard.tiers import load_local_model

    chosen = read_config(config).tier(tier)
    asked = read_questions(questions)
    with _steps() as progress:
        model = load_local_model(chosen, progress=progress)
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
    from ilis_guard.lab.report import held_out_table

    with err.status("fitting"):
        metadata = run(read_harvest(rows), to, seed=seed)
    out.print(held_out_table(metadata))
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
    out.print(_rules_table(checked))
    out.print(f"[green]ok[/green]: {escape(policy)}, fingerprint {checked.fingerprint}", highlight=False)
