"""Output statistics, probes and scores without labels beside a bundle, given all that it is given."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from benchmarks.learning_curve.__main__ import run
from benchmarks.learning_curve.comparison import BEST_PROBE, BEST_UNSUPERVISED, comparison, headings
from benchmarks.learning_curve.figures import CurveFigure
from benchmarks.learning_curve.left_out import Source, leave_out, sources_in
from benchmarks.learning_curve.rivals import (
    OUTPUT_STATISTICS,
    PROBES,
    ProfiledRival,
    Rival,
    fit_rivals,
    normalised,
    with_improbability,
)
from benchmarks.learning_curve.trials import BUNDLE, IMPROBABILITY, OBSERVED, Draw, Setting, Sizes
from ilis_guard.errors import FitError
from ilis_guard.lab.attempts import Answers
from ilis_guard.lab.baselines import probes
from ilis_guard.lab.baselines.observations import SITES
from ilis_guard.lab.evaluation.bootstrap import MEAN
from ilis_guard.scoring.traffic import FARTHEST
from ilis_guard.types import STATISTICS
from tests.lab.synthetic import observed_answers, synthetic_answers, write_harvest, write_observations

LOGPROBS = [STATISTICS.index("logprob_sum"), STATISTICS.index("logprob_mean")]
SIZES = Sizes(profiles=(0, 20), labels=(25,), sampled=(), pool=60, tested=60)
SETS = {
    name: observed_answers(synthetic_answers({name: 120}, seed=seed), seed=seed, away=4.0 * seed)
    for seed, name in enumerate(("alpha", "beta"))
}


@pytest.fixture(autouse=True, scope="module")
def short_training() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "MOST_EPOCHS", 2)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("rivals")
    harvests, observations = folder / "harvests", folder / "observations"
    for each in (harvests, observations):
        each.mkdir()
    for name, rows in SETS.items():
        path = write_harvest(rows, harvests / f"{name}.parquet")
        write_observations(rows, path, observations / f"{name}.parquet")
    return harvests, observations


@pytest.fixture(scope="module")
def found(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[CurveFigure]:
    mpl.use("Agg")
    to, harvests, observations = tmp_path_factory.mktemp("to"), *folders
    return run(harvests, to / "curve.csv", to / "bundles", SIZES, draws=1, observations=observations, samplers=False)


def joined(sets: Mapping[str, Answers]) -> tuple[Answers, np.ndarray]:
    parts = list(sets.values())
    first = parts[0]
    rows = replace(
        first,
        ids=np.concatenate([part.ids for part in parts]),
        datasets=np.concatenate([part.datasets for part in parts]),
        wrong=np.concatenate([part.wrong for part in parts]),
        signatures={name: np.concatenate([part.signatures[name] for part in parts]) for name in first.signatures},
        statistics=np.concatenate([part.statistics for part in parts]),
        unsupervised={},
        activations={site: np.concatenate([(part.activations or {})[site] for part in parts]) for site in SITES},
        lens=np.concatenate([part.lens for part in parts if part.lens is not None]),
    )
    return rows, np.repeat(np.arange(len(parts)), [len(part) for part in parts])


def standard(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    units: np.ndarray = (values - of.mean(axis=0)) / of.std(axis=0)
    return units


@pytest.fixture(scope="module")
def rivals() -> dict[str, Rival]:
    return {rival.name: rival for rival in fit_rivals(*joined(SETS))}


def test_output_statistics_and_all_probes_are_there(rivals: dict[str, Rival]) -> None:
    assert tuple(rivals) == (OUTPUT_STATISTICS, "probe-mlp", "probe-residual", "saplma", "trilens")
    assert tuple(rivals)[1:] == PROBES
    bare = replace(joined(SETS)[0], unsupervised=None, activations=None, lens=None)
    assert [rival.name for rival in fit_rivals(bare, joined(SETS)[1])] == [OUTPUT_STATISTICS]


def test_statistics_with_a_profile_are_a_regression_on_sets_each_in_its_own_units(rivals: dict[str, Rival]) -> None:
    target, profile = observed_answers(synthetic_answers({"new": 90}, seed=5), away=2.0), np.arange(20)
    wrong = np.concatenate([rows.wrong for rows in SETS.values()])
    known = np.concatenate([standard(rows.statistics, rows.statistics) for rows in SETS.values()])
    model = LogisticRegression().fit(known, wrong)
    expected = model.predict_proba(standard(target.statistics, target.statistics[profile]))[:, 1]
    profiled = rivals[OUTPUT_STATISTICS].profiled(target, profile)
    np.testing.assert_allclose(profiled.alone, expected, atol=1e-6)
    own = standard(logit(expected), logit(expected)[profile])
    logprobs = standard(target.statistics, target.statistics[profile])[:, LOGPROBS]
    np.testing.assert_allclose(profiled.prior, expit(own - logprobs.sum(axis=1)), atol=1e-6)
    everything = np.concatenate([rows.statistics for rows in SETS.values()])
    raw = LogisticRegression().fit(standard(everything, everything), wrong)
    np.testing.assert_allclose(
        rivals[OUTPUT_STATISTICS].without_profile(target),
        raw.predict_proba(standard(target.statistics, everything))[:, 1],
        atol=1e-6,
    )


@pytest.mark.parametrize("name", PROBES)
def test_a_profile_gives_probes_a_set_that_lies_elsewhere(rivals: dict[str, Rival], name: str) -> None:
    target = observed_answers(synthetic_answers({"new": 200}, seed=6), seed=7, away=-9.0)
    assert target.activations is not None
    assert target.lens is not None
    stretched = replace(
        target,
        activations={site: (8 * layers).astype(np.float16) for site, layers in target.activations.items()},
        lens=8 * target.lens,
    )
    profile = np.arange(50)
    alone = rivals[name].profiled(target, profile).alone
    assert roc_auc_score(target.wrong, alone) > 0.9
    # In its own units it's as if it hadn't been stretched; as it is, it isn't.
    np.testing.assert_allclose(rivals[name].profiled(stretched, profile).alone, alone, atol=0.02)
    raw, of_stretched = map(rivals[name].without_profile, (target, stretched))
    assert np.abs(raw - of_stretched).mean() > 0.02


def test_a_profile_is_measured_on_its_rows_alone() -> None:
    values, profile = np.random.default_rng(0).normal(3, 2, size=(50, 4)).astype(np.float32), np.arange(30)
    values[:, 0] = 7.0  # tells nothing in this traffic
    values[-1, 1] = 1e6
    units = normalised(values, values[profile])
    np.testing.assert_allclose(units[:, 2:], standard(values[:, 2:], values[profile, 2:]), rtol=1e-4, atol=1e-5)
    assert (units[:, 0] == 0).all()
    assert units[-1, 1] == FARTHEST


def test_improbability_is_added_to_log_odds_in_units_of_the_profile() -> None:
    statistics = np.full((4, len(STATISTICS)), 9.0)
    statistics[:, LOGPROBS] = [[1.0, 2.0], [-1.0, 0.5], [-3.0, 0.0], [0.0, -1.0]]
    alone = expit(np.array([0.0, 2.0, 1.0, 4.0]))
    # Of the first two rows, the log-odds 0 and 2 have the mean 1 and the spread 1.
    fused = with_improbability(alone, statistics, np.array([0, 1]))
    np.testing.assert_allclose(logit(fused), [-1 - 3, 1 + 0.5, 0 + 3, 3 + 1], atol=1e-9)


def test_labels_are_learned_from_statistics_and_the_probes_own_numbers() -> None:
    random = np.random.default_rng(0)
    wrong = random.random(200) < 0.5
    numbers = random.normal(size=(200, 30))
    numbers[:, :3] += 1.5 * (2.0 * wrong[:, None] - 1)
    rival = ProfiledRival(
        alone=np.full(200, 0.5),
        prior=np.clip(random.random(200), 0.01, 0.99),
        statistics=random.normal(size=(200, 4)) + wrong[:, None],
        numbers=numbers,
    )
    rows = np.arange(60)
    learned = rival.corrected(rows, wrong[rows], 0.4)
    assert len(learned.correction.features) == 4 + 30
    assert learned.kept.tolist() == list(range(36, 60))
    expected = expit(
        learned.correction.intercept
        + learned.correction.score * logit(rival.prior)
        + np.hstack([rival.statistics, numbers]) @ np.array(learned.correction.features)
    )
    np.testing.assert_allclose(learned.raw, expected, atol=1e-9)
    assert roc_auc_score(wrong[60:], rival.prior[60:]) < 0.65
    assert roc_auc_score(wrong[60:], learned.raw[60:]) > 0.85
    assert abs(learned.uncertainty[60:].mean() - wrong[60:].mean()) < 0.15
    without = replace(rival, numbers=None).corrected(rows, wrong[rows], 0.0)
    assert len(without.correction.features) == 4
    with pytest.raises(FitError, match="of 10 labels 10 are wrong"):
        rival.corrected(rows[:10], np.ones(10, dtype=bool), 0.0)


def test_every_rival_has_a_figure_wherever_the_bundle_has_one(found: list[CurveFigure]) -> None:
    def settings(method: str) -> set[Setting]:
        return {replace(one.setting, method="") for one in found if one.setting.method == method}

    for method in (OUTPUT_STATISTICS, *PROBES):
        assert settings(method) == settings(BUNDLE)
        assert settings(f"{method} + improbability") == {Setting(method="", profile=20)}
    assert settings(IMPROBABILITY) == {Setting(method="", profile=20)}
    for score in OBSERVED:
        assert settings(score) == {Setting(method="")}
    assert {"rauq", "p_true", "layer_information"} <= set(OBSERVED)


def test_figures_of_scores_without_labels_are_those_of_the_tested_rows(found: list[CurveFigure]) -> None:
    rows, tested = SETS["beta"], np.random.default_rng(0).permutation(120)[60:]
    assert rows.unsupervised is not None
    (one,) = [
        one for one in found if (one.setting.method, one.name, one.left_out) == ("layer_information", "auroc", "beta")
    ]
    assert one.value == pytest.approx(roc_auc_score(rows.wrong[tested], rows.unsupervised["layer_information"][tested]))


def test_improbability_alone_is_measured_in_units_of_the_profile(found: list[CurveFigure]) -> None:
    rows, order = SETS["beta"], np.random.default_rng(0).permutation(120)
    logprobs = standard(rows.statistics, rows.statistics[order[:20]])[:, LOGPROBS]
    wanted = roc_auc_score(rows.wrong[order[60:]], -logprobs.sum(axis=1)[order[60:]])
    (one,) = [one for one in found if (one.setting.method, one.name, one.left_out) == (IMPROBABILITY, "auroc", "beta")]
    assert one.value == pytest.approx(wanted)


def test_labels_that_teach_nothing_leave_what_was_known_without_them(folders: tuple[Path, Path]) -> None:
    left_out = leave_out("beta", sources_in(folders[0]), folders[0] / "bundles")
    order = np.random.default_rng(0).permutation(120)
    never_wrong = replace(left_out, rows=replace(left_out.rows, wrong=np.zeros(120, dtype=bool)))
    trials = {trial.setting: trial for trial in Draw(never_wrong, SIZES, 0).labelled()}
    assert all(trial.refused and not np.any(trial.answered) for trial in trials.values())
    (rival,) = left_out.rivals
    profiled = rival.profiled(left_out.answers, order[:60])
    one = trials[Setting(method=OUTPUT_STATISTICS, labels=25, profile=60)]
    np.testing.assert_array_equal(one.raw, profiled.prior[order[60:]])
    np.testing.assert_array_equal(one.probability, profiled.alone[order[60:]])


def test_the_comparison_names_the_best_of_each_kind() -> None:
    def figure(value: float, **setting: object) -> CurveFigure:
        return CurveFigure(setting=Setting(**setting), name="auroc", left_out=MEAN, value=value)  # type: ignore[arg-type]  # by name

    found = [
        figure(0.71, method="perplexity"),
        figure(0.74, method="rauq"),
        figure(0.70, method=BUNDLE),
        figure(0.75, method=BUNDLE, profile=20),
        figure(0.73, method=IMPROBABILITY, profile=20),
        figure(0.81, method=BUNDLE, labels=25, profile=60),
        figure(0.66, method="saplma"),
        figure(0.69, method="saplma", profile=20),
        figure(0.62, method="trilens"),
        figure(0.72, method="trilens", profile=20),
        figure(0.76, method="trilens + improbability", profile=20),
    ]
    assert headings(SIZES) == ["method", "as it is", "profile 20", "20 + improbability", "25 labels"]
    assert comparison(found, SIZES) == [
        [BUNDLE, "0.700", "", "0.750", "0.810"],
        [f"{BEST_UNSUPERVISED}: rauq", "0.740", "", "", ""],
        [BEST_PROBE, "0.660", "0.720", "0.760", ""],
        [IMPROBABILITY, "", "", "0.730", ""],
        ["saplma", "0.660", "0.690", "", ""],
        ["trilens", "0.620", "0.720", "0.760", ""],
    ]


def test_a_set_that_was_not_observed_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    harvests, observations = folders
    (tmp_path / "alpha.parquet").write_bytes((observations / "alpha.parquet").read_bytes())
    with pytest.raises(FitError, match="has no observations of 'beta': run `ilis-guard observe`"):
        sources_in(harvests, tmp_path)
    swapped = Source(harvest=harvests / "beta.parquet", observations=observations / "alpha.parquet")
    with pytest.raises(FitError, match="aren't the observations of"):
        swapped.answers()
