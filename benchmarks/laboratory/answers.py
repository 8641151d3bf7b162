"""A tier's answers to the sets: harvested, and observed for sets that count. Existing files are reused."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Final

import numpy as np

from ilis_guard.cascade.loading import load_local_model
from ilis_guard.cli.console import progress_bar, steps
from ilis_guard.config.tiers import TierConfig, decoding_name
from ilis_guard.errors import FitError, QuestionError
from ilis_guard.lab.attempts import read_answers, read_attempts
from ilis_guard.lab.baselines.observations import file_digest, read_observation_manifest
from ilis_guard.lab.baselines.observe import observe
from ilis_guard.lab.evaluation.evaluate import Source
from ilis_guard.lab.evaluation.sets import counted_sets, question_sets
from ilis_guard.lab.grading import RULES
from ilis_guard.lab.harvest import harvest, questions_digest
from ilis_guard.lab.questions import Question, read_questions, write_questions
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Site

SITE: Final[Site] = "mlp"
Sets = Mapping[str, Sequence[Question]]
"""Questions by the names of their sets."""
Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is."""
Bar = Callable[[str, int], AbstractContextManager[Progress]]
"""Called with a step and the number of its questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """Of one set."""

    harvest: Path
    observations: Path


def keep_questions(sets: Sets, folder: Path) -> None:
    """Write each set beside what will be made of it.

    Raises:
        QuestionError: another version of a set stands there.
        OSError: a file can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, questions in sets.items():
        path = folder / f"{name}.jsonl"
        if not path.exists():
            write_questions(path, questions)
        elif read_questions(path) != list(questions):
            raise QuestionError(
                f"{str(path)!r} holds other questions than are made now, by these versions of this repository, of the "
                "packages that it draws on, and of --data: go on with the old ones, or begin anew with another --to"
            )


def load_model(tier: TierConfig) -> LocalModel:
    """Load a tier's model, with a bar of its own.

    Raises:
        ModelError: it can't be loaded.
    """
    with steps() as progress:
        return load_local_model(tier, site=SITE, progress=progress)


def own_bar(step: str, _questions: int) -> AbstractContextManager[Progress]:
    """A bar for one set."""
    return progress_bar(step)


class TierAnswers:
    """A tier's answers to sets. A run that was killed continues.

    Args:
        tier: a local one; its model is loaded only where something is left to do.
        sets: as they were asked before, where there are files already.
        folder: a set's files stand in it under the set's name.
        load: loads the model.
        bar: shows the progress of one set, by what is done and how many questions it has.
        batch_size: questions asked together.

    Raises:
        FitError: what is there was made by another model, of other questions, or of another harvest.
    """

    def __init__(
        self,
        tier: TierConfig,
        sets: Sets,
        folder: Path,
        *,
        load: Callable[[TierConfig], LocalModel] = load_model,
        bar: Bar = own_bar,
        batch_size: int = 32,
    ) -> None:
        self._tier = tier
        self._sets = sets
        self._files = {
            name: _Files(harvest=folder / f"{name}.parquet", observations=folder / f"{name}.observations.parquet")
            for name in sets
        }
        for name, of_set in self._files.items():
            _check(of_set, tier, sets[name])
        self._model = cache(partial(load, tier))
        self._bar = bar
        self._batch_size = batch_size

    def harvest(self) -> list[Path]:
        """Ask all sets in their order.

        Raises:
            IlisGuardError: as `ilis_guard.lab.harvest.harvest` says.
        """
        for name, of_set in self._files.items():
            if not of_set.harvest.exists():
                model, questions = self._model(), self._sets[name]
                with self._bar(f"{self._tier.name} asked: {name}", len(questions)) as progress:
                    harvest(
                        model,
                        questions,
                        of_set.harvest,
                        name=_shown_model(self._tier),
                        batch_size=self._batch_size,
                        progress=progress,
                    )
        return [of_set.harvest for of_set in self._files.values()]

    def observe(self, names: Sequence[str]) -> list[Path]:
        """Observe some of the harvested sets.

        Raises:
            IlisGuardError: as `ilis_guard.lab.baselines.observe.observe` says.
        """
        for name in names:
            if not self._files[name].observations.exists():
                model, questions, of_set = self._model(), self._sets[name], self._files[name]
                with self._bar(f"{self._tier.name} observed: {name}", len(questions)) as progress:
                    observe(model, of_set.harvest, questions, of_set.observations, progress=progress)
        return [self._files[name].observations for name in names]


def answer(tier: TierConfig, sets: Sets, folder: Path, *, beside: Source | None = None) -> Source:
    """Harvest all sets in their order, and observe those that count, each row once.

    Args:
        tier: as `TierAnswers`, with what follows.
        sets: what is asked.
        folder: for the answers.
        beside: another tier's answers; which sets count is then judged by the questions that both answered.

    Raises:
        FitError: as `TierAnswers`; or no set counts.
        IlisGuardError: as `harvest` and `observe` say.
    """
    answers = TierAnswers(tier, sets, folder)
    harvests = answers.harvest()
    rows = read_answers(harvests)
    if beside is not None:
        known = set(read_answers(beside.harvests).ids.tolist())
        rows = rows.take(np.array([id_ in known for id_ in rows.ids.tolist()]))
    counting = counted_sets(question_sets(rows, [asked for questions in sets.values() for asked in questions]))
    return Source(harvests=harvests, observations=answers.observe(counting))


def _shown_model(tier: TierConfig) -> str:
    """Name a tier's model; of a folder its own name: manifests are committed, and where it lies is our own business."""
    name = str(tier.model)
    return Path(name).name if Path(name).is_dir() else name


def _check(files: _Files, tier: TierConfig, questions: Sequence[Question]) -> None:
    """See that what is there is what would be made."""
    if files.harvest.exists():
        manifest = read_attempts(files.harvest).harvest
        pairs = {
            "model": (manifest.model, _shown_model(tier)),
            "precision": (manifest.tapped().precision, tier.precision),
            "site": (manifest.tapped().site, SITE),
            "decoding": (manifest.tapped().decoding, decoding_name(tier.decoding)),
            "prompt": (manifest.prompt, tier.prompt),
            "max_new_tokens": (manifest.max_new_tokens, tier.max_new_tokens),
            "questions": (manifest.questions, questions_digest(questions)),
            "judge": (manifest.judge, RULES),
        }
        if differing := [what for what, (found, wanted) in pairs.items() if found != wanted]:
            raise FitError(
                f"{str(files.harvest)!r} isn't what {tier.name!r} would be asked now: it differs in "
                f"{', '.join(differing)}; move it away, with what was observed of it, and it is made anew"
            )
    if files.observations.exists() and (
        not files.harvest.exists()
        or read_observation_manifest(files.observations).harvest_sha256 != file_digest(files.harvest)
    ):
        raise FitError(
            f"{str(files.observations)!r} was observed of another harvest than {str(files.harvest)!r}: move it away, "
            "and it is made anew"
        )
