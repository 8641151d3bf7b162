"""Harvest and observe some answers, let lm-polygraph score the same ones, and compare the scores.

The estimators get the output of lm-polygraph's own calculators, "as it comes" (with the end token, which they count as
part of the answer) and cut to the "answer tokens". Its P(True) only contributes log-probabilities, for our wording. The
comparison corrects for the constant that its RAUQ adds (1) and for the sign of its verdicts.
"""

import csv
import json
import os
import random
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer
from rich.console import Console
from scipy.stats import pearsonr, spearmanr

from benchmarks.common import SMOLLM2, show
from benchmarks.neighbours.environments import BUILD, prepare
from benchmarks.neighbours.roster import LM_POLYGRAPH, ROOT
from benchmarks.neighbours.worker import ENVIRONMENT
from benchmarks.world_facts import world_facts
from ilis_guard.lab.attempts import read_attempts
from ilis_guard.lab.baselines.observations import read_observations
from ilis_guard.lab.baselines.observe import observe
from ilis_guard.lab.baselines.scores import p_true_template, proposal
from ilis_guard.lab.harvest import harvest
from ilis_guard.lab.questions import Question
from ilis_guard.models.local import LocalModel
from ilis_guard.models.prompts import PromptTemplate
from ilis_guard.models.weights import converted_folder, packaged_weights
from ilis_guard.types import Generation, Message

RESULTS: Final = ROOT / "benchmarks" / "results" / "baselines_crosscheck.csv"
PROMPT: Final = "{question} Answer in a few words only."
MAX_NEW_TOKENS: Final = 16
ADDED: Final = {"rauq": 1.0}
"""By which lm-polygraph's score is larger, by its own formula."""

console = Console()


def main(
    rows: Annotated[int, typer.Option(min=10, help="Answers that are compared.")] = 100,
    torch_line: Annotated[str, typer.Option("--torch", help="What pip installs first.")] = "torch==2.13.0",
    build: Annotated[Path, typer.Option(help="Where the neighbours' environments are.")] = BUILD,
) -> None:
    """Compare."""
    python = prepare(LM_POLYGRAPH, torch_line, lambda step: console.print(f"environment: {step}"), build)
    torch.set_num_threads(1)
    model = LocalModel.load(SMOLLM2, prompt=PROMPT, max_new_tokens=MAX_NEW_TOKENS)
    questions = random.Random(0).sample(world_facts(0), rows)  # noqa: S311 - a sample, no secret
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("harvest.parquet", "observed.parquet")]
        console.print("harvesting and observing")
        harvest(model, questions, paths[0], name=SMOLLM2)
        observe(model, paths[0], questions, paths[1])
        ours = read_observations(paths[1])
        answers = dict(read_attempts(paths[0]).generations())
    asked = {question.id: question for question in questions}
    console.print("lm-polygraph")
    theirs = _theirs(python, model, [(asked[id_], answers[id_]) for id_ in ours.ids])
    same = [row for row, id_ in enumerate(ours.ids) if _is_same(theirs[row]["token_ids"], answers[id_])]
    console.print(f"{len(same)} of {len(ours.ids)} answers are the same, token by token")
    table = list(_compared({name: of[same] for name, of in ours.scores.items()}, [theirs[row] for row in same]))
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    show("ours and lm-polygraph's", list(table[0]), [[str(cell) for cell in row.values()] for row in table])


def _theirs(python: Path, model: LocalModel, rows: Sequence[tuple[Question, Generation]]) -> list[dict[str, Any]]:
    tokenizer = model.checkpoint.tokenizer
    asking = PromptTemplate(text=model.prompt, chat_template=tokenizer.chat_template)
    requests = [
        {
            "prompt": asking.render([Message(role="user", content=question.prompt())], tokenizer),
            "judged": p_true_template(tokenizer).render(
                [Message(role="user", content=proposal(question.prompt(), answer.text))], tokenizer
            ),
            "tokens": len(answer.token_ids),
        }
        for question, answer in rows
    ]
    weights = converted_folder(packaged_weights(SMOLLM2.removeprefix("packaged:")), None)
    done = subprocess.run(
        [python, "-m", "benchmarks.baselines_crosscheck.worker", weights, str(MAX_NEW_TOKENS)],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        input="".join(json.dumps(request) + "\n" for request in requests),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _is_same(token_ids: Sequence[int], answer: Generation) -> bool:
    """With the end token or without it."""
    return tuple(token_ids[: len(answer.token_ids)]) == answer.token_ids and (
        len(token_ids) == len(answer.token_ids) + (answer.finish_reason == "stop")
    )


def _compared(ours: Mapping[str, np.ndarray], theirs: Sequence[dict[str, Any]]) -> Any:
    for what in ("answer tokens", "as it comes"):
        for name in theirs[0][what]:
            other = np.array([row[what][name] for row in theirs]) - ADDED.get(name, 0.0)
            yield _row(name, what, ours[name], other)
    logs = {word: np.array([row["verdicts"][word] for row in theirs]) for word in theirs[0]["verdicts"]}
    true, false = (np.logaddexp(logs[word], logs[f" {word}"]) for word in ("True", "False"))
    yield _row("p_true", "our wording", ours["p_true"], 1 / (1 + np.exp(true - false)))


def _row(name: str, what: str, ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    return {
        "score": name,
        "lm_polygraph_sees": what,
        "rows": len(ours),
        "pearson": f"{pearsonr(ours, theirs).statistic:.6f}",
        "spearman": f"{spearmanr(ours, theirs).statistic:.6f}",
        "max_abs_difference": f"{np.abs(ours - theirs).max():.2e}",
        "standard_deviation": f"{ours.std():.3f}",
    }


if __name__ == "__main__":
    typer.run(main)
