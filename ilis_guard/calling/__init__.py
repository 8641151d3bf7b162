"""What stands between a request and a tier's model: its line, its breaker, its repeats, and the request's deadline."""

from ilis_guard.calling.caller import Caller
from ilis_guard.calling.deadline import Deadline
from ilis_guard.calling.settings import BreakerSettings, TierCost

__all__ = ["BreakerSettings", "Caller", "Deadline", "TierCost"]
