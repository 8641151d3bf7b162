"""ilis_guard decides what to do with an LLM's answer: answer, abstain, retry on a larger model, or escalate."""
