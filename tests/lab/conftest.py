from collections.abc import Iterator

import pytest

from ilis_guard.lab import metrics


@pytest.fixture(scope="module")
def few_resamples() -> Iterator[None]:
    """Intervals of few resamples, where only their middle matters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "RESAMPLES", 60)
        yield
