"""Follow an answer token by token, and stop paying for one that the policy would never answer with.

python examples/stop_early.py
"""

import sys
from contextlib import closing

from ilis_guard import Action, Facts, Message, Policy
from ilis_guard.config import read_config
from ilis_guard.tiers import load_tier

PATIENCE = 4  # tokens: the first ones of an answer say little


def follow(path: str, tier_name: str, question: str) -> str:
    """Print tokens with the uncertainty so far; what came of the answer."""
    config = read_config(path)
    policy, tier = Policy.load(config.policy), load_tier(config.tier(tier_name))
    action = Action.ABSTAIN
    with closing(tier.stream([Message(role="user", content=question)])) as steps:
        for step in steps:
            if step.score is None:
                continue
            print(f"{step.token!r:>16}  {step.score.uncertainty:.2f}")
            facts = Facts(uncertainty=step.score.uncertainty, shift=step.score.shift, tier=tier.name)
            action = policy.evaluate(facts).action
            if (
                action is Action.ABSTAIN
                and step.generation.tokens >= PATIENCE
                and step.generation.finish_reason is None
            ):
                return f"stopped after {step.generation.tokens} tokens"
    return step.generation.text if action is Action.ANSWER else f"no answer: {action.value}"


if __name__ == "__main__":
    print(follow(*sys.argv[1:] or ("ilis-guard-demo/guard.yaml", "small", "What is 48 times 67?")))
