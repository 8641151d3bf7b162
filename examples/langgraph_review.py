"""An agent whose uncertain answers wait for a person: each is an interrupt of its graph, and a ticket in the queue.

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
NORWAY, HELIUM, ITALY = ({"configurable": {"thread_id": thread}} for thread in ("norway", "helium", "italy"))

if __name__ == "__main__":
    guard = Guard.from_config(CONFIG)
    middleware, saver = [IlisGuardMiddleware(guard)], InMemorySaver()
    agent: Any = create_agent(ChatIlisGuard(guard=guard), middleware=middleware, checkpointer=saver)

    def show(given: Any, config: Any) -> Any:
        """Start or resume a thread, print its last message, and return the ticket that it waits for, if any."""
        state = agent.invoke(given, config)
        pending = [interrupt.value for interrupt in state.get("__interrupt__", ())]
        print(state["messages"][-1].content, *(f"(proposed: {value['proposed']})" for value in pending))
        return pending[0]["ticket"] if pending else None

    show({"messages": [("user", "What is the capital of Norway?")]}, NORWAY)
    show({"messages": [("user", "Which chemical element has the symbol He?")]}, HELIUM)
    ticket = show({"messages": [("user", "What is the capital of Italy?")]}, ITALY)
    # One verdict is given in the graph; the other in the queue, as on the page, on the command line, or by webhook.
    show(Command(resume={"verdict": "correct", "text": "Helium.", "reviewer": "ana"}), HELIUM)
    queue = cast("ReviewQueue", guard.review)
    queue.resolve(ticket, Verdict.ACCEPT, reviewer="ben")
    show(None, thread_of(queue.get(ticket)))
