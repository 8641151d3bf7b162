"""What tracers see of a decision: a run an attempt, an event, and feedback for LangSmith."""

from typing import Any, Final
from uuid import UUID

from langchain_core.callbacks import (
    AsyncCallbackManager,
    CallbackManager,
    adispatch_custom_event,
    dispatch_custom_event,
)
from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_async_callback_manager_for_config, get_callback_manager_for_config

from ilis_guard import Attempt, Decision
from ilis_guard.errors import ModelError
from ilis_guard.policy.explain import explain_decision
from ilis_guard.types import ErrorInfo
from ilis_guard_langchain.telling import told

ATTEMPT: Final = "ilis_guard.attempt"
DECISION: Final = "ilis_guard.decision"
FEEDBACK: Final = "ilis_guard.uncertainty"


def trace_attempts(decision: Decision, given: RunnableConfig | BaseRunManager) -> None:
    """Tell tracers of a decision: a run `ilis_guard.attempt` for each attempt, and the event `ilis_guard.decision`.

    Neither carries prompts or answers: those stand in the runs of the models themselves.

    Args:
        decision: just made.
        given: the config of the run that it was made in, as a child of that run gets it; or that run's manager.
    """
    manager = _sync(given)
    for number, attempt in enumerate(decision.attempts, start=1):
        run = manager.on_chain_start({}, _asked(attempt, number), name=ATTEMPT)
        if attempt.error is not None:
            run.on_chain_error(_error(attempt.error), outputs=_found(attempt))
        else:
            run.on_chain_end(_found(attempt))
    if manager.parent_run_id is not None:
        dispatch_custom_event(DECISION, told(decision), config={"callbacks": manager})


async def atrace_attempts(decision: Decision, given: RunnableConfig | BaseRunManager) -> None:
    """As `trace_attempts`, with async callbacks."""
    manager = _async(given)
    for number, attempt in enumerate(decision.attempts, start=1):
        run = await manager.on_chain_start({}, _asked(attempt, number), name=ATTEMPT)
        if attempt.error is not None:
            await run.on_chain_error(_error(attempt.error), outputs=_found(attempt))
        else:
            await run.on_chain_end(_found(attempt))
    if manager.parent_run_id is not None:
        await adispatch_custom_event(DECISION, told(decision), config={"callbacks": manager})


def feedback(decision: Decision, run_id: UUID | str, session_id: UUID | str | None = None) -> dict[str, Any]:
    """What LangSmith is told of a decision: ``client.create_feedback(**feedback(decision, run_id))``.

    Args:
        decision: whose score and action it carries, without prompts and answers.
        run_id: of the traced run that made it.
        session_id: of the project that the run is in, ``client.read_project(project_name=...).id``; newer deployments
            of LangSmith find no run without it.
    """
    return {
        "run_id": run_id,
        "session_id": session_id,
        "key": FEEDBACK,
        "score": decision.uncertainty,
        "value": decision.action.value,
        "comment": explain_decision(decision),
        "source_info": {"decision": decision.id, "policy": decision.policy, "rule": decision.rule},
    }


def _error(error: ErrorInfo) -> ModelError:
    return ModelError(f"{error.kind}: {error.message}")


def _asked(attempt: Attempt, number: int) -> dict[str, Any]:
    return {"tier": attempt.tier, "attempt": number}


def _found(attempt: Attempt) -> dict[str, Any]:
    """What an attempt came to, without its text."""
    names = ("stage", "uncertainty", "typicality", "tokens", "seconds", "cost", "finish_reason", "error")
    return {name: getattr(attempt, name) for name in names}


def _sync(given: RunnableConfig | BaseRunManager) -> CallbackManager:
    if isinstance(given, BaseRunManager):
        return CallbackManager(**_of_run(given))
    return get_callback_manager_for_config(given)


def _async(given: RunnableConfig | BaseRunManager) -> AsyncCallbackManager:
    if isinstance(given, BaseRunManager):
        return AsyncCallbackManager(**_of_run(given))
    return get_async_callback_manager_for_config(given)


def _of_run(manager: BaseRunManager) -> dict[str, Any]:
    """What a child of a run hears and carries; a model's run manager makes no child itself."""
    return {
        "handlers": list(manager.inheritable_handlers),
        "inheritable_handlers": list(manager.inheritable_handlers),
        "parent_run_id": manager.run_id,
        "tags": list(manager.inheritable_tags),
        "inheritable_tags": list(manager.inheritable_tags),
        "metadata": dict(manager.inheritable_metadata),
        "inheritable_metadata": dict(manager.inheritable_metadata),
    }
