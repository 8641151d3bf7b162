"""`demo` and `ask`: questions in, decisions out."""

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from ilis_guard.cli.terminal import GUARD_YAML, Config, bar, out, steps
from ilis_guard.cli.views.decisions import decision_view, decisions_table, demo_next_steps
from ilis_guard.errors import RequestError
from ilis_guard.types import Label, Request

commands = typer.Typer()
LABEL_HELP = (
    "NAME=VALUE, seen by the policy as labels.NAME; may be given several times. VALUE is a number or true or false "
    "where it reads as one, otherwise text; '\"7\"' in double quotes is text."
)


@commands.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where guard.yaml, its policy and the tickets go.")] = Path(
        "ilis-guard-demo"
    ),
) -> None:
    """Ask ten questions, easy to impossible, through a 4-bit model and a larger one, and show what is decided."""
    from ilis_guard.guard import Guard
    from ilis_guard.lab.demo import QUESTIONS, prepare

    config = prepare(folder)
    with steps() as progress:
        guard = Guard.from_config(config, progress)
    with guard, bar() as shown:
        decisions = [guard.decide(question) for question in shown.track(QUESTIONS, description="asking")]
    out.print(decisions_table(QUESTIONS, decisions))
    out.print(demo_next_steps(config, decisions), highlight=False, soft_wrap=True)


@commands.command()
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
    with steps() as progress:
        guard = Guard.from_config(config, progress)
    with guard:
        decision = guard.decide(request.messages, labels=request.labels)
    if as_json:
        print(json.dumps(decision.to_dict()))  # noqa: T201 - rich would wrap the JSON
    else:
        out.print(decision_view(decision), soft_wrap=True)


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
