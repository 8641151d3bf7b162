"""Chat models whose guard is real, and whose tiers say what they are told."""

from collections.abc import Sequence
from typing import Any

from ilis_guard import Guard, Policy, Score, Tier
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard_langchain import ChatIlisGuard

POLICY = """
version: 1
name: by-uncertainty
rules:
  - {id: secret, when: 'has(labels.topic) && labels.topic == "law"', do: abstain, say: Ask a lawyer.}
  - {id: sure, when: uncertainty < 0.5, do: answer}
  - {id: larger, when: '!last_tier', do: retry}
  - {id: person, when: uncertainty < 0.9, do: escalate, to: people, say: Somebody will write to you.}
  - {id: silent, when: uncertainty > 0.95, do: abstain}
  - {id: decline, do: abstain, say: I would rather not say.}
"""
QUESTION = "What is the capital of Norway?"

Scores = float | Score | Exception | Sequence[float | Score | Exception]


def chat(scores: Scores = 0.1, *, says: Any = "It is Oslo", policy: str = POLICY, **fields: Any) -> ChatIlisGuard:
    """With one tier, whose answers are so uncertain."""
    return chat_of({"only": (says, scores)}, policy=policy, **fields)


def chat_of(tiers: dict[str, tuple[Any, Scores]], *, policy: str = POLICY, **fields: Any) -> ChatIlisGuard:
    """With tiers by name: what their models say (or a model that says it), and how uncertain that is."""
    made = [
        Tier(name=name, model=says if isinstance(says, FakeModel) else FakeModel(says), scorer=FixedScorer(scores))
        for name, (says, scores) in tiers.items()
    ]
    return ChatIlisGuard(guard=Guard(tiers=made, policy=Policy.parse(policy), review=InMemoryQueue()), **fields)
