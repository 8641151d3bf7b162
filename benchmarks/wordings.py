"""Measure a score in wordings that its bundle was fitted to, and in others.

    python -m benchmarks.wordings [--tested 160] [--fitted 640] [--folder build/wordings]

SmolLM2-135M-Instruct at full precision answers questions of `benchmarks.world_facts` as shipped ("as fitted"), in
another prompt, with a system message, and at the third turn. Three bundles score the same answers: the shipped one,
one that is fitted anew to `--fitted` questions in the first wording, and one to as many questions of which each
is in one of the four wordings, both to the features that the shipped one has (so few validation rows don't tell which
are best). The tested questions are among the test rows of the shipped bundle, and none of them is fitted to.

A killed run continues. The table is written to `benchmarks/results/wordings.csv`.
"""

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
import typer

from benchmarks.common import machine, show
from benchmarks.world_facts import world_facts
from ilis_guard.cascade.loading import load_local_model
from ilis_guard.cli.console import progress_bar
from ilis_guard.config.guard_yaml import read_config
from ilis_guard.config.tiers import TierConfig
from ilis_guard.lab.attempts import read_answers, read_attempts
from ilis_guard.lab.fit import fit
from ilis_guard.lab.harvest import harvest
from ilis_guard.lab.metrics import auroc
from ilis_guard.lab.questions import Question
from ilis_guard.lab.wordings import NamedWording, Turn
from ilis_guard.models.local import LocalModel
from ilis_guard.scoring import Bundle, LightGBMScorer, read_bundle
from ilis_guard.scoring.bundle import row_digest
from ilis_guard.types import STATISTICS

RESULTS: Final = Path(__file__).parent / "results" / "wordings.csv"
TIER: Final = "smollm2-135m-instruct-full"
OTHER_PROMPT: Final = "Give a short answer to this quiz question, without explaining it.\n\n{question}"
ALONE: Final = NamedWording(name="alone")
SYSTEM: Final = NamedWording(
    name="system message", messages=(Turn(role="system", content="You are a helpful assistant."),)
)
THIRD_TURN: Final = NamedWording(
    name="third turn",
    messages=(
        Turn(role="user", content="Who wrote Romeo and Juliet? Answer in a few words only."),
        Turn(role="assistant", content="William Shakespeare."),
        Turn(role="user", content="Is ice colder than steam? Answer in a few words only."),
        Turn(role="assistant", content="Yes."),
    ),
)
UNLIKE: Final = 0.01
"""Typicality below which policies that come with ilis_guard don't answer."""
HEADINGS: Final = (
    *("bundle", "wording", "rows", "right", "listed", "AUROC", "perplexity", "Brier", "uncertainty - wrong", "unlike"),
)


def sample(bundle: Bundle, tested: int, fitted: int) -> tuple[list[Question], list[Question]]:
    """Questions to test on, which the bundle wasn't fitted to, and others to fit to."""
    splits = bundle.calibration_set.splits or {}
    held_out = set(splits["test"])
    questions = world_facts()
    random.Random(0).shuffle(questions)  # noqa: S311  # a sample, not a secret
    test = [one for one in questions if row_digest(one.id) in held_out]
    rest = [one for one in questions if row_digest(one.id) not in held_out]
    return test[:tested], rest[:fitted]


class Asked:
    """The tier in its own prompt and in another, and a folder of its answers."""

    def __init__(self, tier: TierConfig, folder: Path) -> None:
        self._tiers = {"own": tier, "other": tier.model_copy(update={"prompt": OTHER_PROMPT})}
        self._models: dict[str, LocalModel] = {}
        self._folder = folder

    def ask(self, questions: Sequence[Question], name: str, prompt: str, wordings: Sequence[NamedWording]) -> Path:
        """Harvest, unless the file is there."""
        path = self._folder / f"{name}.parquet"
        if not path.exists():
            if prompt not in self._models:
                self._models = {prompt: load_local_model(self._tiers[prompt])}  # one at a time: memory
            with progress_bar(name) as progress:
                harvest(self._models[prompt], questions, path, name=TIER, wordings=wordings, progress=progress)
        return path


def row(name: str, bundle: Bundle, wording: str, path: Path) -> list[str]:
    """Score a harvest with a bundle."""
    scorer, table = LightGBMScorer(bundle), read_attempts(path)
    rows = table.answers()
    generations = dict(table.generations())
    scores = [scorer.score(generations[id_]) for id_ in rows.ids.tolist()]
    labels = rows.wrong
    uncertainty = np.array([score.uncertainty for score in scores])
    listed = set(table.wordings()) <= set(bundle.metadata.wordings)
    return [
        name,
        wording,
        str(len(scores)),
        f"{1 - labels.mean():.0%}",
        "yes" if listed else "no",
        f"{auroc(labels, uncertainty):.3f}",
        f"{auroc(labels, -rows.statistics[:, STATISTICS.index('logprob_mean')]):.3f}",
        f"{((uncertainty - labels) ** 2).mean():.3f}",
        f"{uncertainty.mean() - labels.mean():+.3f}",
        f"{np.mean([score.typicality < UNLIKE for score in scores]):.1%}",
    ]


def main(
    tested: Annotated[int, typer.Option(help="Questions, asked in each wording.")] = 160,
    fitted: Annotated[int, typer.Option(help="Questions to fit to, asked twice.")] = 640,
    folder: Annotated[Path, typer.Option(help="Harvests and bundles.")] = Path("build/wordings"),
) -> None:
    """Measure a score in several wordings."""
    torch.set_num_threads(1)
    shipped = read_bundle(f"packaged:{TIER}")
    test, fit_to = sample(shipped, tested, fitted)
    asked = Asked(read_config(Path(__file__).parent / "bundles.yaml").tier(TIER), folder)
    quarter = fit_to[::4]
    rest = [one for place, one in enumerate(fit_to) if place % 4]
    tests = {
        "as fitted": asked.ask(test, "test-alone", "own", [ALONE]),
        "system message": asked.ask(test, "test-system", "own", [SYSTEM]),
        "third turn": asked.ask(test, "test-third-turn", "own", [THIRD_TURN]),
    }
    alone = asked.ask(fit_to, "fit-alone", "own", [ALONE])
    mixed = asked.ask(rest, "fit-mixed", "own", [ALONE, SYSTEM, THIRD_TURN])
    tests["other prompt"] = asked.ask(test, "test-other-prompt", "other", [ALONE])
    other = asked.ask(quarter, "fit-other-prompt", "other", [ALONE])
    features = shipped.metadata.features
    fit(read_answers([alone]), folder / "one", features=features, accept=True)
    fit(read_answers([mixed, other], any_prompt=True), folder / "all", features=features, accept=True)
    bundles = {
        "shipped": shipped,
        f"one wording, {fitted} rows": read_bundle(str(folder / "one")),
        f"all wordings, {fitted} rows": read_bundle(str(folder / "all")),
    }
    rows = [row(name, bundle, wording, path) for name, bundle in bundles.items() for wording, path in tests.items()]
    show(f"SmolLM2-135M, full precision, world facts; {machine()}", HEADINGS, rows)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADINGS, *rows])


if __name__ == "__main__":
    typer.run(main)
