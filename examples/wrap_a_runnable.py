"""A guarded chain: a prompt template, then a guard where the chat model would stand.

python examples/wrap_a_runnable.py ilis-guard-demo/guard.yaml Norway
"""

import sys

from langchain_core.prompts import ChatPromptTemplate

from ilis_guard import Decision, Guard
from ilis_guard_langchain import GuardRunnable


def decide(config: str, country: str) -> Decision:
    """Ask for a capital, and decide what to do with the answer."""
    prompt = ChatPromptTemplate.from_messages([("human", "What is the capital of {country}?")])
    with Guard.from_config(config) as guard:
        chain = prompt | GuardRunnable(guard)
        return chain.invoke({"country": country})


if __name__ == "__main__":
    decision = decide(*sys.argv[1:3])
    print(decision.action, decision.text, decision.uncertainty)
