"""Trials: what is known of a left-out set without a label, and with some, on rows of it that nothing saw."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from benchmarks.learning_curve.left_out import LeftOut, take
from benchmarks.learning_curve.rivals import ProfiledRival, Rival, logprobs_in, normalised
from benchmarks.learning_curve.samplers import SAMPLERS, Sampler
from ilis_guard.errors import FitError
from ilis_guard.lab.baselines.observations import SCORES
from ilis_guard.lab.calibration_rows import CalibrationRows
from ilis_guard.lab.recalibrate import KEPT, correct
from ilis_guard.lab.traffic import profile_by_prompts
from ilis_guard.scoring import certify, read_bundle
from ilis_guard.scoring.blended_trees import improbability
from ilis_guard.types import STATISTICS

MAX_ERROR: Final = 0.2
"""Of the answered requests, that is certified."""
BUNDLE: Final = "bundle"
"""With a profile its score counts improbability."""
UNSUPERVISED: Final = {"perplexity": "logprob_mean", "log-probability": "logprob_sum"}
OBSERVED: Final = tuple(score for score in SCORES if score not in ("perplexity", "neg_logprob_sum"))
"""Scores that need no labels, of answers that were observed."""
IMPROBABILITY: Final = "improbability"
"""Alone, in units of a profile: what a bundle's score has to beat there."""
FUSED: Final = "{method} + improbability"
"""A method that counts it as bundles do."""
RANDOM: Final = "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many rows are taken for what."""

    profiles: tuple[int, ...] = (0, 20, 50, 200)
    """Unlabelled, the first of the pool."""
    labels: tuple[int, ...] = (25, 50, 100, 200)
    sampled: tuple[int, ...] = (25, 50, 100)
    """Labels that the samplers choose."""
    pool: int = 200
    """Rows that may be looked at; the others test."""
    tested: int = 60
    """At least so many: a set of fewer rows isn't left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is measured."""

    method: str
    labels: int = 0
    kept: float = 0.0
    """Share of the labels that is kept for guarantees."""
    profile: int = 0
    """Unlabelled rows that the profile was measured on."""
    sampler: str = RANDOM
    """How the rows to label were chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A setting's scores of the rows that nothing saw, in one draw of rows."""

    setting: Setting
    left_out: str
    wrong: Bool[np.ndarray, " rows"]
    raw: Float64[np.ndarray, " rows"]
    """Higher for more uncertain."""
    probability: Float64[np.ndarray, " rows"] | None = None
    """Of being wrong; None of a score that is no probability."""
    answered: Bool[np.ndarray, " rows"] | None = None
    """By the certified threshold; None where there was no label."""
    refused: bool = False
    """Whether these labels taught nothing, so that the scores are those without them."""


class Draw:
    """One draw of the rows of a left-out set: a pool that may be looked at, and rows that test."""

    def __init__(self, left_out: LeftOut, sizes: Sizes, seed: int) -> None:
        self._left_out = left_out
        self._sizes = sizes
        self._seed = seed
        order = np.random.default_rng(seed).permutation(len(left_out))
        self._pool, self._test = order[: sizes.pool], order[sizes.pool :]
        self._wrong = left_out.rows.wrong[self._test]

    def unlabelled(self) -> Iterator[Trial]:
        """Without labels: what needs none, and what was fitted to the other sets, by the size of the profile."""
        answers = self._left_out.answers
        for name, statistic in UNSUPERVISED.items():
            column = answers.statistics[self._test, STATISTICS.index(statistic)]
            yield self._trial(Setting(method=name), -column)
        if answers.unsupervised is not None:
            for name in OBSERVED:
                yield self._trial(Setting(method=name), answers.unsupervised[name][self._test])
        bundle = self._left_out.bundle
        for size in self._sizes.profiles:
            rows = self._in_profile(size)
            uncertainty = bundle.metadata.calibration.apply(rows.raw)
            setting = Setting(method=BUNDLE, profile=size)
            yield self._trial(setting, rows.raw[self._test], uncertainty[self._test])
            if size:
                logprobs = logprobs_in(normalised(answers.statistics, answers.statistics[self._pool[:size]]))
                yield self._trial(Setting(method=IMPROBABILITY, profile=size), improbability(logprobs)[self._test])
            for rival in self._left_out.rivals:
                yield from self._unlabelled_rival(rival, Setting(method=rival.name, profile=size))

    def _unlabelled_rival(self, rival: Rival, setting: Setting) -> Iterator[Trial]:
        answers = self._left_out.answers
        if not setting.profile:
            raw = rival.without_profile(answers)[self._test]
            yield self._trial(setting, raw, raw)
            return
        profiled = rival.profiled(answers, self._pool[: setting.profile])
        alone = profiled.alone[self._test]
        yield self._trial(setting, alone, alone)
        fused = replace(setting, method=FUSED.format(method=rival.name))
        yield self._trial(fused, profiled.prior[self._test])

    def labelled(self) -> Iterator[Trial]:
        """With the first rows of the pool labelled, all of them learned from or some kept for guarantees."""
        for labels in self._sizes.labels:
            chosen = self._pool[:labels]
            for kept in (0.0, KEPT):
                setting = Setting(method=BUNDLE, labels=labels, kept=kept, profile=self._sizes.pool)
                yield self._corrected(setting, chosen)
                for name, rival in self._profiled_rivals.items():
                    yield self._corrected_rival(replace(setting, method=name), rival, chosen)

    def sampled(self, samplers: Sequence[Sampler] = SAMPLERS) -> Iterator[Trial]:
        """With rows of the pool labelled that a sampler chose, some of them kept for guarantees where it can give any.

        `labelled` has random ones.
        """
        rows = take(self._profiled, self._pool)
        uncertainty = self._left_out.bundle.metadata.calibration.apply(rows.raw)
        for sampler in samplers:
            for labels in self._sizes.sampled:
                places, probability = sampler.draw(rows, uncertainty, labels, self._seed)
                setting = Setting(method=BUNDLE, labels=labels, profile=self._sizes.pool, sampler=sampler.name)
                for kept in (0.0, KEPT):
                    yield self._corrected(replace(setting, kept=kept), self._pool[places], probability)

    def _corrected(
        self, setting: Setting, chosen: Int64[np.ndarray, " labels"], probability: np.ndarray | None = None
    ) -> Trial:
        profiled, known = self._profiled, self._left_out.bundle
        labelled = take(profiled, chosen)
        if probability is not None:
            labelled = replace(labelled, probability=probability)
        with TemporaryDirectory() as folder:
            to = Path(folder) / "bundle"
            try:
                correct(known, labelled, to, kept=setting.kept, accept=True)
            except FitError:
                raw = profiled.raw[self._test]
                return self._trial(setting, raw, known.metadata.calibration.apply(raw), threshold=None, refused=True)
            learned = read_bundle(str(to))
        raw = profiled.in_units(learned, learned.traffic).raw[self._test]
        uncertainty = learned.metadata.calibration.apply(raw)
        return self._trial(setting, raw, uncertainty, threshold=learned.certify(max_error=MAX_ERROR).threshold)

    def _corrected_rival(self, setting: Setting, rival: ProfiledRival, chosen: Int64[np.ndarray, " labels"]) -> Trial:
        wrong = self._left_out.rows.wrong
        try:
            learned = rival.corrected(chosen, wrong[chosen], setting.kept)
        except FitError:
            # With improbability it only ranks.
            raw, uncertainty = rival.prior[self._test], rival.alone[self._test]
            return self._trial(setting, raw, uncertainty, threshold=None, refused=True)
        uncertainty, kept = learned.uncertainty, learned.kept
        threshold = _certified(uncertainty[kept], wrong[kept]) if len(kept) else None
        return self._trial(setting, learned.raw[self._test], uncertainty[self._test], threshold=threshold)

    @cached_property
    def _profiled_rivals(self) -> Mapping[str, ProfiledRival]:
        return {rival.name: rival.profiled(self._left_out.answers, self._pool) for rival in self._left_out.rivals}

    @cached_property
    def _profiled(self) -> CalibrationRows:
        return self._in_profile(self._sizes.pool)

    def _in_profile(self, size: int) -> CalibrationRows:
        rows = self._left_out.rows
        if not size:
            return rows
        assert rows.columns is not None, "a harvest has them"
        traffic = profile_by_prompts(rows.columns.take(self._pool[:size]))
        return rows.in_units(self._left_out.bundle, traffic)

    def _trial(
        self,
        setting: Setting,
        raw: Float64[np.ndarray, " rows"],
        probability: Float64[np.ndarray, " rows"] | None = None,
        *,
        threshold: float | None = None,
        refused: bool = False,
    ) -> Trial:
        answered = None
        if setting.labels and probability is not None:
            answered = np.zeros(len(raw), dtype=bool) if threshold is None else probability <= threshold
        return Trial(
            setting=setting,
            left_out=self._left_out.name,
            wrong=self._wrong,
            raw=raw,
            probability=probability,
            answered=answered,
            refused=refused,
        )


def _certified(uncertainty: Float64[np.ndarray, " rows"], wrong: Bool[np.ndarray, " rows"]) -> float | None:
    return certify(uncertainty, wrong, max_error=MAX_ERROR).threshold
