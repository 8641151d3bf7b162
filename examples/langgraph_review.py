"""Let an agent's uncertain answers wait for a person: each interrupts the graph and makes a ticket in the queue.

python examples/langgraph_review.py
"""

import sys
from pathlib import Path
from typing import Any, cast

from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from ilis_guard import Guard, ReviewQueue, Verdict
from ilis_guard_langchain import ChatIlisGuard, IlisGuardMiddleware, thread_of

CONFIG = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("guard.yaml")
NORWAY, HELIUM, CUBA = ({"configurable": {"thread_id": thread}} for thread in ("norway", "helium", "cuba"))

if __name__ == "__main__":
    guard = Guard.from_config(CONFIG)
    middleware, saver = [IlisGuardMiddleware(guard)], InMemorySaver()
    agent: Any = create_agent(ChatIlisGuard(guard=guard), middleware=middleware, checkpointer=saver)

    def run(graph_input: Any, config: Any) -> Any:
        """Start or resume a thread, print its last message, and return the id of its open ticket, if any."""
        state = agent.invoke(graph_input, config)
        pending = [interrupt.value for interrupt in state.get("__interrupt__", ())]
        print(state["messages"][-1].content, *(f"(proposed: {value['proposed']})" for value in pending))
        return pending[0]["ticket"] if pending else None

    run({"messages": [("user", "What is the capital of Norway?")]}, NORWAY)
    run({"messages": [("user", "Which chemical element has the symbol He?")]}, HELIUM)
    ticket = run({"messages": [("user", "What is the capital of Cuba?")]}, CUBA)
    # One verdict comes through the graph; the other through the queue, as from the page or the command line.
    run(Command(resume={"verdict": "correct", "text": "Helium.", "reviewer": "ana"}), HELIUM)
    queue = cast("ReviewQueue", guard.review)
    queue.resolve(ticket, Verdict.ACCEPT, reviewer="ben")
    run(None, thread_of(queue.get(ticket)))
