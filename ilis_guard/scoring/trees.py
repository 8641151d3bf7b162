"""LightGBM's text format, checked before LightGBM reads it.

LightGBM trusts its input: a malformed tree aborts the process, reads foreign memory or never returns. So every tree is
checked first. What follows the trees (importances and parameters) isn't needed for predictions and is dropped.
"""

import math
import re
from collections.abc import Sequence
from typing import Final

import lightgbm

from ilis_guard.errors import BundleError

_END: Final = "end of trees\n"
_HEADER: Final = re.compile(
    r"tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nlabel_index=0\n"
    r"max_feature_idx=(?P<last_feature>\d{1,9})\nobjective=binary sigmoid:1\n"
    r"feature_names=[^\n]*\nfeature_infos=[^\n]*\ntree_sizes=(?P<sizes>\d{1,9}(?: \d{1,9})*)\n\n"
)
"""One probability a row, from trees alone."""
_TREE: Final = re.compile(
    r"Tree=(?P<index>\d{1,9})\n"
    r"num_leaves=(?P<leaves>[1-9]\d{0,5})\nnum_cat=0\n"
    r"split_feature=(?P<split_feature>[^\n]*)\nsplit_gain=(?P<split_gain>[^\n]*)\nthreshold=(?P<threshold>[^\n]*)\n"
    r"decision_type=(?P<decision_type>[^\n]*)\nleft_child=(?P<left_child>[^\n]*)\nright_child=(?P<right_child>[^\n]*)\n"
    r"leaf_value=(?P<leaf_value>[^\n]*)\nleaf_weight=(?P<leaf_weight>[^\n]*)\nleaf_count=(?P<leaf_count>[^\n]*)\n"
    r"internal_value=(?P<internal_value>[^\n]*)\ninternal_weight=(?P<internal_weight>[^\n]*)\n"
    r"internal_count=(?P<internal_count>[^\n]*)\nis_linear=0\nshrinkage=(?P<shrinkage>[^\n]*)\n\n\n"
)
_FOREIGN: Final = re.compile(r"[^\n -~]")
"""The patterns above accept such characters, but LightGBM ends a line at a carriage return and its text at NUL."""
_INTEGER: Final = re.compile(r"-?\d{1,9}", re.ASCII)
_DECIMAL: Final = re.compile(r"-?\d{1,25}(?:\.\d{1,25})?(?:e[+-]?\d{1,3})?", re.ASCII)
_DECISIONS: Final = frozenset({0, 2, 4, 6, 8, 10})
"""Comparisons with a number, by the handling of missing values; odd ones are categories."""


def load_booster(text: str, *, features: int) -> lightgbm.Booster:
    """Load a binary classifier from LightGBM's text format.

    Args:
        text: as `lightgbm.Booster.model_to_string` writes it.
        features: how many the trees must expect.

    Raises:
        BundleError: the text isn't a well-formed binary classifier over so many features.
    """
    try:
        checked = _check(text, features)
        return lightgbm.Booster(model_str=checked)
    except (ValueError, lightgbm.basic.LightGBMError) as error:
        raise BundleError(f"the bundle's trees can't be used: {error}; copy the bundle again or fit it anew") from error


def _check(text: str, features: int) -> str:
    """Return the text up to the end of its trees."""
    header = _HEADER.match(text)
    if header is None or _FOREIGN.search(text):
        raise ValueError("they don't start as a LightGBM (version v4) binary classifier does")
    expected = int(header["last_feature"]) + 1
    if expected != features:
        raise ValueError(f"they expect {expected} features, the bundle's metadata names {features}")
    start, largest = header.end(), 0.0
    for index, size in enumerate(map(int, header["sizes"].split())):
        tree = _TREE.fullmatch(text, start, start + size)
        if tree is None or int(tree["index"]) != index:
            raise ValueError(f"tree {index} is incomplete or not where it should be")
        try:
            largest += _check_tree(tree, features)
        except ValueError as error:
            raise ValueError(f"tree {index}: {error}") from error
        start += size
    if not text.startswith(_END, start):
        raise ValueError("they don't end where they should")
    if not math.isfinite(largest):
        raise ValueError("their leaves add up to more than a number holds")
    return text[: start + len(_END)]


def _check_tree(tree: re.Match[str], features: int) -> float:
    """Check a tree, and return its largest absolute leaf value."""
    leaves = int(tree["leaves"])
    nodes = leaves - 1
    _decimals(tree, "shrinkage", 1)
    largest = max(map(abs, _decimals(tree, "leaf_value", leaves)))
    if nodes == 0:
        return largest  # LightGBM reads no further
    for name in ("split_gain", "threshold", "internal_value", "internal_weight"):
        _decimals(tree, name, nodes)
    _decimals(tree, "leaf_weight", leaves)
    if min(*_integers(tree, "leaf_count", leaves), *_integers(tree, "internal_count", nodes)) < 0:
        raise ValueError("it counts fewer than no rows")
    if not all(0 <= feature < features for feature in _integers(tree, "split_feature", nodes)):
        raise ValueError(f"split_feature names a feature outside 0 to {features - 1}")
    if not _DECISIONS.issuperset(_integers(tree, "decision_type", nodes)):
        raise ValueError("decision_type isn't that of a comparison with a number")
    _check_children(_integers(tree, "left_child", nodes), _integers(tree, "right_child", nodes))
    return largest


def _check_children(left: Sequence[int], right: Sequence[int]) -> None:
    """Check that each node but the first, and each leaf (-1, -2, ...), has exactly one parent, an earlier node."""
    if any(0 <= child <= node for children in (left, right) for node, child in enumerate(children)):
        raise ValueError("a node stands below a later one")
    nodes = len(left)
    if sorted([*left, *right]) != [*range(-nodes - 1, 0), *range(1, nodes)]:
        raise ValueError("its nodes and leaves don't make one tree")


def _integers(tree: re.Match[str], name: str, count: int) -> list[int]:
    return [int(token) for token in _tokens(tree, name, count, _INTEGER)]


def _decimals(tree: re.Match[str], name: str, count: int) -> list[float]:
    decimals = [float(token) for token in _tokens(tree, name, count, _DECIMAL)]
    if not all(map(math.isfinite, decimals)):
        raise ValueError(f"{name} holds a number that isn't finite")
    return decimals


def _tokens(tree: re.Match[str], name: str, count: int, pattern: re.Pattern[str]) -> list[str]:
    tokens = tree[name].split(" ")
    if len(tokens) != count:
        raise ValueError(f"{name} has {len(tokens)} values, not {count}")
    if not all(map(pattern.fullmatch, tokens)):
        raise ValueError(f"{name} holds something that isn't a number of its kind")
    return tokens
