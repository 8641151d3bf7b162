"""Kinds of requests are found by their prompts' maps, and each kind's traffic is measured alone."""

import dataclasses

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from ilis_guard.errors import ProfileError
from ilis_guard.lab.adapt import adapt
from ilis_guard.lab.attempts import Answers
from ilis_guard.lab.traffic import HomeTraffic, check_traffic, profile_by_label, profile_by_prompts
from ilis_guard.scoring import Bundle, LightGBMScorer
from ilis_guard.scoring.columns import Columns
from ilis_guard.scoring.features import FeatureGroup
from ilis_guard.scoring.traffic import Moments, Normaliser
from ilis_guard.types import Position
from tests.lab.synthetic import synthetic_answers
from tests.lab.test_adapt import ROWS, bundle, folder, traffic_of
from tests.scoring.by_hand import trees_alone

__all__ = ["bundle", "folder"]


def columns_at(*kinds: tuple[int, float], seed: int = 0, width: int = 4) -> Columns:
    """Rows of several kinds, so many of each, whose prompts lie around a place of the kind."""
    random = np.random.default_rng(seed)
    places = np.concatenate([np.full(count, place) for count, place in kinds])
    prompt = random.normal(size=(len(places), width)) + places[:, None]
    features = random.normal(size=(len(places), 3)) * (1 + np.abs(places[:, None])) + places[:, None]
    return Columns(blocks={"features": features, "typicality": features[:, :2]}, prompt=prompt)


def told_apart(columns: Columns, seed: int = 0) -> list[list[int]]:
    """The rows of each kind that is found."""
    profile = profile_by_prompts(columns, seed=seed)
    kinds = Normaliser(profile).nearest_kinds(columns.prompt)
    assert [kind.rows for kind in profile.kinds] == np.bincount(kinds, minlength=len(profile.kinds)).tolist()
    return sorted(np.flatnonzero(kinds == number).tolist() for number in range(len(profile.kinds)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kinds_whose_prompts_lie_apart_are_found(seed: int) -> None:
    columns = columns_at((60, 0.0), (40, 9.0), (25, -9.0))
    assert told_apart(columns, seed) == [list(range(60)), list(range(60, 100)), list(range(100, 125))]


def test_each_kind_found_is_measured_alone() -> None:
    columns = columns_at((60, 0.0), (40, 9.0))
    profile = profile_by_prompts(columns)
    assert sorted(kind.name for kind in profile.kinds) == ["cluster 1", "cluster 2"]
    for kind in profile.kinds:
        rows = columns.take(np.arange(100) < 60 if kind.rows == 60 else np.arange(100) >= 60)
        assert kind.moments == {name: Moments.of(values) for name, values in rows.blocks.items()}
        away = (rows.prompt.mean(axis=0) - columns.prompt.mean(axis=0)) / columns.prompt.std(axis=0)
        assert kind.centre == pytest.approx(away.tolist(), abs=1e-3)
    assert profile.prompts == Moments.of(columns.prompt)
    assert profile.label is None


def test_requests_of_one_kind_are_one_kind() -> None:
    profile = profile_by_prompts(columns_at((300, 0.0)))
    assert [(kind.name, kind.rows, kind.centre) for kind in profile.kinds] == [("all", 300, ())]


@pytest.mark.parametrize("rare", [1, 5, 19])
def test_a_kind_of_fewer_than_twenty_answers_is_none(rare: int) -> None:
    assert min(map(len, told_apart(columns_at((100, 0.0), (60, 9.0), (rare, 60.0))))) >= 20


def test_where_prompts_have_no_maps_there_is_one_kind() -> None:
    columns = columns_at((60, 0.0), (60, 9.0), width=0)
    assert [kind.name for kind in profile_by_prompts(columns).kinds] == ["all"]


@pytest.mark.parametrize("rounding", [0.0, 1e-13])
def test_equal_prompts_are_one_kind(rounding: float) -> None:
    prompt = 0.1 + rounding * (np.arange(80)[:, None] % 2) * np.ones(4)
    columns = dataclasses.replace(columns_at((80, 0.0)), prompt=prompt)
    assert [kind.name for kind in profile_by_prompts(columns).kinds] == ["all"]


@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.integers(1, 60), st.floats(-30, 30)), min_size=1, max_size=4),
    scale=st.sampled_from([1e-9, 1.0, 1e12]),
    seed=st.integers(0, 5),
)
def test_every_row_of_any_traffic_is_of_a_kind_with_enough_rows(
    kinds: list[tuple[int, float]], scale: float, seed: int
) -> None:
    columns = columns_at((30, 0.0), *kinds, seed=seed)
    found = told_apart(dataclasses.replace(columns, prompt=columns.prompt * scale))
    assert sorted(row for rows in found for row in rows) == list(range(len(columns)))
    assert all(rows for rows in found)


def test_a_label_value_with_too_few_rows_is_named() -> None:
    columns = columns_at((40, 0.0), (19, 9.0))
    with pytest.raises(ProfileError, match=r"the kind 'b' \(label 'topic'\) has 19 answers, and a kind needs 20"):
        profile_by_label(columns, "topic", ["a"] * 40 + ["b"] * 19)
    with pytest.raises(ProfileError) as caught:
        profile_by_label(columns, "topic", ["x" * 2000] * 40 + ["y" * 2000] * 19)
    assert len(str(caught.value)) < 300


def test_rounding_is_no_variety() -> None:
    """The standard deviation of equal numbers isn't always 0."""
    one = Columns(blocks={"features": np.full((1, 3), 0.1)}, prompt=np.zeros((1, 0)))
    assert np.full(30, 0.1).std() > 0
    with pytest.raises(ProfileError, match="all 30 answers have the same numbers"):
        check_traffic([one] * 30)


FEATURES: tuple[FeatureGroup, ...] = ("mean-prompt", "last-prompt", "statistics")


@pytest.fixture(scope="module")
def normal_only(bundle: Bundle) -> Bundle:
    """Its trees look at normalised features, and at no raw ones."""
    home = HomeTraffic(ROWS, "answer", np.ones(len(ROWS.ids), dtype=bool))
    columns = home.normalised(FEATURES).blocks["features"].copy()
    columns[:, : columns.shape[1] // 2] = 0
    booster = lightgbm.train(
        {"objective": "binary", "num_leaves": 7, "num_threads": 1, "verbosity": -1, "seed": 0},
        lightgbm.Dataset(columns, label=ROWS.wrong),
        num_boost_round=20,
    )
    alone = trees_alone(columns.shape[1] // 2)
    return dataclasses.replace(
        bundle,
        metadata=bundle.metadata.model_copy(update={"features": FEATURES, "blending": alone}),
        trees=booster.model_to_string(),
        traffic=home.profile(FEATURES),
    )


def moved(rows: Answers, which: np.ndarray, factor: float, shift: float) -> Answers:
    """All maps of some rows are larger, and start elsewhere."""
    away = shift * (1 - np.eye(rows.signatures["mean"].shape[-1]))
    signatures: dict[Position, np.ndarray] = {
        name: np.where(which[:, None, None], factor * maps + away, maps).astype(np.float32)
        for name, maps in rows.signatures.items()
    }
    return dataclasses.replace(rows, signatures=signatures)


CASES = [
    (float(factor), float(shift), kind)
    for factor, shift, kind in zip(
        np.exp([-1.6, -1.1, -0.6, 0.5, 1.2, 2.0]),
        np.random.default_rng(0).uniform(0, 5, 6),
        ["c", "d"] * 3,
        strict=True,
    )
]


@pytest.mark.usefixtures("fitted_model")
@pytest.mark.parametrize(("factor", "shift", "kind"), CASES)
def test_moving_and_scaling_the_maps_of_a_kind_changes_raw_scores_and_no_rank(
    factor: float, shift: float, kind: str, normal_only: Bundle
) -> None:
    rows = synthetic_answers({"c": 60, "d": 50}, seed=8)
    other = moved(rows, rows.datasets == kind, factor, shift)
    plain = LightGBMScorer(normal_only)
    ranks, raw, normal = [], [], []
    for each in (rows, other):
        profile = adapt(normal_only, traffic_of(each), by="dataset")
        scorer, normaliser = LightGBMScorer(normal_only, profile), Normaliser(profile.traffic)
        answers = traffic_of(each).answers
        columns = Columns.concatenated([plain.columns(answer) for _, answer in answers])
        kinds = normaliser.kinds(columns.prompt, [labels for labels, _ in answers])
        half = columns.blocks["features"].shape[1]
        normal.append(normaliser.normalise(columns, kinds).blocks["features"][:, half:])
        ranks.append(np.array([scorer.score(answer, labels=labels).rank for labels, answer in answers]))
        raw.append(np.array([plain.score(answer).uncertainty for _, answer in answers]))
    np.testing.assert_allclose(normal[1], normal[0], atol=1e-3)
    assert np.abs(ranks[1] - ranks[0]).mean() < 0.01
    is_moved = rows.datasets == kind
    assert (raw[1][~is_moved] == raw[0][~is_moved]).all()
    assert np.abs(raw[1] - raw[0])[is_moved].max() > 0.05


@pytest.mark.usefixtures("fitted_model")
def test_kinds_found_by_prompts_score_as_the_true_kinds_do(normal_only: Bundle) -> None:
    rows = synthetic_answers({"c": 60, "d": 50}, seed=8, unlike=["d"])
    profile = adapt(normal_only, traffic_of(rows))
    assert sorted(kind.rows for kind in profile.traffic.kinds) == [50, 60]
    by_label = adapt(normal_only, traffic_of(rows), by="dataset")
    assert profile.uncertainties == by_label.uncertainties
