"""The structure of a chain: what stands before its model, the model, what stands after, and what is nested inside."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args, get_origin

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import BaseMessage
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

OutputKind = Literal["text", "message", "other"]
"""The type of a chain's output, as far as a refusal can take the same type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainParts:
    """A chain of the form ``head | model | tail``."""

    head: Runnable[Any, Any] | None
    model: Runnable[Any, Any]
    """The step that calls the model: the model itself, or bound to options, with retries, with fallbacks."""
    core: BaseLanguageModel[Any]
    """The model in that step."""
    tail: Runnable[Any, Any] | None


def split_chain(chain: Runnable[Any, Any]) -> ChainParts | None:
    """Split a chain at its last model; None where it shows none, as a function that calls a model doesn't."""
    if (core := find_model(chain)) is not None:
        return ChainParts(head=None, model=chain, core=core, tail=None)
    if isinstance(chain, RunnableSequence):
        steps = chain.steps
        for index in reversed(range(len(steps))):
            if (core := find_model(steps[index])) is not None:
                head, tail = _sequence(steps[:index]), _sequence(steps[index + 1 :])
                return ChainParts(head=head, model=steps[index], core=core, tail=tail)
            # A model inside a step that does more than call it: it answers last, and the split would miss it.
            if any(isinstance(each, BaseLanguageModel) for each in iter_nested(steps[index])):
                return None
    # Listeners to the start and the end of the whole chain (config factories) can't be given to its parts.
    if isinstance(chain, RunnableBinding) and not chain.config_factories and (inner := split_chain(chain.bound)):
        return _bind_parts(inner, chain)
    return None


def find_model(step: Runnable[Any, Any]) -> BaseLanguageModel[Any] | None:
    """The model of a step that only calls it; None for any other step."""
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


def bound_options(step: Runnable[Any, Any]) -> dict[str, Any] | None:
    """The options that a step binds its model to; None where it does more than bind, such as fall back."""
    kwargs: dict[str, Any] = {}
    while isinstance(step, RunnableBinding):
        kwargs = {**step.kwargs, **kwargs}
        step = step.bound
    return kwargs if isinstance(step, BaseLanguageModel) else None


def iter_nested(chain: Runnable[Any, Any]) -> Iterator[Runnable[Any, Any]]:
    """A runnable and all runnables that it shows inside, at any depth. Functions show those that they refer to."""
    seen: dict[int, Runnable[Any, Any]] = {}
    stack = [chain]
    while stack:
        each = stack.pop()
        if id(each) not in seen:
            seen[id(each)] = each
            stack.extend(part for part in _children(each) if isinstance(part, Runnable))
    yield from seen.values()


def check_unguarded(chain: Runnable[Any, Any]) -> None:
    """Check that a chain holds no guard.

    Raises:
        ConfigError: it holds one: its answers would be judged twice, and its refusals taken for answers.
    """
    for nested in iter_nested(chain):
        if type(nested).__module__.partition(".")[0] == __name__.partition(".")[0]:
            raise ConfigError(
                f"the chain holds a {type(nested).__name__}, which is guarded already: its refusals would be taken for "
                "answers; wrap the chain without it, or use the chain as it is"
            )


def output_kind(chain: Runnable[Any, Any]) -> OutputKind:
    """The type that a chain declares for its output."""
    declared = chain.OutputType
    while get_args(declared) and (hasattr(declared, "__metadata__") or not isinstance(get_origin(declared), type)):
        declared = get_args(declared)[0]
    if not isinstance(declared, type):
        return "other"
    if issubclass(declared, BaseMessage):
        return "message"
    return "text" if issubclass(declared, str) else "other"


_CHILDREN: Final[tuple[tuple[Any, Callable[[Any], Iterable[Any]]], ...]] = (
    ((RunnableBindingBase, RunnableEachBase), lambda chain: [chain.bound]),
    (RunnableWithFallbacks, lambda chain: chain.runnables),
    (RunnableBranch, lambda chain: [chain.default, *(part for branch in chain.branches for part in branch)]),
    (RouterRunnable, lambda chain: chain.runnables.values()),
    (RunnableConfigurableAlternatives, lambda chain: [chain.default, *chain.alternatives.values()]),
    (DynamicRunnable, lambda chain: [chain.default]),
)
"""Classes of runnables that hold others, and how to reach these: LangChain's graph of them doesn't show them."""


def _children(chain: Runnable[Any, Any]) -> Iterable[Any]:
    for kind, children in _CHILDREN:
        if isinstance(chain, kind):
            return children(chain)
    return [node.data for node in chain.get_graph().nodes.values()]


def _bind_parts(parts: ChainParts, binding: RunnableBinding[Any, Any]) -> ChainParts:
    """Give each part the binding's config; the binding's options go to the first part."""
    config = {name: value for name, value in binding.config.items() if name not in ("run_name", "run_id")}

    def bind(part: Runnable[Any, Any], kwargs: dict[str, Any]) -> Runnable[Any, Any]:
        return RunnableBinding(bound=part, kwargs=kwargs, config=config) if config or kwargs else part

    kwargs = dict(binding.kwargs)
    return ChainParts(
        head=None if parts.head is None else bind(parts.head, kwargs),
        model=bind(parts.model, kwargs if parts.head is None else {}),
        core=parts.core,
        tail=None if parts.tail is None else bind(parts.tail, {}),
    )


def _sequence(steps: list[Runnable[Any, Any]]) -> Runnable[Any, Any] | None:
    if len(steps) < 2:
        return steps[0] if steps else None
    return RunnableSequence(*steps)
