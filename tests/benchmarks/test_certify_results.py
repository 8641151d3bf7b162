import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.certify.populations import POPULATIONS, Population
from ilis_guard.scoring import certify

ROOT = Path(__file__).parents[2]
HOPELESS = "a little too wrong everywhere"
"""Whatever is answered there is answered by mistake."""


def results() -> list[dict[str, str]]:
    with (ROOT / "benchmarks" / "results" / "certify.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "threshold", "coverage", "error"),
    [
        ("well ranked", 0.5, 0.5, 0.5**3 / 4),
        ("well ranked", None, 0, 0),
        ("well ranked, ten values", 0.55, 0.5, 0.5**3 / 4),
        ("badly ranked", 1.0, 1.0, 0.13),
        ("mostly wrong", 0.2, 0.2, 0.04),
        ("the surest 2 % half wrong", 0.01, 0.01, 0.5),
        ("all wrong beyond 0.4", 0.8, 0.8, 0.5),
        (HOPELESS, 0.3, 0.3, 0.1001),
    ],
)
def test_the_truth_of_a_threshold_is_that_of_its_integral(
    name: str, threshold: float | None, coverage: float, error: float
) -> None:
    (population,) = (each for each in POPULATIONS if each.name == name)
    assert population.truth(threshold) == pytest.approx((coverage, error), abs=1e-5)


@pytest.mark.parametrize("population", POPULATIONS, ids=lambda population: population.name)
def test_samples_have_the_rates_of_the_population(population: Population) -> None:
    random = np.random.default_rng(0)
    sets = [population.draw(random) for _ in range(40)]
    uncertainty, wrong = (np.concatenate([one[part] for one in sets]) for part in (0, 1))
    answered = uncertainty <= 0.5
    coverage, error = population.truth(0.5)
    assert abs(answered.mean() - coverage) < 5 * np.sqrt(coverage * (1 - coverage) / len(wrong))
    assert abs(wrong[answered].mean() - error) < 5 * np.sqrt(max(error * (1 - error), 1e-6) / answered.sum())


def test_the_committed_results_keep_the_promise() -> None:
    by_population: dict[str, dict[str, dict[str, str]]] = {}
    for row in results():
        by_population.setdefault(row["population"], {})[row["method"]] = row
    assert set(by_population) == {population.name for population in POPULATIONS}
    for name, methods in by_population.items():
        ours = methods.pop("ilis_guard")
        assert float(ours["broken"]) <= binom.ppf(0.9999, int(ours["draws"]), 0.1) / int(ours["draws"])
        assert len(methods) == 3
        if name != HOPELESS:
            assert all(float(ours["coverage"]) >= float(theirs["coverage"]) for theirs in methods.values())


def test_the_committed_results_are_reproduced() -> None:
    """The first draws of a full run, again: a changed method needs changed results."""
    (population,) = (each for each in POPULATIONS if each.name == "well ranked, few rows")
    random = np.random.default_rng(0)
    thresholds = [certify(*population.draw(random), max_error=0.1, confidence=0.9).threshold for _ in range(1000)]
    (row,) = (each for each in results() if (each["population"], each["method"]) == (population.name, "ilis_guard"))
    coverage = np.mean([population.truth(threshold)[0] for threshold in thresholds])
    assert f"{coverage:.4f}" == row["coverage"]


def test_the_figures_in_the_documentation_are_those_of_the_results() -> None:
    text = (ROOT / "docs" / "risk-control.md").read_text()
    for row in results():
        assert f"{100 * float(row['coverage']):.1f} % ({100 * float(row['broken']):.1f} %)" in text
