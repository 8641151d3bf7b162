from collections.abc import Iterator
from functools import cache

import pytest

from ilis_guard.models.checkpoint import Checkpoint

load_once = cache(Checkpoint.load)


@pytest.fixture(scope="package", autouse=True)
def checkpoints_read_once() -> Iterator[None]:
    """Each real model is read, and quantised, once for all guards and tiers of these tests, which takes the longest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "load", load_once)
        yield
        load_once.cache_clear()
