"""An escalated answer of an agent waits for a verdict: in the queue as a ticket, in its graph as an interrupt."""

from dataclasses import dataclass
from typing import Annotated, Any, Final, NotRequired, TypedDict

from langchain.agents import AgentState
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphInterrupt
from langgraph.types import interrupt
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ilis_guard import ReviewQueue, Verdict
from ilis_guard.errors import QueueStorageError, ReviewError
from ilis_guard.policy.explain import attempt_reasons
from ilis_guard.review import TicketRecord
from ilis_guard.types.decisions import read_attempt

THREAD_LABEL: Final = "thread_id"
"""The label in which a ticket keeps the graph's thread that waits for it."""

# As for verdicts by webhook: PostgreSQL takes no NUL in a text.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]


class Waiting(TypedDict):
    """What an agent's state keeps of an answer while a person looks at it."""

    ticket: str
    text: str
    """What a reviewer sees of the answer; empty where no tier gave one."""
    messages: list[AnyMessage]
    """As the model gave them: they go out if the answer is accepted."""
    structured_response: Any
    """Goes with them; None where the agent gives none."""


class GuardedState(AgentState[Any]):
    """An agent's state, and the answer that waits in it."""

    ilis_guard_waiting: NotRequired[Annotated[Waiting | None, PrivateStateAttr]]


class GivenVerdict(BaseModel):
    """What a graph is resumed with, ``Command(resume={"verdict": "accept"})``: in the words of a webhook's verdict."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    verdict: Annotated[Verdict, Field(strict=False)]
    text: Text = ""
    """The right answer, with the verdict `correct` and only with it."""
    reason: Text = ""
    """Why."""
    reviewer: Text = Field(default="", max_length=100)
    """Who decided so. Where somebody has the ticket claimed, only they may end it."""
    version: int | None = Field(default=None, ge=1)
    """The version of the ticket that they looked at; None for whatever it is now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewed:
    """A ticket that has ended, and what becomes of the answer."""

    record: TicketRecord
    given: GivenVerdict | None
    """What the graph was resumed with; None where the verdict came from the queue."""

    def let_out(self, waiting: Waiting) -> Waiting | None:
        """What goes out as the answer; None where nothing does: it was rejected, or expired."""
        record, ticket = self.record, self.record.ticket
        is_redacted = record.redacted_at is not None
        if ticket.verdict is Verdict.CORRECT and not is_redacted:
            return held(ticket.id, ticket.text)
        if ticket.verdict is Verdict.ACCEPT:
            # What goes out is what the reviewer saw, whatever this run of the agent came to.
            return waiting if is_redacted or waiting["text"] == record.proposed else held_as_on(record)
        return None

    def told(self) -> dict[str, Any]:
        """The verdict as JSON values; with `overruled`, what the graph was resumed with too late to count."""
        ticket, given = self.record.ticket, self.given
        told: dict[str, Any] = {
            "state": ticket.state,
            "verdict": None if ticket.verdict is None else ticket.verdict.value,
            "reason": ticket.reason,
            "reviewer": self.record.reviewer,
        }
        if given is not None and (given.verdict, given.text) != (ticket.verdict, ticket.text):
            told["overruled"] = {"verdict": given.verdict.value, "reviewer": given.reviewer}
        return told


def reviewed(queue: ReviewQueue, ticket: str) -> Reviewed:
    """The ticket with its verdict, wherever that was given; leaves the graph with an interrupt while there is none.

    A verdict that the graph is resumed with is given in the queue, too; where somebody was faster there, theirs
    stands. One that the queue refuses leaves the interrupt pending, and `refused` there says why.

    Raises:
        GraphInterrupt: there is no verdict yet.
        QueueStorageError: the database failed; going on with the thread tries again.
        TicketNotFoundError: the ticket is gone.
    """
    given = _last_given(_question(queue.get(ticket)))
    refused = "" if given is None else _resolve(queue, ticket, given)
    record = queue.get(ticket)
    if record.ticket.ended_at is None:
        interrupt(_question(record, refused), response_schema=GivenVerdict)
        raise AssertionError("all that the graph was resumed with has been looked at, so there was nothing to return")
    return Reviewed(record=record, given=given)


def held(ticket: str, text: str) -> Waiting:
    """An answer of which nothing but the text is known."""
    return Waiting(ticket=ticket, text=text, messages=[AIMessage(text)], structured_response=None)


def held_as_on(record: TicketRecord) -> Waiting:
    """What waits, as far as its ticket tells."""
    return held(record.ticket.id, record.proposed or "")


def thread_of(record: TicketRecord) -> RunnableConfig:
    """The config of the thread that waits for a ticket: once it has ended, ``graph.invoke(None, config)`` goes on.

    Raises:
        ReviewError: no agent waits for the ticket.
    """
    thread = record.request["labels"].get(THREAD_LABEL)
    if thread is None:
        raise ReviewError(f"no agent waits for ticket {record.ticket.id}: it has no label {THREAD_LABEL!r}")
    return {"configurable": {"thread_id": thread}}


def _last_given(question: dict[str, Any]) -> GivenVerdict | None:
    """What the graph was last resumed with; None where it wasn't yet.

    LangGraph runs a node from its start each time it is resumed, and hands it all that it was ever resumed with. What
    the queue refused would come back for ever, and one day count: so only the last does.
    """
    given = None
    while True:
        try:
            given = interrupt(question, response_schema=GivenVerdict)
        except GraphInterrupt:
            return given


def _resolve(queue: ReviewQueue, ticket: str, given: GivenVerdict) -> str:
    """Give the verdict in the queue; why that refuses it, or nothing."""
    try:
        queue.resolve(
            ticket,
            given.verdict,
            text=given.text,
            reason=given.reason,
            reviewer=given.reviewer,
            version=given.version,
        )
    except QueueStorageError:
        raise
    except ReviewError as refused:
        return str(refused)
    return ""


def _question(record: TicketRecord, refused: str = "") -> dict[str, Any]:
    """What the interrupt asks, as JSON values."""
    return {
        "ticket": record.ticket.id,
        "queue": record.ticket.queue,
        "version": record.ticket.version,
        "question": record.request["messages"][-1]["content"],
        "proposed": record.proposed,
        "reasons": attempt_reasons(tuple(map(read_attempt, record.attempts)), record.rulings),
        "refused": refused,
    }
