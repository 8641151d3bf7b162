import contextlib
from dataclasses import replace
from pathlib import Path

import lightgbm
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss

from ilis_guard.errors import FitError
from ilis_guard.lab import fit as module, metrics, tuning
from ilis_guard.lab.attempts import Answers
from ilis_guard.lab.fit import fit
from ilis_guard.lab.splits import check_splits, split
from ilis_guard.lab.typicality import typicality_reference
from ilis_guard.scoring import Bundle, BundleMetadata, LightGBMScorer, read_bundle
from ilis_guard.scoring.blended_trees import BlendedTrees
from ilis_guard.scoring.bundle import Split
from ilis_guard.scoring.columns import Block, Columns, columns_of
from ilis_guard.scoring.features import feature_count
from ilis_guard.scoring.typicality import TypicalityEstimator, typicality_columns
from ilis_guard.types import Fingerprint, Generation, Position, Statistics
from tests.lab.synthetic import harvest_manifest

pytestmark = pytest.mark.usefixtures("fitted_model", "few_resamples")

LAYERS = 6
FINGERPRINT = Fingerprint(
    weights="ab",
    precision="nf4",
    dtype="float32",
    layers=LAYERS,
    hidden=9,
    site="mlp",
    taps="layers.*.mlp",
    temperature=1.0,
    decoding="greedy",
    prompt="cd",
)
MANIFEST = harvest_manifest(FINGERPRINT)


def made(
    count: int,
    seed: int = 0,
    *,
    signal: float = 0.0,
    told: float = 0.0,
    share: float = 0.5,
    datasets: tuple[str, ...] = ("capital", "city"),
) -> Answers:
    """Rows of which the maps tell (`signal`) and the output statistics tell (`told`) whether they are wrong."""
    random = np.random.default_rng(seed)
    wrong = np.zeros(count, dtype=bool)
    wrong[: round(count * share)] = True
    random.shuffle(wrong)

    def maps(away: float) -> np.ndarray:
        logs = random.normal(size=(count, LAYERS, LAYERS)) + away * wrong[:, None, None]
        return (np.exp(logs) * (1 - np.eye(LAYERS))).astype(np.float32)

    return Answers(
        manifest=MANIFEST,
        ids=np.array([f"q{number}" for number in range(count)], dtype=object),
        datasets=np.array([datasets[number % len(datasets)] for number in range(count)]),
        wrong=wrong,
        signatures={"prompt": maps(0), "last": maps(signal), "mean": maps(signal)},
        statistics=random.normal(size=(count, 4)) + told * wrong[:, None],
        unanswered=7,
    )


def generation(rows: Answers, index: int) -> Generation:
    total, mean, entropy, margin = rows.statistics[index].tolist()
    return Generation(
        text="",
        tokens=1,
        prompt_tokens=1,
        finish_reason="stop",
        seconds=0,
        signatures={position: maps[index] for position, maps in rows.signatures.items()},
        statistics=Statistics(logprob_sum=total, logprob_mean=mean, entropy_mean=entropy, margin_min=margin),
    )


def normalised(rows: Answers, bundle: Bundle) -> Columns:
    """Columns in units of a bundle's traffic, of one kind as all prompts here are."""
    columns = columns_of(bundle.metadata.features, "answer", rows.signatures, rows.statistics, rows.known)
    (kind,) = bundle.traffic.kinds
    blocks = {}
    for block, values in columns.blocks.items():
        mean, spread = np.array(kind.moments[block].mean), np.array(kind.moments[block].spread)
        assert (spread > 0).all()
        blocks[block] = np.clip((values - mean) * (1 / spread), -20, 20)
    blocks["features"] = np.hstack([columns.blocks["features"], blocks["features"]])
    return replace(columns, blocks=blocks)


ROWS = made(600, signal=0.6)
Fitted = tuple[BundleMetadata, Path]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    folder = tmp_path_factory.mktemp("fit") / "bundle"
    return fit(ROWS, folder), folder


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def altered(rows: Answers, where: np.ndarray) -> Answers:
    """The same rows, but all that is known of those is other: outcomes turned, maps and statistics swapped about.

    Of every third: if all were turned, the score would rank them the wrong way round, which is refused.
    """
    random = np.random.default_rng(99)
    chosen = np.flatnonzero(where)
    signatures: dict[Position, np.ndarray] = {position: maps.copy() for position, maps in rows.signatures.items()}
    for maps in signatures.values():
        maps[chosen] = 3 * maps[random.permutation(chosen)]
    statistics = rows.statistics.copy()
    statistics[chosen] = 3 * statistics[random.permutation(chosen)]
    turned = np.zeros_like(where)
    turned[chosen[::3]] = True
    return replace(rows, signatures=signatures, statistics=statistics, wrong=rows.wrong ^ turned)


def test_a_signal_in_the_maps_is_learned_and_not_by_the_baseline(fitted: Fitted) -> None:
    metadata, _ = fitted
    assert metadata.held_out.auroc.low > 0.75
    assert metadata.held_out.auroc.low > metadata.baseline.auroc.high
    assert metadata.held_out.brier_skill.low > 0.1
    assert metadata.baseline.auroc.low < 0.5 < metadata.baseline.auroc.high


def test_a_signal_in_the_statistics_is_learned_by_both(tmp_path: Path) -> None:
    metadata = fit(made(600, 1, told=1.5), tmp_path / "bundle")
    assert metadata.held_out.auroc.low > 0.8
    assert metadata.baseline.auroc.low > 0.8


def test_from_noise_nothing_is_learned(tmp_path: Path) -> None:
    """Figures near chance, or a refusal: anything better would be a leak."""
    figures = []
    for seed in range(9):
        with contextlib.suppress(FitError):  # nothing was learned
            figures.append(fit(made(300, seed), tmp_path / str(seed), seed=seed, accept=True).held_out.auroc)
    assert len(figures) >= 3
    # One interval in twenty misses.
    assert sum(not figure.low < 0.5 < figure.high for figure in figures) <= 1
    assert abs(np.mean([figure.value for figure in figures]) - 0.5) < 0.1


@pytest.mark.parametrize(
    ("part", "unchanged"),
    [
        ("test", {"trees.txt", "calibration.json", "traffic.json"}),
        ("calibration", {"trees.txt", "traffic.json"}),
        # They choose the features, whose columns the traffic profile has.
        ("validation", set()),
    ],
)
def test_rows_of_a_split_only_affect_its_part_of_the_bundle(
    part: Split, unchanged: set[str], fitted: Fitted, tmp_path: Path
) -> None:
    where = split(ROWS.datasets, 0)[part]
    fit(altered(ROWS, where), tmp_path / "bundle", accept=True)
    before, after = files(fitted[1]), files(tmp_path / "bundle")
    assert {name for name in before if before[name] == after[name]} == unchanged
    known, learned = (read_bundle(str(folder)) for folder in (fitted[1], tmp_path / "bundle"))
    grown = ("features", "candidates", "blending")
    is_grown = all(getattr(known.metadata, name) == getattr(learned.metadata, name) for name in grown)
    assert is_grown == ("trees.txt" in unchanged)
    blocks: tuple[Block, ...] = ("typicality", "logprobs")
    for block in blocks:
        assert known.traffic.kinds[0].moments[block] == learned.traffic.kinds[0].moments[block]
    assert known.traffic.prompts == learned.traffic.prompts


def test_the_typicality_reference_ignores_other_splits_and_outcomes(fitted: Fitted) -> None:
    splits = split(ROWS.datasets, 0)
    bundle = read_bundle(str(fitted[1]))
    reference = bundle.calibration_set.typicality
    other = altered(ROWS, splits["test"] | splits["validation"])
    columns = normalised(other, bundle).blocks["typicality"]
    assert typicality_reference(columns, splits["train"], splits["calibration"]) == reference
    assert len(reference.distances) == splits["calibration"].sum()


def test_the_traffic_profile_is_measured_on_train_rows_alone(fitted: Fitted) -> None:
    bundle, train = read_bundle(str(fitted[1])), split(ROWS.datasets, 0)["train"]
    columns = columns_of(bundle.metadata.features, "answer", ROWS.signatures, ROWS.statistics, ROWS.known)
    (kind,) = bundle.traffic.kinds
    assert (kind.name, kind.rows, kind.centre, bundle.traffic.label) == ("all", train.sum(), (), None)
    assert kind.moments.keys() == columns.blocks.keys() == {"features", "typicality", "logprobs"}
    for block, moments in kind.moments.items():
        known = columns.blocks[block][train]
        np.testing.assert_allclose(moments.mean, known.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(moments.spread, known.std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(bundle.traffic.prompts.mean, columns.prompt[train].mean(axis=0), rtol=1e-5)


def test_the_reference_is_fitted_to_train_rows_alone() -> None:
    train, calibration = (split(ROWS.datasets, 0)[name] for name in ("train", "calibration"))
    before = typicality_reference(typicality_columns(ROWS.signatures, "answer"), train, calibration)
    after = typicality_reference(
        typicality_columns(altered(ROWS, calibration).signatures, "answer"), train, calibration
    )
    assert (after.mean, after.precision) == (before.mean, before.precision)
    assert after.distances != before.distances


def test_the_baseline_does_not_look_at_test_rows() -> None:
    test = split(ROWS.datasets, 0)["test"]
    other = altered(ROWS, test)
    before = module._baseline(ROWS.statistics, ROWS.wrong, ~test)
    after = module._baseline(other.statistics, other.wrong, ~test)
    np.testing.assert_array_equal(after[~test], before[~test])
    assert (after[test] != before[test]).any()


def test_training_stops_where_the_validation_rows_are_told_apart_best(tmp_path: Path) -> None:
    rows = made(600, 7, signal=0.3)
    fit(rows, tmp_path / "bundle")
    bundle = read_bundle(str(tmp_path / "bundle"))
    validation = split(rows.datasets, 0)["validation"]
    features = normalised(rows, bundle).blocks["features"][validation]
    booster = lightgbm.Booster(model_str=bundle.trees)
    losses = [
        log_loss(rows.wrong[validation], np.asarray(booster.predict(features, num_iteration=trees)))
        for trees in range(1, booster.num_trees() + 1)
    ]
    assert 1 < len(losses) <= tuning.MOST_TREES - tuning.PATIENCE
    assert np.argmin(losses) == len(losses) - 1


def test_fitting_twice_gives_the_same_bytes(fitted: Fitted, tmp_path: Path) -> None:
    metadata, folder = fitted
    assert fit(ROWS, tmp_path / "again") == metadata
    assert files(tmp_path / "again") == files(folder)


def test_another_seed_splits_and_fits_otherwise(fitted: Fitted, tmp_path: Path) -> None:
    fit(ROWS, tmp_path / "other", seed=1)
    assert not set(files(tmp_path / "other").values()) & set(files(fitted[1]).values())


def test_the_bundle_read_back_scores_rows_as_the_fit_did(fitted: Fitted) -> None:
    metadata, folder = fitted
    bundle = read_bundle(str(folder))
    scorer = LightGBMScorer(bundle)
    uncertainty = np.array([scorer.score(generation(ROWS, index)).uncertainty for index in range(len(ROWS.ids))])
    splits = split(ROWS.datasets, 0)

    calibration = splits["calibration"]
    assert tuple(uncertainty[calibration].tolist()) == bundle.calibration_set.uncertainty
    assert tuple(ROWS.wrong[calibration].tolist()) == bundle.calibration_set.wrong
    trees = BlendedTrees(
        lightgbm.Booster(model_str=bundle.trees),
        blending=metadata.blending,
    )
    raw = trees.raw_scores(normalised(ROWS, bundle))
    assert module.calibrate(raw[calibration], ROWS.wrong[calibration]) == metadata.calibration
    assert tuple(metadata.calibration.apply(raw)[calibration].tolist()) == bundle.calibration_set.uncertainty

    held_out = metrics.held_out(ROWS.wrong[splits["test"]], uncertainty[splits["test"]], ROWS.datasets[splits["test"]])
    assert held_out == metadata.held_out == bundle.metadata.held_out


def test_wrong_answers_are_more_uncertain(fitted: Fitted) -> None:
    scorer = LightGBMScorer(read_bundle(str(fitted[1])))
    fresh = made(60, 5, signal=0.6)
    uncertainty = np.array([scorer.score(generation(fresh, index)).uncertainty for index in range(60)])
    assert uncertainty[fresh.wrong].mean() > 0.6
    assert uncertainty[~fresh.wrong].mean() < 0.4


def test_uncertainty_is_the_share_of_wrong_answers_on_rows_never_seen(fitted: Fitted) -> None:
    scorer = LightGBMScorer(read_bundle(str(fitted[1])))
    fresh = made(1500, 6, signal=0.6)
    uncertainty = np.array([scorer.score(generation(fresh, index)).uncertainty for index in range(1500)])
    for low, high in ((0, 0.25), (0.25, 0.75), (0.75, 1)):
        inside = (uncertainty >= low) & (uncertainty <= high)
        assert inside.sum() > 100
        assert fresh.wrong[inside].mean() == pytest.approx(uncertainty[inside].mean(), abs=0.12)


def test_the_metadata_counts_every_row_and_repeats_the_manifest(fitted: Fitted) -> None:
    metadata, _ = fitted
    splits = {"train": 300, "validation": 60, "calibration": 120, "test": 120}
    assert metadata.rows == splits | {"unanswered": 7, "rare_wordings": 0}
    assert {name: known.rows for name, known in metadata.datasets.items()} == {"capital": 300, "city": 300}
    assert sum(known.right for known in metadata.datasets.values()) == (~ROWS.wrong).sum()
    assert metadata.held_out.rows == metadata.baseline.rows == 120
    assert (metadata.model, metadata.fingerprint, metadata.prompt) == ("packaged:fake", FINGERPRINT, "{question}")
    assert metadata.max_new_tokens == 8
    assert metadata.versions.keys() == {"python", "lightgbm"}


def test_at_stage_prompt_the_prompts_map_is_all_that_is_learned_from(tmp_path: Path) -> None:
    """The answers' maps tell right from wrong here, and the prompts' are made to tell too."""
    rows = made(600, signal=0.6)
    known = {**rows.signatures, "prompt": rows.signatures["mean"]}
    learned = fit(replace(rows, signatures=known), tmp_path / "learned", stage="prompt")
    assert learned.stage == "prompt"
    assert learned.features in module.FEATURES["prompt"]
    assert len(learned.blending.linear) == feature_count(learned.features, layers=LAYERS, statistics=4)
    assert learned.held_out.auroc.low > 0.8
    bundle = read_bundle(str(tmp_path / "learned"))
    assert len(bundle.calibration_set.typicality.mean) == LAYERS - 1
    shuffled = {**known, "mean": known["mean"][::-1].copy(), "last": known["last"][::-1].copy()}
    fit(replace(rows, signatures=shuffled), tmp_path / "same", stage="prompt")
    assert files(tmp_path / "same") == files(tmp_path / "learned")


@pytest.mark.parametrize("share", [49 / 200, 151 / 200])
def test_too_few_of_a_class_are_refused_with_counts_and_nothing_is_written(share: float, tmp_path: Path) -> None:
    rows = made(200, share=share)
    right, wrong = int((~rows.wrong).sum()), int(rows.wrong.sum())
    with pytest.raises(FitError, match=f"of 200 scored answers {right} are right and {wrong} wrong.* at least 50"):
        fit(rows, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_fifty_of_a_class_are_enough(tmp_path: Path) -> None:
    rows = made(200, 2, signal=1.5, share=0.25)
    assert fit(rows, tmp_path / "bundle", accept=True).held_out.auroc.value > 0.7


def test_a_split_of_one_class_is_refused_with_counts() -> None:
    wrong = np.arange(10) < 5
    splits: dict[Split, np.ndarray] = {"train": np.arange(10) % 2 == 0, "validation": np.arange(10) >= 7}
    with pytest.raises(FitError, match="the validation rows hold 3 right and 0 wrong answers"):
        check_splits(wrong, splits)


@pytest.mark.parametrize("name", ["prompt", "last", "mean", "statistics"])
def test_numbers_that_are_not_finite_are_refused_with_their_place(name: str, tmp_path: Path) -> None:
    rows = made(200)
    (column,) = (each for other, each in (*rows.signatures.items(), ("statistics", rows.statistics)) if other == name)
    column[17] = np.nan
    column[40].flat[0] = np.inf
    with pytest.raises(FitError, match=f"2 rows hold numbers in '{name}' that aren't finite, such as 'q17'"):
        fit(rows, tmp_path / "bundle")


def test_datasets_of_a_few_rows_are_fitted_too(tmp_path: Path) -> None:
    rows = made(300, 3, signal=1.0)
    small = ("one", *("two",) * 2, *("three",) * 3, *("four",) * 4)
    metadata = fit(replace(rows, datasets=np.array([*small, *["large"] * (300 - len(small))])), tmp_path / "bundle")
    found = {name: known.rows for name, known in metadata.datasets.items()}
    assert found == {"one": 1, "two": 2, "three": 3, "four": 4, "large": 290}
    assert sum(metadata.rows.values()) == 300 + rows.unanswered


def parts(rows: Answers, *ends: int) -> list[np.ndarray]:
    place = np.arange(len(rows.ids))
    return [(place >= start) & (place < end) for start, end in zip((0, *ends), (*ends, len(place)), strict=True)]


def test_typicality_is_uniform_where_rows_are_exchangeable() -> None:
    """With few training rows, their own distances would be far too small to compare with."""
    rows = made(4000)
    train, calibration, test = parts(rows, 40, 2500)
    detector = TypicalityEstimator(
        typicality_reference(typicality_columns(rows.signatures, "answer"), train, calibration)
    )
    typicality = detector.typicality(typicality_columns(rows.signatures, "answer")[test])
    assert stats.kstest(typicality, "uniform").pvalue > 0.05
    assert (typicality < 0.05).mean() == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("factor", [0.25, 4.0])
@pytest.mark.parametrize("position", ["prompt", "mean"])
def test_typicality_is_small_where_maps_are_clearly_others(position: Position, factor: float) -> None:
    rows = made(1000)
    train, calibration, test = parts(rows, 500, 900)
    detector = TypicalityEstimator(
        typicality_reference(typicality_columns(rows.signatures, "answer"), train, calibration)
    )
    maps: dict[Position, np.ndarray] = {name: each[test] for name, each in rows.signatures.items()}
    assert np.median(detector.typicality(typicality_columns(maps, "answer"))) > 0.3
    maps[position] = maps[position] * np.float32(factor)
    assert np.median(detector.typicality(typicality_columns(maps, "answer"))) < 0.02


def test_datasets_of_extreme_accuracy_train_but_do_not_count(
    tmp_path: Path,
) -> None:
    names = ROWS.datasets
    rows = replace(ROWS, datasets=np.where(ROWS.wrong & (np.arange(len(names)) % 3 == 0), "hopeless", names))
    metadata = fit(rows, tmp_path / "bundle")
    assert {name: known.counted for name, known in metadata.datasets.items()} == {
        "capital": True,
        "city": True,
        "hopeless": False,
    }
    assert metadata.held_out.rows == metadata.baseline.rows < metadata.rows["test"]
    assert sum(metadata.rows[split] for split in ("train", "validation", "calibration", "test")) == len(names)


def test_where_no_dataset_would_count_all_do(tmp_path: Path) -> None:
    names = np.where(ROWS.wrong, "wrong", "right")
    metadata = fit(replace(ROWS, datasets=names), tmp_path / "bundle")
    assert all(known.counted for known in metadata.datasets.values())
    assert metadata.held_out.rows == metadata.rows["test"]


def test_typical_maps_are_those_of_the_calibration_rows(tmp_path: Path) -> None:
    harvest = made(600, signal=2.0)
    fit(harvest, tmp_path / "bundle")
    typical = read_bundle(str(tmp_path / "bundle")).calibration_set.typical
    assert typical is not None
    calibration = split(harvest.datasets, 0)["calibration"]
    for outcome, found in ((False, typical.right), (True, typical.wrong)):
        rows = harvest.signatures["mean"][calibration & (harvest.wrong == outcome)].astype(np.float64)
        assert np.array(found) == pytest.approx(np.exp(np.log(1 + rows).mean(axis=0)) - 1, abs=1e-4)
    assert np.mean(typical.wrong) > 2 * np.mean(typical.right)
