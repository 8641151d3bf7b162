"""Stop an answer that the policy can't return any more, instead of paying for the rest of it.

python examples/stop_early.py
"""

import sys
from pathlib import Path

from ilis_guard import Decision, Guard

CONFIG, *QUESTIONS = sys.argv[1:] or [
    str(Path(__file__).with_name("guard.yaml")),
    "What is the capital of Norway?",
    "What is 48 times 67?",
    "What is 981 plus 276?",
]

if __name__ == "__main__":
    with Guard.from_config(CONFIG) as guard:
        for question in QUESTIONS:
            # The decision is the last event. docs/streaming.md has the savings.
            *_, decision = guard.stream(question, mode="early_stop")
            assert isinstance(decision, Decision)
            print(f"{decision.action}: {decision.text}")
            for attempt in decision.attempts:
                cut = "whole" if attempt.stopped_at is None else f"cut after {attempt.stopped_at} tokens"
                print(f"    {attempt.tier} said {attempt.text!r}, {cut}")
