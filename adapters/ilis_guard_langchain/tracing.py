"""A decision for tracers: a run for each attempt, an event, and feedback for LangSmith."""

from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.callbacks.manager import AsyncParentRunManager, BaseRunManager, ParentRunManager
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_async_callback_manager_for_config, get_callback_manager_for_config

from ilis_guard import Decision
from ilis_guard.errors import ModelError
from ilis_guard.policy.explain import explain_decision
from ilis_guard_langchain.messages import summarize_decision

ATTEMPT: Final = "ilis_guard.attempt"
DECISION: Final = "ilis_guard.decision"
_OUTPUTS: Final = (
    "stage",
    "uncertainty",
    "typicality",
    "calibrated",
    "rank",
    "tokens",
    "seconds",
    "cost",
    "finish_reason",
)


def trace_attempts(decision: Decision, given: RunnableConfig | BaseRunManager) -> None:
    """Report a decision to tracers: a run `ilis_guard.attempt` for each attempt, and the event `ilis_guard.decision`.

    Neither carries prompts, answers or exceptions' texts. Prompts and answers stand in the runs of the models.

    Args:
        decision: just made.
        given: the config of the run that it was made in, as a child of that run gets it; or that run's manager.
    """
    if isinstance(given, BaseRunManager):
        manager = ParentRunManager.get_child(given)  # type: ignore[arg-type]  # a model's has all that this reads
    else:
        manager = get_callback_manager_for_config(given)
    for inputs, outputs, error in _attempt_runs(decision):
        run = manager.on_chain_start({}, inputs, name=ATTEMPT)
        if error is None:
            run.on_chain_end(outputs)
        else:
            run.on_chain_error(error, outputs=outputs)
    if manager.parent_run_id is not None:
        dispatch_custom_event(DECISION, summarize_decision(decision), config={"callbacks": manager})


async def atrace_attempts(decision: Decision, given: RunnableConfig | BaseRunManager) -> None:
    """As `trace_attempts`, with async callbacks."""
    if isinstance(given, BaseRunManager):
        manager = AsyncParentRunManager.get_child(given)  # type: ignore[arg-type]  # as in `trace_attempts`
    else:
        manager = get_async_callback_manager_for_config(given)
    for inputs, outputs, error in _attempt_runs(decision):
        run = await manager.on_chain_start({}, inputs, name=ATTEMPT)
        if error is None:
            await run.on_chain_end(outputs)
        else:
            await run.on_chain_error(error, outputs=outputs)
    if manager.parent_run_id is not None:
        await adispatch_custom_event(DECISION, summarize_decision(decision), config={"callbacks": manager})


def feedback(decision: Decision, run_id: UUID | str, session_id: UUID | str | None = None) -> dict[str, Any]:
    """Describe a decision as LangSmith's feedback: ``client.create_feedback(**feedback(decision, run_id))``.

    Args:
        decision: its score, its action and its explanation are in the feedback, prompts and answers aren't.
        run_id: of the traced run that made it.
        session_id: of the project that the run is in, ``client.read_project(project_name=...).id``; newer deployments
            of LangSmith find no run without it.
    """
    return {
        "run_id": run_id,
        "session_id": session_id,
        "key": "ilis_guard.uncertainty",
        "score": decision.uncertainty,
        "value": decision.action.value,
        "comment": explain_decision(decision),
        "source_info": {"decision": decision.id, "policy": decision.policy, "rule": decision.rule},
    }


def _attempt_runs(decision: Decision) -> Iterator[tuple[dict[str, Any], dict[str, Any], ModelError | None]]:
    """The inputs, the outputs and the error of each attempt's run."""
    for number, attempt in enumerate(decision.attempts, start=1):
        info = attempt.error
        outputs = {name: getattr(attempt, name) for name in _OUTPUTS}
        yield (
            {"tier": attempt.tier, "attempt": number},
            {**outputs, "error": None if info is None else info.for_callers()},
            None if info is None else ModelError(f"{info.kind}: {info.message}"),
        )
