from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import tenacity

from ilis_guard.cascade.escalation import Review
from ilis_guard.cascade.tier import Tier
from ilis_guard.guard import Guard
from ilis_guard.models import Model
from ilis_guard.policy import Policy
from ilis_guard.scoring import Scorer
from ilis_guard.testing import InMemoryQueue

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def fixture() -> Callable[[str], Path]:
    """The policy file of one outcome."""
    return lambda name: FIXTURES / f"{name}.yaml"


@pytest.fixture
def build() -> Callable[..., Guard]:
    """A guard of tiers that are given as (model, scorer), with a policy that is given by name or as text."""

    def build_one(
        policy: str,
        tiers: Mapping[str, tuple[Model, Scorer | None]],
        *,
        review: Review | None = None,
        log_texts: bool = False,
    ) -> Guard:
        return Guard(
            tiers=[Tier(name=name, model=model, scorer=scorer) for name, (model, scorer) in tiers.items()],
            policy=Policy.parse(policy) if "\n" in policy else Policy.load(FIXTURES / f"{policy}.yaml"),
            review=InMemoryQueue() if review is None else review,
            log_texts=log_texts,
            backoff=tenacity.wait_none(),
        )

    return build_one
