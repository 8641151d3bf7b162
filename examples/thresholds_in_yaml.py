"""Change the policy's YAML while the guard runs: no change of Python, no restart.

python examples/thresholds_in_yaml.py
"""

import tempfile
import time
from pathlib import Path

from ilis_guard import Guard, Policy, explain_decision
from ilis_guard.cascade.loading import load_tier
from ilis_guard.config.guard_yaml import read_config

POLICY = """
version: 1
name: geography
rules:
  - {id: sure, when: uncertainty < 0.25, do: answer}
  - {id: unsure, do: abstain, say: I'd rather not guess.}
"""
EDITS = {
    "as it was": POLICY,
    "stricter": POLICY.replace("0.25", "0.1"),
    "with a typing error": POLICY.replace("uncertainty", "uncertianty"),
    "a risk, not a number": POLICY.replace("uncertainty < 0.25", "certified") + "guarantee: {max_error: 0.25}\n",
}

if __name__ == "__main__":
    file = Path(tempfile.mkdtemp()) / "policy.yaml"
    file.write_text(POLICY)
    small = load_tier(read_config(Path(__file__).with_name("guard.yaml")).tiers[0])
    guard = Guard(tiers=[small], policy=Policy.load(file))
    guard.follow(file)
    for edit, text in EDITS.items():
        file.write_text(text)
        time.sleep(1)  # a change takes effect a quarter of a second after the file was written
        decision = guard.decide("What is the capital of Norway?")
        print(f"{edit}: {decision.action}, {decision.text}")
        print(f"    {guard.policy_problem or explain_decision(decision)}")
