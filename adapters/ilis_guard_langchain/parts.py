"""The parts of a chain: what stands before its model, the model, and what stands after."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import (
    RouterRunnable,
    Runnable,
    RunnableBinding,
    RunnableBranch,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase, RunnableEachBase
from langchain_core.runnables.configurable import DynamicRunnable, RunnableConfigurableAlternatives

from ilis_guard.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A chain that is known to be ``head | model | tail``."""

    head: Runnable[Any, Any] | None
    model: Runnable[Any, Any]
    """The step in which the model is asked: itself, or bound to options, with retries, with fallbacks."""
    core: BaseLanguageModel[Any]
    """The model in that step."""
    tail: Runnable[Any, Any] | None


def parts_of(chain: Runnable[Any, Any]) -> Parts | None:
    """Take a chain apart at its last model; None where it doesn't show one, as a function doesn't that calls it."""
    if (core := model_in(chain)) is not None:
        return Parts(head=None, model=chain, core=core, tail=None)
    if isinstance(chain, RunnableSequence):
        steps = chain.steps
        for place in reversed(range(len(steps))):
            if (core := model_in(steps[place])) is None:
                # Asked by a step that does more than that, a later model answers unheard.
                if any(isinstance(each, BaseLanguageModel) for each in inside(steps[place])):
                    return None
            else:
                return Parts(
                    head=_sequence(steps[:place]), model=steps[place], core=core, tail=_sequence(steps[place + 1 :])
                )
    # What listens to the beginning and the end of the whole can't be told of its parts.
    if isinstance(chain, RunnableBinding) and not chain.config_factories and (within := parts_of(chain.bound)):
        return _bound(within, chain)
    return None


def model_in(step: Runnable[Any, Any]) -> BaseLanguageModel[Any] | None:
    """The model that a step asks and does nothing else; None where it is no such step."""
    while not isinstance(step, BaseLanguageModel):
        if isinstance(step, RunnableBindingBase):
            step = step.bound
        elif isinstance(step, RunnableWithFallbacks):
            step = step.runnable
        elif isinstance(step, DynamicRunnable):
            step = step.default
        else:
            return None
    return step


def bound_to(step: Runnable[Any, Any]) -> dict[str, Any] | None:
    """What a step's model is bound to; None where there is more about it, such as fallbacks, than that."""
    kwargs: dict[str, Any] = {}
    while isinstance(step, RunnableBinding):
        kwargs = {**step.kwargs, **kwargs}
        step = step.bound
    return kwargs if isinstance(step, BaseLanguageModel) else None


def inside(chain: Runnable[Any, Any]) -> Iterator[Runnable[Any, Any]]:
    """A runnable and all that it shows to be inside it, at any depth. Functions show what they refer to by name."""
    seen: dict[int, Runnable[Any, Any]] = {}
    left = [chain]
    while left:
        each = left.pop()
        if id(each) not in seen:
            seen[id(each)] = each
            left.extend(part for part in _shown(each) if isinstance(part, Runnable))
    yield from seen.values()


def _shown(chain: Runnable[Any, Any]) -> Iterable[Any]:
    """What is directly inside: by its kind where LangChain's own picture of it shows nothing."""
    for kind, parts in _HOLDERS:
        if isinstance(chain, kind):
            return parts(chain)
    return [node.data for node in chain.get_graph().nodes.values()]


_HOLDERS: Final[tuple[tuple[Any, Callable[[Any], Iterable[Any]]], ...]] = (
    ((RunnableBindingBase, RunnableEachBase), lambda chain: [chain.bound]),
    (RunnableWithFallbacks, lambda chain: chain.runnables),
    (RunnableBranch, lambda chain: [chain.default, *(part for branch in chain.branches for part in branch)]),
    (RouterRunnable, lambda chain: chain.runnables.values()),
    (RunnableConfigurableAlternatives, lambda chain: [chain.default, *chain.alternatives.values()]),
    (DynamicRunnable, lambda chain: [chain.default]),
)
"""Kinds of runnables that hold others, and how to get at these."""


def check_unguarded(chain: Runnable[Any, Any]) -> None:
    """See that there is no guard inside.

    Raises:
        ConfigError: there is one: its answers would be judged twice, and its refusals taken for answers.
    """
    for inner in inside(chain):
        if type(inner).__module__.partition(".")[0] == __name__.partition(".")[0]:
            raise ConfigError(
                f"the chain holds a {type(inner).__name__}, which is guarded already: its refusals would be taken for "
                "answers; wrap the chain without it, or use the chain as it is"
            )


def _bound(parts: Parts, binding: RunnableBinding[Any, Any]) -> Parts:
    """The parts of what is bound, each with the binding's config; what it passes on goes to the first."""
    config = {name: value for name, value in binding.config.items() if name not in ("run_name", "run_id")}

    def within(part: Runnable[Any, Any], kwargs: dict[str, Any]) -> Runnable[Any, Any]:
        return RunnableBinding(bound=part, kwargs=kwargs, config=config) if config or kwargs else part

    given = dict(binding.kwargs)
    return Parts(
        head=None if parts.head is None else within(parts.head, given),
        model=within(parts.model, given if parts.head is None else {}),
        core=parts.core,
        tail=None if parts.tail is None else within(parts.tail, {}),
    )


def _sequence(steps: list[Runnable[Any, Any]]) -> Runnable[Any, Any] | None:
    if len(steps) < 2:
        return steps[0] if steps else None
    return RunnableSequence(*steps)
