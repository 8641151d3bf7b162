"""The measured cases."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.overhead.models import GEMMA, SMOLLM2, Shape
from ilis_guard.types import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the table."""

    model: str | Shape
    """By name, or the shape of one with random weights."""
    precision: Precision = "full"
    prompts: int = 1
    """In one batch."""
    prefill: int = 64
    """Tokens of each prompt."""
    tokens: int = 32
    """New tokens of each answer."""

    def __str__(self) -> str:
        batch = "1 prompt" if self.prompts == 1 else f"{self.prompts} prompts"
        return f"{self.model}, {self.precision}: {batch} of {self.prefill}, {self.tokens} new"


DEPTHS: Final = (12, 30, 48)
WIDTHS: Final = (288, 1152)


def cases(*, everything: bool) -> Iterator[Case]:
    """Those that share a loaded model follow one another.

    Args:
        everything: the two longest cases on each model, not on SmolLM2 at full precision alone.
    """
    for model in (SMOLLM2, GEMMA):
        for precision in ("full", "nf4"):
            centre = Case(model=model, precision=precision)
            has_longest = everything or (model, precision) == (SMOLLM2, "full")
            yield centre
            yield from (replace(centre, prompts=prompts) for prompts in ((8, 32) if has_longest else (8,)))
            yield from (replace(centre, prefill=prefill) for prefill in ((512, 2048) if has_longest else (512,)))
            yield replace(centre, tokens=256)
    yield from (Case(model=Shape(layers=layers, hidden=576)) for layers in DEPTHS)
    yield from (Case(model=Shape(layers=DEPTHS[0], hidden=hidden)) for hidden in WIDTHS)
