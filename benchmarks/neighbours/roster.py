"""The measured libraries, their environments, and the commands that start their workers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
"""The checkout: workers are started here, so that they find their own modules."""
REQUIREMENTS: Final = Path(__file__).parent / "requirements"


class NeighbourError(Exception):
    """A neighbour can't be installed, doesn't run, or doesn't answer as it must."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A virtual environment."""

    name: str
    requirements: Path
    """What is installed in it after torch, in pip's format."""
    pinned_by: tuple[Path, ...] = ()
    """Further files that say what is installed in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """One way to answer and to say something of the answer's uncertainty."""

    name: str
    title: str
    environment: Environment
    worker: tuple[str, ...]
    """Arguments of Python that start its worker."""
    note: str
    """How it is used, for the reader of the table."""


ILIS_GUARD: Final = Environment(
    name="ilis_guard",
    requirements=REQUIREMENTS / "ilis_guard.txt",
    pinned_by=(ROOT / "constraints.txt", ROOT / "pyproject.toml"),
)
TRANSFORMERS: Final = Environment(
    name="transformers", requirements=REQUIREMENTS / "transformers.txt", pinned_by=(ROOT / "constraints.txt",)
)
LM_POLYGRAPH: Final = Environment(name="lm_polygraph", requirements=REQUIREMENTS / "lm_polygraph.txt")
TRUTHTORCHLM: Final = Environment(name="truthtorchlm", requirements=REQUIREMENTS / "truthtorchlm.txt")


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return ("-m", f"benchmarks.neighbours.workers.{name}", *arguments)


NEIGHBOURS: Final = (
    Neighbour(
        name="ilis-guard",
        title="ilis_guard",
        environment=ILIS_GUARD,
        worker=_module("guarded"),
        note="maps of three positions, output statistics, and the uncertainty and typicality of a shipped bundle",
    ),
    Neighbour(
        name="hidden-states",
        title="output_hidden_states, Python loop",
        environment=TRANSFORMERS,
        worker=_module("hidden_states"),
        note="the same three maps from layer outputs, pair by pair in float32; no statistics, no uncertainty",
    ),
    Neighbour(
        name="lm-polygraph-rauq",
        title="lm-polygraph RAUQ",
        environment=LM_POLYGRAPH,
        worker=_module("polygraph", "rauq"),
        note="needs eager attention; called without CausalLMWithUncertainty, which can't carry it in 0.7",
    ),
    Neighbour(
        name="lm-polygraph-mean-token-entropy",
        title="lm-polygraph MeanTokenEntropy",
        environment=LM_POLYGRAPH,
        worker=_module("polygraph", "mean-token-entropy"),
        note="CausalLMWithUncertainty, which always asks for hidden states; embeddings are switched off",
    ),
    Neighbour(
        name="truthtorchlm-confidence",
        title="TruthTorchLM Confidence",
        environment=TRUTHTORCHLM,
        worker=_module("truth_torch", "confidence"),
        note="reads the answer in one more forward pass, by design",
    ),
    Neighbour(
        name="truthtorchlm-inside",
        title="TruthTorchLM Inside",
        environment=TRUTHTORCHLM,
        worker=_module("truth_torch", "inside"),
        note="samples 10 more answers in one batch, by design (its default, and the number in its paper)",
    ),
)
