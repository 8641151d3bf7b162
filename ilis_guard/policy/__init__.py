"""Policies: uncertainty in, action out. A policy is the risk owner's YAML file; nothing here does I/O but loading."""

from ilis_guard.policy.engine import DEFAULT_QUEUE
from ilis_guard.policy.explanation import Explanation
from ilis_guard.policy.facts import Facts
from ilis_guard.policy.lint import Notice
from ilis_guard.policy.policy import Policy
from ilis_guard.policy.schema import Audit, Budget, Guarantee, Rule
from ilis_guard.types import PromptRuling, Ruling

__all__ = [
    "DEFAULT_QUEUE",
    "Audit",
    "Budget",
    "Explanation",
    "Facts",
    "Guarantee",
    "Notice",
    "Policy",
    "PromptRuling",
    "Rule",
    "Ruling",
]
