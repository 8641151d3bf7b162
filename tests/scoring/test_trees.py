"""Malformed LightGBM trees, which would crash or hang the process, are refused before LightGBM reads them."""

import re
from collections.abc import Callable

import lightgbm
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from ilis_guard.errors import BundleError
from ilis_guard.scoring.columns import Columns
from ilis_guard.scoring.trees import load_booster

FEATURES = 56  # as tests/scoring/conftest.py's bundle has


def in_first_tree(key: str, value: str) -> Callable[[str], str]:
    """Replace what follows ``key=`` in the first tree, and tell tree_sizes."""

    def damage(text: str) -> str:
        changed, count = re.subn(rf"(?m)^{key}=.*$", f"{key}={value}", text, count=1)
        assert count == 1
        return resized(changed)

    return damage


def first_number(key: str, value: str) -> Callable[[str], str]:
    return lambda text: resized(re.sub(rf"(?m)^{key}=[^ \n]+", f"{key}={value}", text, count=1))


def resized(text: str) -> str:
    trees = text[text.index("Tree=0\n") : text.index("end of trees\n")]
    sizes = " ".join(str(len(tree)) for tree in re.split(r"(?m)^(?=Tree=)", trees)[1:])
    return re.sub(r"(?m)^tree_sizes=.*$", f"tree_sizes={sizes}", text)


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


def hidden(line: str, *, in_key: str) -> Callable[[str], str]:
    """Put a line into another one, after the character that ends one for LightGBM and for few others."""
    return lambda text: resized(re.sub(rf"(?m)^{in_key}=", f"{in_key}=x\r{line}\r{in_key}=", text, count=1))


def one_leaf(changed: str) -> Callable[[str], str]:
    """Make the last tree one of a single leaf, of which LightGBM reads little, and change a line of it."""
    empty = ["split_feature", "split_gain", "threshold", "decision_type", "left_child", "right_child"]
    after = "leaf_value=0.1\nleaf_weight=\nleaf_count=9\ninternal_value=\ninternal_weight=\ninternal_count="
    lines = "".join(f"{key}=\n" for key in empty)
    leaf = f"Tree=19\nnum_leaves=1\nnum_cat=0\n{lines}{after}\nis_linear=0\nshrinkage=1\n\n\nend of trees"
    leaf = re.sub(rf"(?m)^{changed.partition('=')[0]}=.*", lambda _: changed, leaf)
    return lambda text: resized(re.sub(r"(?s)Tree=19\n.*end of trees", lambda _: leaf, text))


DAMAGES: dict[str, Callable[[str], str]] = {
    "nothing": lambda _: "",
    "prose": lambda _: "Dear Sir or Madam,\n",
    "zeros": lambda _: "\0" * 1000,
    "the header only": lambda text: text[: text.index("Tree=0")],
    "no header": lambda text: text[text.index("Tree=0") :],
    "half": lambda text: text[: len(text) // 2],
    "no end": lambda text: text[: text.index("end of trees")],
    "no trees": lambda text: re.sub(r"(?s)Tree=0.*(?=end of trees)", "", text),
    "one tree too few": lambda text: re.sub(r"(?s)Tree=0\n.*?(?=Tree=1\n)", "", text),
    "a letter from elsewhere": replaced("Column_0", "Säule_0"),
    "sizes that aren't true": lambda text: re.sub(r"tree_sizes=\d+", "tree_sizes=10", text),
    "sizes beyond the end": lambda text: re.sub(r"tree_sizes=\d+", "tree_sizes=999999999", text),
    "three classes": replaced("num_class=1", "num_class=3"),
    "no trees a round": replaced("num_tree_per_iteration=1", "num_tree_per_iteration=0"),
    "a regression": replaced("objective=binary sigmoid:1", "objective=regression"),
    "no objective": replaced("objective=binary sigmoid:1\n", ""),
    "another sigmoid": replaced("sigmoid:1", "sigmoid:2"),
    "another version": replaced("version=v4", "version=v5"),
    "a random forest": replaced("tree_sizes", "average_output\ntree_sizes"),
    "one feature more": replaced(f"max_feature_idx={FEATURES - 1}", f"max_feature_idx={FEATURES}"),
    "a feature outside": first_number("split_feature", str(FEATURES)),
    "a feature below 0": first_number("split_feature", "-1"),
    "a circle": first_number("left_child", "0"),
    "a node outside": first_number("left_child", "100000000"),
    "a leaf outside": first_number("left_child", "-100000000"),
    "a leaf twice": lambda text: resized(re.sub(r"(?m)^(left_child=.*) -\d+$", r"\1 -1", text, count=1)),
    "too many leaves": in_first_tree("num_leaves", "30"),
    "far too many leaves": in_first_tree("num_leaves", "2000000000"),
    "a negative number of leaves": in_first_tree("num_leaves", "-3"),
    "no leaves": in_first_tree("num_leaves", "0"),
    "categories": in_first_tree("num_cat", "1"),
    "a comparison of categories": first_number("decision_type", "1"),
    "linear leaves": in_first_tree("is_linear", "1"),
    "a leaf that isn't a number": first_number("leaf_value", "nan"),
    "an infinite leaf": first_number("leaf_value", "1e999"),
    "a word for a threshold": first_number("threshold", "abc"),
    "a value missing": lambda text: resized(re.sub(r"(?m)^leaf_weight=\S+ ", "leaf_weight=", text, count=1)),
    "no trees a round, in a line of its own for LightGBM": hidden("num_tree_per_iteration=0", in_key="feature_infos"),
    "nine trees a round, likewise": hidden("num_tree_per_iteration=9", in_key="feature_infos"),
    "many leaves, where one is said and no more is read": one_leaf("threshold=\rnum_leaves=100000\r"),
    "a null, where LightGBM's text ends": one_leaf("threshold=\0"),
    "leaves that add up to infinity": lambda text: resized(re.sub(r"(?m)^leaf_value=\S+", "leaf_value=1e308", text)),
    "fewer than no rows": first_number("internal_count", "-1"),
    "a line missing": lambda text: resized(re.sub(r"(?m)^leaf_count=.*\n", "", text, count=1)),
    "a line twice": lambda text: resized(re.sub(r"(?m)^(shrinkage=.*\n)", r"\1\1", text, count=1)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_trees_are_an_error_and_lightgbm_never_sees_them(
    damage: Callable[[str], str], trees: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = damage(trees)
    assert damaged != trees

    def seen(**_: str) -> None:
        pytest.fail("LightGBM was given the damaged trees")

    monkeypatch.setattr(lightgbm, "Booster", seen)
    with pytest.raises(BundleError, match="trees can't be used"):
        load_booster(damaged, features=FEATURES)


def test_trees_refused_by_lightgbm_are_a_bundle_error(trees: str) -> None:
    with pytest.raises(BundleError, match="trees can't be used"):
        load_booster(replaced("feature_names=Column_0 ", "feature_names=")(trees), features=FEATURES)


def test_the_helpers_that_damage_change_nothing_else(trees: str) -> None:
    assert resized(trees) == trees
    load_booster(one_leaf("leaf_value=0.1")(trees), features=FEATURES)


@pytest.mark.parametrize("features", [FEATURES - 1, FEATURES + 1])
def test_trees_over_other_features_are_refused_with_both_counts(features: int, trees: str) -> None:
    with pytest.raises(BundleError, match=f"expect {FEATURES} features, the bundle's metadata names {features}"):
        load_booster(trees, features=features)


def test_valid_trees_predict_like_lightgbm(trees: str, normal: Columns, wrong: np.ndarray) -> None:
    features = normal.blocks["features"]
    predicted = np.asarray(load_booster(trees, features=FEATURES).predict(features))
    np.testing.assert_array_equal(predicted, lightgbm.Booster(model_str=trees).predict(features))
    assert predicted[wrong].mean() > predicted[~wrong].mean() + 0.3


@pytest.mark.parametrize(
    ("scale", "missing", "leaves", "rounds"),
    [(1.0, 0.0, 31, 60), (1e-30, 0.0, 7, 5), (1e30, 0.3, 15, 5), (0.0, 0.0, 7, 3), (1.0, 1.0, 2, 1)],
    ids=["many leaves", "tiny", "huge, with missing values", "constant: trees of one leaf", "all missing"],
)
def test_whatever_lightgbm_writes_is_read(scale: float, missing: float, leaves: int, rounds: int) -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(500, 3))
    labels = features[:, 0] + random.normal(size=500) > 0
    features = np.where(random.random(features.shape) < missing, np.nan, features * scale)
    booster = lightgbm.train(
        {"objective": "binary", "num_leaves": leaves, "num_threads": 1, "verbosity": -1},
        lightgbm.Dataset(features, label=labels),
        num_boost_round=rounds,
    )
    loaded = load_booster(booster.model_to_string(), features=3)
    np.testing.assert_array_equal(loaded.predict(features), booster.predict(features))


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.floats(0, 1, exclude_max=True), new=st.sampled_from([*"0123456789-. e\n=", "", "99", "nan"]))
def test_any_small_edit_is_an_error_or_still_gives_a_probability(trees: str, place: float, new: str) -> None:
    end = trees.index("end of trees")
    at = int(place * end)
    try:
        booster = load_booster(trees[:at] + new + trees[at + 1 :], features=FEATURES)
    except BundleError:
        return
    probabilities = np.asarray(booster.predict(np.zeros((1, FEATURES)), num_threads=1))
    assert probabilities.shape == (1,)
    assert 0 <= probabilities[0] <= 1
