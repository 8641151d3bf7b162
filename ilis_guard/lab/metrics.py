"""Metrics of a score: of one set of rows, as bundles hold them, and of many bootstrap draws at once."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, brier_score_loss

from ilis_guard.errors import FitError
from ilis_guard.scoring.bundle import HeldOut
from ilis_guard.scoring.figures import Figure
from ilis_guard.scoring.findings import CHANCE

RESAMPLES: Final = 1000
INTERVAL: Final = (2.5, 97.5)

Uncertainties = Float64[np.ndarray, " rows"]
Outcomes = Bool[np.ndarray, " rows"]
Rows = Int64[np.ndarray, " drawn"]
Groups = Int64[np.ndarray, " rows"]
Datasets = np.ndarray
"""The name of each row's dataset."""
BINS: Final = 10
"""Bins of the expected calibration error, of equal mass, so that none is nearly empty."""
COVERAGE: Final = 0.8
"""Coverage of the accuracy among the least uncertain answers."""

CELLS: Final = 2_000_000
"""Cells of an array of draws, at most: more take memory and are no faster."""

Draws = Int64[np.ndarray, "draws rows"] | Float64[np.ndarray, "draws rows"]
Values = Float64[np.ndarray, " draws"]


def auroc(wrong: Outcomes, uncertainty: Uncertainties) -> float:
    """Probability that a wrong answer has a higher uncertainty than a right one, ties counting half.

    By ranks (Mann-Whitney's U): a tenth of the time that scikit-learn's curve takes, and the bootstrap asks often.
    """
    bad = int(wrong.sum())
    return float((rankdata(uncertainty)[wrong].sum() - bad * (bad + 1) / 2) / (bad * (len(wrong) - bad)))


def auprc_wrong(wrong: Outcomes, uncertainty: Uncertainties) -> float:
    """Average precision at finding wrong answers."""
    return float(average_precision_score(wrong, uncertainty))


def auprc_correct(wrong: Outcomes, uncertainty: Uncertainties) -> float:
    """Average precision at finding right answers."""
    return float(average_precision_score(~wrong, -uncertainty))


def brier(wrong: Outcomes, uncertainty: Uncertainties) -> float:
    """Mean squared difference of uncertainty and outcome; lower is better."""
    return float(brier_score_loss(wrong, uncertainty))


def brier_skill(wrong: Outcomes, uncertainty: Uncertainties) -> float:
    """1 - Brier / Brier of always saying the rows' own base rate; higher is better, at most 1."""
    base_rate = wrong.mean()
    return 1 - brier(wrong, uncertainty) / float(base_rate * (1 - base_rate))


def auroc_within(wrong: Outcomes, uncertainty: Uncertainties, datasets: Datasets) -> float:
    """Mean of the AUROCs of all datasets that hold right and wrong answers."""
    of_each = [datasets == dataset for dataset in np.unique(datasets)]
    mixed = [rows for rows in of_each if 0 < wrong[rows].sum() < rows.sum()]
    return float(np.mean([auroc(wrong[rows], uncertainty[rows]) for rows in mixed])) if mixed else CHANCE


def held_out(
    wrong: Outcomes, uncertainty: Uncertainties, datasets: Datasets, groups: Groups | None = None, seed: int = 0
) -> HeldOut:
    """All figures, each with its 95 % percentile bootstrap interval over groups.

    Args:
        wrong: whether each answer is wrong.
        uncertainty: of each answer.
        datasets: the name of each row's dataset.
        groups: rows with the same number depend on one another; None where none does.
        seed: of the bootstrap.

    Raises:
        FitError: the rows are all right or all wrong, which says nothing of a ranking.
    """
    if not 0 < wrong.sum() < len(wrong):
        raise FitError(f"of {len(wrong)} held-out rows {int(wrong.sum())} are wrong; figures need right and wrong ones")
    sampler = GroupSampler.of(np.arange(len(wrong)) if groups is None else groups)
    drawn = [_drawn_figures(wrong, uncertainty, datasets, draws) for draws in _resamples(wrong, sampler, seed)]

    def figure(name: str, value: float) -> Figure:
        low, high = np.percentile(np.concatenate([part[name] for part in drawn]), INTERVAL).tolist()
        return Figure(value=value, low=low, high=high)

    return HeldOut(
        rows=len(wrong),
        groups=len(sampler),
        wrong=int(wrong.sum()),
        auroc=figure("auroc", auroc(wrong, uncertainty)),
        auroc_within=figure("auroc_within", auroc_within(wrong, uncertainty, datasets)),
        auprc_wrong=figure("auprc_wrong", auprc_wrong(wrong, uncertainty)),
        auprc_correct=figure("auprc_correct", auprc_correct(wrong, uncertainty)),
        brier=figure("brier", brier(wrong, uncertainty)),
        brier_skill=figure("brier_skill", brier_skill(wrong, uncertainty)),
    )


def _drawn_figures(
    wrong: Outcomes, uncertainty: Uncertainties, datasets: Datasets, draws: Draws
) -> Mapping[str, Values]:
    counts = ScoreCounts.of(wrong, uncertainty, draws)
    of_each = [datasets == dataset for dataset in np.unique(datasets)]
    within = np.array([ScoreCounts.of(wrong[rows], uncertainty[rows], draws[:, rows]).auroc() for rows in of_each])
    mixed = np.isfinite(within)
    return {
        "auroc": counts.auroc(),
        "auroc_within": _ratio(np.where(mixed, within, 0).sum(axis=0), mixed.sum(axis=0), CHANCE),
        "auprc_wrong": counts.auprc_wrong(),
        "auprc_correct": counts.auprc_correct(),
        "brier": counts.brier(),
        "brier_skill": counts.brier_skill(),
    }


def weighted_figures(
    wrong: Outcomes, raw: Uncertainties, probability: Uncertainties, weights: Uncertainties, groups: Groups
) -> tuple[Figure, Figure]:
    """AUROC and Brier skill where each row stands for several, with 95 % percentile bootstrap intervals over groups.

    Args:
        wrong: whether each answer is wrong; both classes occur.
        raw: scores, which rank.
        probability: of being wrong.
        weights: how many rows each row stands for.
        groups: rows with the same number depend on one another.
    """
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max()) + 1
    random = np.random.default_rng(0)
    chunks = [random.multinomial(count, np.full(count, 1 / count), size=size) for size in _chunk_sizes(len(wrong))]

    def figure(scores: Uncertainties, metric: Callable[[ScoreCounts], Values]) -> Figure:
        value = float(metric(ScoreCounts.of(wrong, scores, weights[None, :]))[0])
        drawn = np.concatenate([metric(ScoreCounts.of(wrong, scores, each[:, group] * weights)) for each in chunks])
        low, high = np.percentile(drawn[np.isfinite(drawn)], INTERVAL).tolist()
        return Figure(value=value, low=low, high=high)

    return figure(raw, ScoreCounts.auroc), figure(probability, ScoreCounts.brier_skill)


def _chunk_sizes(rows: int) -> list[int]:
    """Sizes of parts of the resamples that fit into the memory."""
    size = max(1, CELLS // rows)
    return [min(size, RESAMPLES - start) for start in range(0, RESAMPLES, size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSampler:
    """Draws groups of rows with replacement."""

    rows: Rows
    """Group by group."""
    starts: Rows
    """Place of each group's first row in `rows`; the groups are in the order of their first rows."""
    sizes: Rows

    @classmethod
    def of(cls, groups: Groups) -> Self:
        """Sample from the groups of rows that have the same number."""
        _, first, group = np.unique(groups, return_index=True, return_inverse=True)
        place = np.empty(len(first), dtype=np.int64)
        place[np.argsort(first)] = np.arange(len(first))
        of_row = place[group]
        sizes = np.bincount(of_row)
        return cls(rows=np.argsort(of_row, kind="stable"), starts=np.cumsum(sizes) - sizes, sizes=sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def draw(self, random: np.random.Generator, size: int) -> Rows:
        """Return all rows of so many groups, each drawn from all."""
        drawn = random.integers(len(self), size=size)
        if len(self) == len(self.rows):
            return drawn
        sizes = self.sizes[drawn]
        ends = np.cumsum(sizes)
        places = np.arange(ends[-1]) + np.repeat(self.starts[drawn] - ends + sizes, sizes)
        found: Rows = self.rows[places]
        return found


def _resamples(wrong: Outcomes, groups: GroupSampler, seed: int) -> Iterator[Draws]:
    """How often each row is drawn where groups are drawn with replacement, some draws at a time.

    A draw of one class says nothing of a ranking and is drawn again.
    """
    random = np.random.default_rng(seed)
    for size in _chunk_sizes(len(wrong)):
        draws: list[Int64[np.ndarray, " rows"]] = []
        while len(draws) < size:
            rows = groups.draw(random, len(groups))
            if 0 < wrong[rows].sum() < len(rows):
                draws.append(np.bincount(rows, minlength=len(wrong)))
        yield np.stack(draws)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreCounts:
    """How many wrong and right answers have each score, for many draws of the answers at once.

    A bootstrap needs each metric a thousand times. Drawing answers changes their counts and not their order, so that
    they are sorted once, and each metric of all draws is a few sums.
    """

    scores: Float64[np.ndarray, " scores"]
    """Distinct, higher for more uncertain."""
    wrong: Float64[np.ndarray, "draws scores"]
    """How many answers with this score are wrong."""
    right: Float64[np.ndarray, "draws scores"]

    @property
    def all(self) -> Float64[np.ndarray, "draws scores"]:
        """How many answers have this score."""
        total: Float64[np.ndarray, "draws scores"] = self.wrong + self.right
        return total

    @property
    def error(self) -> Values:
        """Share of all answers that are wrong."""
        share: Values = _sum(self.wrong) / _sum(self.all)
        return share

    @classmethod
    def of(
        cls, wrong: Bool[np.ndarray, " rows"], scores: Float64[np.ndarray, " rows"], draws: Draws | None = None
    ) -> Self:
        """Count answers by their score.

        Args:
            wrong: whether each is wrong.
            scores: higher for more uncertain.
            draws: how often each answer is drawn; without them there is one draw, of each once.
        """
        distinct, level, times = np.unique(scores, return_inverse=True, return_counts=True)
        order = np.argsort(level, kind="stable")
        starts = np.cumsum(times) - times
        drawn = np.ones((1, len(scores))) if draws is None else draws[:, order].astype(np.float64)
        bad = np.add.reduceat(drawn * wrong[order], starts, axis=1)
        return cls(scores=distinct, wrong=bad, right=np.add.reduceat(drawn, starts, axis=1) - bad)

    def auroc(self) -> Values:
        """Probability that a wrong answer has a higher score than a right one, ties counting half (Mann-Whitney)."""
        below = np.cumsum(self.right, axis=1) - self.right / 2
        return _ratio(_sum(self.wrong * below), _sum(self.wrong) * _sum(self.right))

    def auprc_wrong(self) -> Values:
        """Average precision at finding wrong answers, from the most uncertain on; equal scores come together."""
        return _average_precision(self.wrong[:, ::-1], self.right[:, ::-1])

    def auprc_correct(self) -> Values:
        """Average precision at finding right answers, from the least uncertain on; equal scores come together."""
        return _average_precision(self.right, self.wrong)

    def aurc(self) -> Values:
        """Area under the risk-coverage curve: the mean, over k from 1 to n, of the error among the k least uncertain.

        Geifman, Uziel and El-Yaniv (2019, arXiv:1805.08206). Equal scores come in any order, of which this is the
        expectation: after n0 answers, e0 of them wrong, come m of one score, w of them wrong; among the first n0 + j
        there are e0 + w j / m wrong ones on average, and

            sum_j (e0 + w j / m) / (n0 + j) = w + (e0 - w n0 / m) (H(n0 + m) - H(n0)),  H(n) = 1 + 1/2 + ... + 1/n.
        """
        harmonic = self._harmonic()
        here = self.all
        reached = np.cumsum(here, axis=1)
        before, errors = reached - here, np.cumsum(self.wrong, axis=1) - self.wrong
        steps = harmonic[reached.astype(np.int64)] - harmonic[before.astype(np.int64)]
        area = _sum(self.wrong + (errors - _ratio(self.wrong, here, 0.0) * before) * steps)
        return _ratio(area, reached[:, -1])

    def least_aurc(self) -> Values:
        """AURC of a score that puts all right answers before all wrong ones: none can have less."""
        harmonic = self._harmonic()
        wrong, right = _sum(self.wrong), _sum(self.right)
        steps = harmonic[(wrong + right).astype(np.int64)] - harmonic[right.astype(np.int64)]
        return _ratio(wrong - right * steps, wrong + right)

    def excess_aurc(self) -> Values:
        """E-AURC: how far AURC lies above the least there can be (Geifman, Uziel and El-Yaniv, 2019)."""
        excess: Values = self.aurc() - self.least_aurc()
        return excess

    def rejection_ratio(self) -> Values:
        """Prediction rejection ratio: 1 for a perfect ranking, 0 for one by chance, negative for worse than chance.

        ``(AURC by chance - AURC) / (AURC by chance - least AURC)``, where AURC by chance is the share of wrong answers:
        the areas between rejection curves of Malinin and Gales (2021, arXiv:2002.07650), with the mean quality of what
        isn't rejected as lm-polygraph draws them (Vashurin et al., 2025, arXiv:2406.15627), over all rejection rates.
        """
        chance = self.error
        return _ratio(chance - self.aurc(), chance - self.least_aurc())

    def accuracy_at_coverage(self) -> Values:
        """Share of right answers among the least uncertain 80 % (rounded up), with a fraction of equal scores."""
        here = self.all
        reached = np.cumsum(here, axis=1)
        # 0.8 n isn't a whole number in floating point even where it is one.
        taken = np.ceil(COVERAGE * reached[:, -1:] - 1e-9)
        part = np.clip(_ratio(taken - (reached - here), here, 0.0), 0, 1)
        return _ratio(_sum(part * self.right), taken[:, 0])

    def brier(self) -> Values:
        """Mean squared difference of a probability and the outcome; lower is better."""
        return _ratio(_sum(self.wrong * (1 - self.scores) ** 2 + self.right * self.scores**2), _sum(self.all))

    def brier_skill(self) -> Values:
        """1 - Brier / Brier of always saying the rows' own base rate; higher is better, at most 1."""
        error = self.error
        return 1 - _ratio(self.brier(), error * (1 - error))

    def calibration_error(self) -> Values:
        """Expected calibration error: the mean distance of probability and frequency over 10 bins of equal mass.

        Naeini, Cooper and Hauskrecht (2015), with the bins of Nguyen and O'Connor (2015, arXiv:1508.05154). Answers of
        one score share the bin of their middle rank. Even of exact probabilities it isn't 0 on finite rows.
        """
        here = self.all
        reached = np.cumsum(here, axis=1)
        middle = _ratio(reached - here / 2, reached[:, -1:], 0.0)
        bins = np.minimum((middle * BINS).astype(np.int64), BINS - 1)
        places = bins + BINS * np.arange(len(bins))[:, None]
        off = np.bincount(places.ravel(), weights=(here * self.scores - self.wrong).ravel(), minlength=BINS * len(bins))
        return _ratio(np.abs(off).reshape(-1, BINS).sum(axis=1), reached[:, -1])

    def _harmonic(self) -> Float64[np.ndarray, " numbers"]:
        most = int(_sum(self.all).max())
        numbers: Float64[np.ndarray, " numbers"] = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, most + 1))])
        return numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric's name and formula."""

    name: str
    formula: Callable[[ScoreCounts], Values]
    of: Literal["raw", "probability"]
    """What it measures: the ranking of answers, or their probabilities."""
    higher_is_better: bool = True
    is_pooled: bool = False
    """Whether it is computed over the test rows of all seeds at once, because few rows say little."""


METRICS: Final = (
    Metric(name="auroc", formula=ScoreCounts.auroc, of="raw"),
    Metric(name="auprc_wrong", formula=ScoreCounts.auprc_wrong, of="raw"),
    Metric(name="auprc_correct", formula=ScoreCounts.auprc_correct, of="raw"),
    Metric(name="aurc", formula=ScoreCounts.aurc, of="raw", higher_is_better=False),
    Metric(name="e_aurc", formula=ScoreCounts.excess_aurc, of="raw", higher_is_better=False),
    Metric(name="prr", formula=ScoreCounts.rejection_ratio, of="raw"),
    Metric(name="accuracy_at_80", formula=ScoreCounts.accuracy_at_coverage, of="raw"),
    Metric(name="brier", formula=ScoreCounts.brier, of="probability", higher_is_better=False),
    Metric(name="brier_skill", formula=ScoreCounts.brier_skill, of="probability"),
    Metric(name="ece", formula=ScoreCounts.calibration_error, of="probability", higher_is_better=False, is_pooled=True),
)
EXACT: Final = "ece_if_exact"
"""The calibration error that the same probabilities would have, on as many rows, if each was exact."""


def _average_precision(
    found: Float64[np.ndarray, "draws scores"], other: Float64[np.ndarray, "draws scores"]
) -> Values:
    so_far = np.cumsum(found, axis=1)
    precision = _ratio(so_far, so_far + np.cumsum(other, axis=1), 0.0)
    return _ratio(_sum(found * precision), so_far[:, -1])


def _sum(counts: Float64[np.ndarray, "draws scores"]) -> Values:
    total: Values = counts.sum(axis=1)
    return total


def _ratio(above: np.ndarray, below: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
    """Divide, with another value where the divisor isn't positive."""
    above, below = np.broadcast_arrays(above, below)
    quotient: np.ndarray = np.divide(above, below, out=np.full(above.shape, otherwise), where=below > 0)
    return quotient
