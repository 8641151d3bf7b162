"""`demo` and `ask`: questions in, decisions out."""

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from ilis_guard.cli.console import GUARD_YAML, Config, out, print_json, print_line, progress_bar, steps
from ilis_guard.errors import RequestError
from ilis_guard.types import Label, Request

commands = typer.Typer()
LABEL_HELP = (
    "NAME=VALUE, which the policy's conditions read as labels.NAME; may be given several times. VALUE is a number or "
    "true or false where it reads as one, otherwise text; '\"7\"' in double quotes is text."
)


@commands.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where guard.yaml, its policy and the tickets go.")] = Path(
        "ilis-guard-demo"
    ),
) -> None:
    """Ask a 4-bit model and a larger one ten questions, easy to impossible, and show the decisions."""
    from ilis_guard.cli.decision_tables import decisions_table, demo_next_steps
    from ilis_guard.guard import Guard
    from ilis_guard.lab.demo import QUESTIONS, prepare

    config = prepare(folder)
    with steps() as progress:
        guard = Guard.from_config(config, progress)
    decisions = []
    with guard, progress_bar("asking") as update:
        for question in QUESTIONS:
            decisions.append(guard.decide(question))
            update(len(decisions), len(QUESTIONS))
    out.print(decisions_table(QUESTIONS, decisions))
    print_line(demo_next_steps(config, decisions))


@commands.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question; - reads it from standard input.")],
    config: Config = GUARD_YAML,
    label: Annotated[list[str] | None, typer.Option(help=LABEL_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole decision as JSON.")] = False,
) -> None:
    """Ask one question and show the decision."""
    from ilis_guard.cli.decision_tables import decision_view
    from ilis_guard.guard import Guard

    # An invalid request is refused before models are loaded.
    request = Request.of(_read_standard_input() if question == "-" else question, _parse_labels(label or []))
    with steps() as progress:
        guard = Guard.from_config(config, progress)
    with guard:
        decision = guard.decide(request.messages, labels=request.labels)
    if as_json:
        print_json(decision.to_dict())
    else:
        out.print(decision_view(decision), soft_wrap=True)


def _read_standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input isn't UTF-8 (byte {error.start})") from None


def _parse_labels(texts: list[str]) -> dict[str, Label]:
    labels: dict[str, Label] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise RequestError(f"a label reads NAME=VALUE, got {text!r}")
        if name in labels:
            raise RequestError(f"the label {name!r} is given twice")
        labels[name] = _parse_label(value)
    return labels


def _parse_label(text: str) -> Label:
    """A number or a boolean where the text is one in JSON, otherwise the text."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return text
    # JSON's other values are no labels, and no label may be NaN or infinite.
    is_label = isinstance(parsed, str | int) or (isinstance(parsed, float) and math.isfinite(parsed))
    return parsed if is_label else text
