"""Traffic profiles: columns in units of the traffic of their kind, recomputed by hand."""

import dataclasses
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError

from ilis_guard.errors import ScoringError
from ilis_guard.scoring import Bundle, LightGBMScorer
from ilis_guard.scoring.columns import BLOCKS, Block, Columns
from ilis_guard.scoring.traffic import Moments, Normaliser, TrafficKind, TrafficProfile, measure_kind
from ilis_guard.types import Generation, Labels
from tests.scoring.by_hand import normalised

Row = Callable[[int], Generation]
ONE, OTHER = slice(0, 100), slice(100, 300)


def columns_of(features: np.ndarray, prompt: np.ndarray | None = None) -> Columns:
    """With as many columns to compare, and the first two as the answer's log-probabilities."""
    blocks: dict[Block, np.ndarray] = {
        "features": features,
        "typicality": features + 1,
        "logprobs": features[:, :2],
    }
    return Columns(blocks=blocks, prompt=features if prompt is None else prompt)


def rows(columns: Columns, which: slice) -> Columns:
    return columns.take(np.arange(len(columns))[which])


def of_two_kinds(columns: Columns, label: str | None = None) -> TrafficProfile:
    """The first hundred rows are of one kind, the others of another; the second kind's prompts are longer."""
    prompts = Moments.of(columns.prompt)
    parts = {"short": rows(columns, ONE), "long": rows(columns, OTHER)}
    spread = np.where(np.array(prompts.spread) > 0, prompts.spread, 1.0)
    centres = {name: (part.prompt.mean(axis=0) - prompts.mean) / spread for name, part in parts.items()}
    return TrafficProfile(
        kinds=tuple(
            measure_kind(part, name, () if label else tuple(centres[name].tolist())) for name, part in parts.items()
        ),
        prompts=prompts,
        label=label,
    )


@pytest.fixture(scope="module")
def mixed() -> Columns:
    """Of two kinds: their prompts lie far apart, and whatever is measured of answers, too."""
    random = np.random.default_rng(3)
    features = random.normal(size=(300, 5))
    features[OTHER] = 40 + 7 * features[OTHER]
    prompt = random.normal(size=(300, 3))
    prompt[OTHER] += 12
    return columns_of(features, prompt)


def test_moments_are_mean_and_standard_deviation_by_column() -> None:
    moments = Moments.of(np.array([[1.0, 5.0, -2.0], [3.0, 5.0, -2.0], [8.0, 5.0, 4.0]]))
    assert moments.mean == (4.0, 5.0, 0.0)
    # The mean of the squares 9, 1, 16 is 26 / 3; of 4, 4, 16 it is 8.
    assert moments.spread == pytest.approx((math.sqrt(26 / 3), 0.0, math.sqrt(8)), rel=1e-5)
    assert moments.spread[1] == 0


@pytest.mark.parametrize("block", BLOCKS)
def test_columns_of_one_kind_are_counted_in_spreads_from_its_mean(
    block: Block, columns: Columns, traffic: TrafficProfile, normal: Columns
) -> None:
    (kind,) = traffic.kinds
    assert kind.rows == len(columns) == 300
    for values, found in zip(columns.blocks[block].tolist(), normal.blocks[block].tolist(), strict=True):
        expected = normalised(values, kind.moments[block])
        raw = values if block == "features" else []
        assert found == pytest.approx([*raw, *expected], rel=1e-12, abs=1e-12)
    half = normal.blocks[block][:, -columns.blocks[block].shape[1] :]
    assert half.mean(axis=0) == pytest.approx(0, abs=1e-5)
    assert half.std(axis=0) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("block", BLOCKS)
def test_each_row_is_in_units_of_its_own_kind(block: Block, mixed: Columns) -> None:
    profile = of_two_kinds(mixed)
    normaliser = Normaliser(profile)
    kinds = normaliser.nearest_kinds(mixed.prompt)
    assert kinds.tolist() == [0] * 100 + [1] * 200
    found = normaliser.normalise(mixed, kinds).blocks[block]
    for row, values in enumerate(mixed.blocks[block].tolist()):
        expected = normalised(values, profile.kinds[kinds[row]].moments[block])
        raw = values if block == "features" else []
        assert found[row].tolist() == pytest.approx([*raw, *expected], rel=1e-12)
    width = mixed.blocks[block].shape[1]
    for which in (ONE, OTHER):
        assert found[which, -width:].mean(axis=0) == pytest.approx(0, abs=1e-5)
    one = measure_kind(mixed, "all")
    blurred = Normaliser(TrafficProfile(kinds=(one,), prompts=profile.prompts)).normalise(mixed, np.zeros_like(kinds))
    assert (np.abs(blurred.blocks[block][ONE, -width:].mean(axis=0)) > 0.5).all(), "one mean would do for both"


def test_a_row_is_normalised_alone_as_among_others(mixed: Columns) -> None:
    normaliser = Normaliser(of_two_kinds(mixed))
    together = normaliser.normalise(mixed, normaliser.nearest_kinds(mixed.prompt))
    for row in range(90, 110):
        alone = rows(mixed, slice(row, row + 1))
        found = normaliser.normalise(alone, normaliser.nearest_kinds(alone.prompt))
        for block in BLOCKS:
            assert found.blocks[block][0].tolist() == together.blocks[block][row].tolist()


def test_the_nearest_centre_decides_by_spreads_and_not_by_raw_numbers() -> None:
    """The first column varies a thousand times as much as the second, and both count the same."""
    prompts = Moments(mean=(0.0, 5.0), spread=(1000.0, 1.0))
    moments: dict[Block, Moments] = {"features": Moments(mean=(0.0,), spread=(1.0,))}
    kinds = tuple(
        TrafficKind(name=name, rows=20, moments=moments, centre=centre)
        for name, centre in (("a", (1.0, 0.0)), ("b", (0.0, 2.0)))
    )
    normaliser = Normaliser(TrafficProfile(kinds=kinds, prompts=prompts))
    # In spreads: (0.5, 0), (0, 1.5), (0.9, 1.0), (0, 0.8) and (0, 0.7).
    summaries = np.array([[500.0, 5.0], [0.0, 6.5], [900.0, 6.0], [0.0, 5.8], [0.0, 5.7]])
    away: list[tuple[tuple[float, float], tuple[float, float]]] = [
        ((0.5, 0), (0.5, 2)),
        ((1, 1.5), (0, 0.5)),
        ((0.1, 1), (0.9, 1)),
        ((1, 0.8), (0, 1.2)),
        ((1, 0.7), (0, 1.3)),
    ]
    by_hand = [int(math.hypot(*first) > math.hypot(*second)) for first, second in away]
    assert normaliser.nearest_kinds(summaries).tolist() == by_hand == [0, 1, 0, 1, 0]


def test_a_label_decides_and_the_prompts_map_does_not(mixed: Columns) -> None:
    normaliser = Normaliser(of_two_kinds(mixed, label="topic"))
    labels: list[Labels] = [{"topic": "long", "other": 1}, {"topic": "short"}]
    assert normaliser.kinds(mixed.prompt[:2], labels).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("value", "name"), [(7, "7"), (True, "True"), (2.5, "2.5"), ("St\u0061\u0308dte", "St\u00e4dte")]
)
def test_labels_that_are_no_text_or_written_otherwise_name_kinds_too(
    value: str | float, name: str, mixed: Columns
) -> None:
    kinds = (measure_kind(mixed, "other"), measure_kind(mixed, name))
    profile = TrafficProfile(kinds=kinds, prompts=Moments.of(mixed.prompt), label="topic")
    assert Normaliser(profile).kinds(mixed.prompt[:1], [{"topic": value}]).tolist() == [1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, r"the label 'topic' names the kinds of the traffic profile, and the request has the labels \[\]: send it"),
        ({"Topic": "short"}, r"the request has the labels \['Topic'\]"),
        ({"topic": "medium"}, r"no kind 'medium' \(label 'topic'\); it has \['long', 'short'\]: make one with answers"),
        ({"topic": ""}, r"no kind ''"),
        ({"topic": "SHORT"}, r"no kind 'SHORT'"),
        ({"topic": 7}, r"no kind '7'"),
    ],
    ids=str,
)
def test_without_a_known_value_of_the_label_there_is_no_score(
    labels: Labels, message: str, bundle: Bundle, columns: Columns, generation: Row
) -> None:
    by_topic = dataclasses.replace(bundle, traffic=of_two_kinds(columns, label="topic"))
    scorer = LightGBMScorer(by_topic)
    assert 0 <= scorer.score(generation(0), labels={"topic": "short"}).uncertainty <= 1
    with pytest.raises(ScoringError, match=message):
        scorer.score(generation(0), labels=labels)


def test_a_label_with_long_values_makes_no_long_message(mixed: Columns) -> None:
    normaliser = Normaliser(of_two_kinds(mixed, label="topic"))
    for labels in ({"topic": "x" * 2000}, {f"name{number}": 1 for number in range(100)}):
        with pytest.raises(ScoringError) as caught:
            normaliser.kinds(mixed.prompt[:1], [labels])
        assert len(str(caught.value)) < 500


def test_the_kind_of_a_request_changes_its_score(bundle: Bundle, columns: Columns, generation: Row) -> None:
    scorer = LightGBMScorer(dataclasses.replace(bundle, traffic=of_two_kinds(columns, label="topic")))
    short, long = (
        [scorer.score(generation(row), labels={"topic": kind}).uncertainty for row in range(20)]
        for kind in ("short", "long")
    )
    assert short != long


@pytest.mark.parametrize("constant", [0.0, 7.25, -1e6, 1 / 3])
def test_a_constant_column_is_zero_whatever_comes(constant: float) -> None:
    varying = np.random.default_rng(0).normal(size=(50, 1))
    known = columns_of(np.hstack([varying, np.full((50, 1), constant)]))
    profile = TrafficProfile(kinds=(measure_kind(known, "all"),), prompts=Moments.of(known.prompt))
    assert profile.kinds[0].moments["features"].spread[1] == 0
    later = columns_of(np.array([[0.5, constant], [0.5, constant + 1], [0.5, -1e30]]))
    found = Normaliser(profile).normalise(later, np.zeros(3, dtype=np.int64)).blocks["features"]
    assert found[:, 3].tolist() == [0.0, 0.0, 0.0]
    assert found[:, 1].tolist() == later.blocks["features"][:, 1].tolist()


def test_rounding_alone_is_no_spread() -> None:
    """The mean of equal numbers isn't always one of them."""
    column = np.full((30, 1), 0.1)
    assert column.std() > 0
    assert Moments.of(column).spread == (0.0,)


@pytest.mark.parametrize(("spreads", "found"), [(19.5, 19.5), (20.0, 20.0), (21.0, 20.0), (-1e9, -20.0), (1e300, 20.0)])
def test_what_lies_farther_than_twenty_spreads_counts_as_twenty(spreads: float, found: float) -> None:
    moments = Moments(mean=(3.0,), spread=(0.5,))
    kind = TrafficKind(name="all", rows=20, moments=dict.fromkeys(BLOCKS, moments))
    normaliser = Normaliser(TrafficProfile(kinds=(kind,), prompts=moments))
    column = np.array([[3.0 + 0.5 * spreads]])
    columns = Columns(blocks=dict.fromkeys(BLOCKS, column), prompt=column)
    normal = normaliser.normalise(columns, np.zeros(1, dtype=np.int64))
    for block in BLOCKS:
        assert normal.blocks[block][0, -1] == pytest.approx(found, rel=1e-12)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    mean=st.floats(-1e100, 1e100),
    spread=st.one_of(st.just(0.0), st.floats(1e-100, 1e100)),
    value=st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_number_in_any_units_is_a_number(mean: float, spread: float, value: float) -> None:
    moments = Moments(mean=(mean,), spread=(spread,))
    kind = TrafficKind(name="all", rows=20, moments=dict.fromkeys(BLOCKS, moments))
    normaliser = Normaliser(TrafficProfile(kinds=(kind,), prompts=moments))
    block = np.array([[value]])
    normal = normaliser.normalise(
        Columns(blocks=dict.fromkeys(BLOCKS, block), prompt=block), np.zeros(1, dtype=np.int64)
    )
    assert all(-20 <= normal.blocks[name][0, -1] <= 20 for name in BLOCKS)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    mean=st.floats(-1e12, 1e12),
    narrow=st.floats(1e-8, 10.0),
    seed=st.integers(0, 9),
)
def test_a_column_that_varies_little_beside_its_mean_keeps_its_place(mean: float, narrow: float, seed: int) -> None:
    """A mean that is rounded to six digits of its own may lie many spreads off."""
    column = mean + narrow * max(abs(mean), 1e-9) * np.random.default_rng(seed).normal(size=(50, 1))
    moments = Moments.of(column)
    kind = TrafficKind(name="all", rows=50, moments=dict.fromkeys(BLOCKS, moments))
    normaliser = Normaliser(TrafficProfile(kinds=(kind,), prompts=moments))
    columns = Columns(blocks=dict.fromkeys(BLOCKS, column), prompt=column)
    found = normaliser.normalise(columns, np.zeros(50, dtype=np.int64)).blocks["typicality"]
    np.testing.assert_allclose(found, (column - column.mean()) / column.std(), atol=1e-4)


def test_a_profile_comes_back_from_json_to_the_last_digit(mixed: Columns) -> None:
    for label in (None, "topic"):
        profile = of_two_kinds(mixed, label=label)
        assert TrafficProfile.model_validate_json(profile.model_dump_json(), strict=True) == profile


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda known: known["kinds"].clear(), "at least 1 item"),
        (lambda known: known["kinds"].append(known["kinds"][0]), "a kind stands twice"),
        (lambda known: known["kinds"][1]["centre"].pop(), "'long' has a centre of 2 numbers, not 3"),
        (lambda known: known["kinds"][0]["moments"].pop("typicality"), "'long' has other columns than 'short'"),
        (lambda known: known["kinds"][0]["moments"]["features"]["mean"].pop(), "4 means but 5 spreads"),
        (lambda known: known.update(label="topic"), "has a centre of 3 numbers, not 0"),
        (lambda known: known["kinds"][0].update(rows=0), "greater than or equal to 1"),
    ],
)
def test_a_profile_that_contradicts_itself_is_none(
    change: Callable[[dict[str, list[dict[str, object]]]], object], message: str, mixed: Columns
) -> None:
    known = json.loads(of_two_kinds(mixed).model_dump_json())
    change(known)
    with pytest.raises(ValidationError, match=message):
        TrafficProfile.model_validate_json(json.dumps(known))
