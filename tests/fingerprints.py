"""A fingerprint of a model that nobody runs."""

from dataclasses import replace
from typing import Any

from ilis_guard.types import Fingerprint

_ANY = Fingerprint(
    weights="ab",
    precision="full",
    dtype="float32",
    layers=30,
    hidden=576,
    site="mlp",
    taps="model.layers.*.mlp",
    temperature=1.0,
    decoding="greedy",
    prompt="cd",
)


def fingerprint(**changes: Any) -> Fingerprint:
    return replace(_ANY, **changes)
