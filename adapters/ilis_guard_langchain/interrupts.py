"""An agent's escalated answer waits for its verdict: in the queue as a ticket, in the graph as an interrupt."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, NotRequired, TypedDict

from langchain.agents import AgentState
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.messages import AIMessage, AnyMessage, RemoveMessage
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphInterrupt
from langgraph.types import interrupt
from pydantic import Field, StringConstraints, ValidationError

from ilis_guard import Action, Decision, ReviewQueue, Verdict
from ilis_guard.config.base import StrictModel
from ilis_guard.errors import QueueStorageError, ReviewError
from ilis_guard.review import TicketRecord
from ilis_guard.types.decisions import read_attempt
from ilis_guard_langchain.messages import KEY, attach_summary, summarize_decision

THREAD_LABEL: Final = "thread_id"
"""The label in which a ticket keeps the graph's thread that waits for it."""
_EXAMPLE: Final = """{"verdict": "accept"}, {"verdict": "correct", "text": "..."} or {"verdict": "reject"}"""
_MAX_PLACE: Final = 60
"""Characters of a key at fault, in `refused`."""
_MAX_PROBLEMS: Final = 3
"""Of what a graph was resumed with, in `refused`."""
END: Final = {"jump_to": "end"}
"""The state update for an agent that would call its model again because the structured answer is missing."""

# As for verdicts by webhook: PostgreSQL takes no NUL in a text.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]


class PendingAnswer(TypedDict):
    """An answer in an agent's state while a person reviews it."""

    ticket: str
    text: str
    """What a reviewer sees of the answer; empty where no tier gave one."""
    messages: list[AnyMessage]
    """As the model gave them: they go out if the answer is accepted."""
    structured_response: Any
    """Goes with them; None where the agent gives none."""


class GuardedState(AgentState[Any]):
    """An agent's state with the answer that is pending."""

    ilis_guard_pending: NotRequired[Annotated[PendingAnswer | None, PrivateStateAttr]]


class VerdictResponse(StrictModel):
    """The value that resumes a graph, ``Command(resume={"verdict": "accept"})``: as a verdict by webhook."""

    verdict: Annotated[Verdict, Field(strict=False)]
    text: Text = ""
    """The right answer, with the verdict `correct` and only with it."""
    reason: Text = ""
    """Why."""
    reviewer: Text = Field(default="", max_length=100)
    """Who decided so. Where somebody has the ticket claimed, only they may resolve it."""
    version: int | None = Field(default=None, ge=1)
    """The version of the ticket that they looked at; None for whatever it is now."""


_RESPONSE_SCHEMA: Final = VerdictResponse.model_json_schema()
"""For clients that render a form. LangGraph doesn't check values against it: its error would come out of the graph,
instead of a question that says what was wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewOutcome:
    """A ticket that has ended, and its effect on the answer."""

    record: TicketRecord
    response: VerdictResponse | None
    """What the graph was resumed with; None where the verdict came from the queue."""

    def released(self, pending: PendingAnswer) -> PendingAnswer | None:
        """What goes out as the answer; None where nothing does: it was rejected, or expired."""
        record, ticket = self.record, self.record.ticket
        is_redacted = record.redacted_at is not None
        if ticket.verdict is Verdict.CORRECT and not is_redacted:
            return text_answer(ticket.id, ticket.text)
        if ticket.verdict is Verdict.ACCEPT:
            # What goes out is what the reviewer saw, whatever this run of the agent came to.
            return pending if is_redacted or pending["text"] == record.proposed else answer_of_ticket(record)
        return None

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON values; with `overruled`, what the graph was resumed with too late to count."""
        ticket, response = self.record.ticket, self.response
        values: dict[str, Any] = {
            "state": ticket.state,
            "verdict": None if ticket.verdict is None else ticket.verdict.value,
            "reason": ticket.reason,
            "reviewer": self.record.reviewer,
        }
        if response is not None and (response.verdict, response.text) != (ticket.verdict, ticket.text):
            values["overruled"] = {"verdict": response.verdict.value, "reviewer": response.reviewer}
        return values


def wait_for_verdict(queue: ReviewQueue, ticket: str) -> ReviewOutcome:
    """The ticket with its verdict, wherever that was given; interrupts the graph while there is none.

    A verdict that the graph is resumed with is given to the queue too; where somebody was faster there, theirs stands.
    One that the queue refuses, and anything else that is no verdict, leaves the interrupt pending, and `refused` in its
    value says why.

    Raises:
        GraphInterrupt: there is no verdict yet.
        QueueStorageError: the database failed; resuming the thread tries again.
        TicketNotFoundError: the ticket is gone.
    """
    response, refused = _last_response(_question(queue.get(ticket)))
    if response is not None:
        refused = _resolve(queue, ticket, response)
    record = queue.get(ticket)
    if record.ticket.ended_at is None:
        interrupt(_question(record, refused), response_schema=_RESPONSE_SCHEMA)
        raise AssertionError("all that the graph was resumed with was read before, so there was nothing to return")
    return ReviewOutcome(record=record, response=response)


def resume_state(state: GuardedState, pending: PendingAnswer, outcome: ReviewOutcome) -> dict[str, Any]:
    """The update of an agent's state by a review: what goes out replaces what was said meanwhile."""
    record = outcome.record
    summary = {**summarize_ticket(record), "verdict": outcome.to_dict()}
    released = outcome.released(pending) or text_answer(record.ticket.id, record.say)
    meanwhile = [turn for turn in state["messages"] if _summary(turn).get("ticket") == record.ticket.id]
    name = meanwhile[0].name if meanwhile else None
    # New messages, not the same one with another text: whoever streams messages is shown only new ones.
    answer = [turn if turn.name else turn.model_copy(update={"name": name}) for turn in released["messages"]]
    update = {
        "messages": [
            *(RemoveMessage(id=str(turn.id)) for turn in meanwhile),
            *(attach_summary(turn, summary) for turn in answer),
        ],
        "ilis_guard_pending": None,
    }
    if "structured_response" not in state:
        return update
    structured = released["structured_response"]
    return {**update, "structured_response": structured, **({} if structured else END)}


def text_answer(ticket: str, text: str) -> PendingAnswer:
    """An answer of which only the text is known."""
    return PendingAnswer(ticket=ticket, text=text, messages=[AIMessage(text)], structured_response=None)


def answer_of_ticket(record: TicketRecord) -> PendingAnswer:
    """The pending answer as far as its ticket keeps it."""
    return text_answer(record.ticket.id, record.proposed or "")


def summarize_ticket(record: TicketRecord) -> dict[str, Any]:
    """Summarize an escalation of which only the ticket is left."""
    attempts = tuple(map(read_attempt, record.attempts))
    return summarize_decision(
        Decision(
            id=record.decision,
            action=Action.ESCALATE,
            text=record.say,
            uncertainty=attempts[-1].uncertainty,
            rulings=record.rulings,
            attempts=attempts,
            policy=record.policy,
            ticket=record.ticket,
        )
    )


def thread_of(record: TicketRecord) -> RunnableConfig:
    """The config of the thread that waits for a ticket: once it has ended, ``graph.invoke(None, config)`` resumes it.

    Raises:
        ReviewError: no agent waits for the ticket.
    """
    thread = record.request["labels"].get(THREAD_LABEL)
    if thread is None:
        raise ReviewError(f"no agent waits for ticket {record.ticket.id}: it has no label {THREAD_LABEL!r}")
    return {"configurable": {"thread_id": thread}}


def _summary(message: AnyMessage) -> dict[str, Any]:
    summary: dict[str, Any] = message.response_metadata.get(KEY, {})
    return summary


def _last_response(question: dict[str, Any]) -> tuple[VerdictResponse | None, str]:
    """The verdict that the graph was last resumed with, if that was one; else why it wasn't, if it was resumed at all.

    LangGraph runs a node from its start each time it is resumed, and hands it all that it was ever resumed with. A
    verdict that the queue refused would come back for ever, and one day count: so only the last does.
    """
    response, refused = None, ""
    while True:
        try:
            given = interrupt(question, response_schema=_RESPONSE_SCHEMA)
        except GraphInterrupt:
            return response, refused
        response, refused = _read_response(given)


def _read_response(given: object) -> tuple[VerdictResponse | None, str]:
    """The verdict that a graph was resumed with; or what is wrong with what it was resumed with instead."""
    try:
        return VerdictResponse.model_validate(given), ""
    except ValidationError as invalid:
        what = f"got {type(given).__name__!r}"
        if isinstance(given, Mapping):
            problems = invalid.errors(include_input=False, include_url=False, include_context=False)
            what = "; ".join(f"{_place(each['loc'])}: {each['msg']}" for each in problems[:_MAX_PROBLEMS])
        return None, f"this waits for a verdict, resume it with {_EXAMPLE}: {what}"


def _place(location: tuple[int | str, ...]) -> str:
    """The key at fault; a stranger's may be of any length."""
    place = repr(".".join(map(str, location)))
    return place if len(place) <= _MAX_PLACE else f"{place[:_MAX_PLACE]}..."


def _resolve(queue: ReviewQueue, ticket: str, response: VerdictResponse) -> str:
    """Give the verdict to the queue; why the queue refuses it, or an empty string."""
    try:
        queue.resolve(ticket, response.verdict, **response.model_dump(exclude={"verdict"}))
    except QueueStorageError:
        raise
    except ReviewError as refusal:
        return str(refusal)
    return ""


def _question(record: TicketRecord, refused: str = "") -> dict[str, Any]:
    """The interrupt's value, as JSON values. It reaches whoever called the graph: errors stand in it by kind."""
    return {
        "ticket": record.ticket.id,
        "queue": record.ticket.queue,
        "version": record.ticket.version,
        "question": record.request["messages"][-1]["content"],
        "proposed": record.proposed,
        "explanation": record.explain(),
        "refused": refused,
    }
