"""Measure the score of a tier without a bundle: which output statistic, and what the policy cold-start does with it.

    python -m benchmarks.cold_start HARVEST... [--orders 20]

Harvests of one model, a dataset each, by `ilis-guard harvest`; of each dataset the first 300 rows count. Nothing is
fitted. First every output statistic's AUROC, by dataset, their mean, and over all rows mixed: a rank is among mixed
traffic. Then the rows come as mixed requests, in several orders, to a rolling profile of 500, as in a guard: how many
are answered in shadow, by rank and not at all, and how many of the answered are wrong. The tables are written to
`benchmarks/results/cold_start.csv` and `cold_start_requests.csv`.
"""

import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from benchmarks.common import show
from ilis_guard.lab.attempts import Answers, read_answers
from ilis_guard.lab.metrics import auroc
from ilis_guard.scoring.profile import LEAST_ANSWERS
from ilis_guard.scoring.rolling_profile import RollingProfile
from ilis_guard.scoring.unsupervised import STATISTIC
from ilis_guard.types import STATISTICS

FOLDER: Final = Path(__file__).parent / "results"
ROWS: Final = 300
"""Of each dataset."""
SUREST: Final = 0.6
"""As in policies/cold-start.yaml."""
SPANS: Final = ((0, LEAST_ANSWERS), (LEAST_ANSWERS, 50), (50, 200), (200, 500), (500, 1000))
"""Requests since the start."""
HEADINGS: Final = ("dataset", "rows", "right", *STATISTICS)
REQUEST_HEADINGS: Final = ("requests", "answered", "wrong of these", "wrong of all")
_SIGNS: Final = {"logprob_sum": -1, "logprob_mean": -1, "entropy_mean": 1, "margin_min": -1}
"""By statistic: what turns it into an uncertainty."""


def first_rows(rows: Answers) -> Answers:
    """The first rows of each dataset."""
    of_each = [np.flatnonzero(rows.datasets == name)[:ROWS] for name in np.unique(rows.datasets)]
    return rows.take(np.concatenate(of_each))


def statistics_table(rows: Answers) -> Iterator[list[str]]:
    """AUROC of each statistic."""
    values = [_SIGNS[name] * rows.statistics[:, rows.known.index(name)] for name in STATISTICS]
    names = np.unique(rows.datasets).tolist()
    of_each = []
    for name in names:
        own = rows.datasets == name
        of_each.append([auroc(rows.wrong[own], value[own]) for value in values])
        yield _row(name, rows.wrong[own], of_each[-1])
    yield _row("mean", rows.wrong, np.mean(of_each, axis=0).tolist())
    yield _row("mixed", rows.wrong, [auroc(rows.wrong, value) for value in values])


def _row(name: str, wrong: np.ndarray, figures: list[float]) -> list[str]:
    return [name, str(len(wrong)), f"{1 - wrong.mean():.0%}", *(f"{figure:.3f}" for figure in figures)]


def requests_table(rows: Answers, orders: int) -> Iterator[list[str]]:
    """What becomes of mixed requests; in the first span, without a guard."""
    surprises = -rows.statistics[:, rows.known.index(STATISTIC)]
    answered, wrong = [], []
    for order in range(orders):
        drawn = np.random.default_rng(order).permutation(len(rows))[: SPANS[-1][1]]
        with tempfile.TemporaryDirectory() as folder:
            profile, ranks = RollingProfile(Path(folder) / "profile.db"), []
            for surprise in surprises[drawn].tolist():
                ranks.append(profile.rank(surprise, "benchmark"))
                profile.add(surprise, "benchmark")
            profile.close()
        known = np.array(ranks)
        answered.append(np.isnan(known) | (known < SUREST))
        wrong.append(rows.wrong[drawn])
    given, bad = np.array(answered), np.array(wrong)
    for start, end in SPANS:
        of_span, bad_of_span = given[:, start:end], bad[:, start:end]
        yield [
            f"{start + 1} to {end}",
            f"{of_span.mean():.1%}",
            f"{bad_of_span[of_span].mean():.1%}",
            f"{bad_of_span.mean():.1%}",
        ]


def main(
    harvests: Annotated[list[Path], typer.Argument(help="Tables of labelled answers of one model.")],
    orders: Annotated[int, typer.Option(help="Orders of the requests.")] = 20,
) -> None:
    """Measure the score of a tier without a bundle."""
    rows = first_rows(read_answers(harvests))
    for name, headings, table in (
        ("cold_start", HEADINGS, list(statistics_table(rows))),
        ("cold_start_requests", REQUEST_HEADINGS, list(requests_table(rows, orders))),
    ):
        with (FOLDER / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([headings, *table])
        show(name, headings, table)


if __name__ == "__main__":
    typer.run(main)
