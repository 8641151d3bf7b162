"""A guard as a LangChain chat model, which may decline to answer."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any, NoReturn, Self

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, ModelProfile

# LangChain's own conversion of chunks to the events of its version 3; it has no public one for a model with chunks.
from langchain_core.language_models._compat_bridge import achunks_to_events, chunks_to_events
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.utils import LC_ID_PREFIX
from langchain_protocol.protocol import MessagesData
from pydantic import ConfigDict, Field

from ilis_guard import Decision, Guard, StreamMode, TextDelta
from ilis_guard.models import Tokenizing
from ilis_guard.models.weights import Progress
from ilis_guard.types import Label, Labels
from ilis_guard_langchain.messages import build_chunk, build_message, to_messages
from ilis_guard_langchain.tracing import atrace_attempts, trace_attempts

NO_TOOLS = (
    "a guard decides on answers, and a tool call is none: it has no score. Guard an agent's answers with "
    "IlisGuardMiddleware, and let its own model call the tools"
)
NO_STRUCTURE = (
    "a guard has no structured output: its models are held to no schema, and it may decline. Ask for JSON in the "
    "prompt, look at `additional_kwargs` for a `refusal`, and parse the rest: `prompt | chat | JsonOutputParser()`"
)


class ChatIlisGuard(BaseChatModel):
    """A guard in the place of a chat model: ``prompt | ChatIlisGuard.from_config("guard.yaml") | StrOutputParser()``.

    The output is a message: the answer, or the policy's text with a ``refusal`` in its ``additional_kwargs``. The
    decision's summary stands in ``response_metadata["ilis_guard"]``. An abstention or an escalation is a value, never
    an exception, so that ``with_fallbacks`` doesn't swallow it. Async calls decide in a thread, as `Guard.adecide`.

    Labels come from the field, from ``bind(labels={...})``, and from a call's ``labels={...}``, the later over the
    earlier. `configurable_fields` makes the field one of a run's ``config["configurable"]``.
    """

    guard: Guard = Field(exclude=True, repr=False)
    """Decides. Whoever created it closes it."""
    labels: dict[str, Label] = Field(default_factory=dict)
    """What the policy's conditions see as ``labels.NAME``."""
    stream_mode: StreamMode = "hold"
    """What a stream shows before the decision; see `ilis_guard.StreamMode`. ``invoke`` and ``batch`` show nothing."""
    stop: list[str] | None = None
    """An answer ends before the first of these; a call's own take their place."""
    streaming: bool = False
    """LangChain's: whether ``invoke`` streams, for callbacks that want the chunks."""
    cache: BaseCache | bool | None = Field(default=False, exclude=True)
    """LangChain's, and off even where there is a global cache: a decision isn't the same each time. A tier may be down,
    a budget spent, an answer sampled for an audit; cached, a passing failure would be the answer from then on."""

    # A misspelt `labels` that is ignored would open a gate.
    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    @classmethod
    def from_config(cls, path: str | Path, progress: Progress | None = None, **fields: Any) -> Self:
        """Build it from ``guard.yaml``.

        Args:
            path: as of `Guard.from_config`, whose errors it raises.
            progress: as of `Guard.from_config`.
            fields: the chat model's other fields.
        """
        return cls(guard=Guard.from_config(path, progress), **fields)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """No: a guard is models, a queue and secrets; its guard.yaml is what can be stored."""
        return False

    @property
    def model_name(self) -> str:
        """The guard's tiers: whoever counts tokens by model counts those of all its attempts."""
        return " > ".join(tier.name for tier in self.guard.tiers)

    @property
    def _llm_type(self) -> str:
        return "ilis-guard"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        tiers = {tier.name: str(tier.model.fingerprint or type(tier.model).__name__) for tier in self.guard.tiers}
        bundles = {tier.name: tier.bundle.digest for tier in self.guard.tiers if tier.bundle is not None}
        return {
            "model_name": self.model_name,
            "policy": self.guard.policy.fingerprint,
            "tiers": tiers,
            "bundles": bundles,
            "labels": self.labels,
            "stop": self.stop,
            "stream_mode": self.stream_mode,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=self._stop(stop), **kwargs)
        return LangSmithParams(**{**params, "ls_provider": "ilis_guard"})

    def _resolve_model_profile(self) -> ModelProfile:
        return ModelProfile(
            text_inputs=True,
            image_inputs=False,
            image_url_inputs=False,
            pdf_inputs=False,
            audio_inputs=False,
            video_inputs=False,
            text_outputs=True,
            image_outputs=False,
            audio_outputs=False,
            video_outputs=False,
            reasoning_output=False,
            tool_calling=False,
            structured_output=False,
        )

    def get_token_ids(self, text: str) -> list[int]:
        """Tokenize a text with the first tier's model, or by `custom_get_token_ids`, for trimming.

        Raises:
            NotImplementedError: that model has no tokenizer here.
        """
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        first = self.guard.tiers[0]
        if not isinstance(first.model, Tokenizing):
            raise NotImplementedError(
                f"the model of the tier {first.name!r} doesn't say how it cuts texts into tokens: give the chat model "
                "`custom_get_token_ids`"
            )
        return first.model.text_tokens(text)

    def bind_tools(self, tools: Any, **_: Any) -> NoReturn:
        """Refuse.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(NO_TOOLS)

    def with_structured_output(self, schema: Any, **_: Any) -> NoReturn:
        """Refuse.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(NO_STRUCTURE)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        decision = self.guard.decide(to_messages(messages), **self._options(stop, kwargs))
        if run_manager is not None:
            trace_attempts(decision, run_manager)
        return self._result(decision)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        decision = await self.guard.adecide(to_messages(messages), **self._options(stop, kwargs))
        if run_manager is not None:
            await atrace_attempts(decision, run_manager)
        return self._result(decision)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        del run_manager  # LangChain reports each chunk itself, and gives a stream no run to trace attempts in
        options = self._options(stop, kwargs)
        has_text = False
        with closing(self.guard.stream(to_messages(messages), mode=self.stream_mode, **options)) as events:
            for event in events:
                yield build_chunk(event, model_name=self.model_name, has_text=has_text)
                has_text = isinstance(event, TextDelta)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        del run_manager
        options = self._options(stop, kwargs)
        has_text = False
        async with aclosing(self.guard.astream(to_messages(messages), mode=self.stream_mode, **options)) as events:
            async for event in events:
                yield build_chunk(event, model_name=self.model_name, has_text=has_text)
                has_text = isinstance(event, TextDelta)

    def _stream_chat_model_events(
        self, messages: list[BaseMessage], *, run_manager: CallbackManagerForLLMRun, **options: Any
    ) -> Iterator[MessagesData]:
        """LangChain's events of version 3 (``stream_events(version="v3")``), which can withdraw nothing."""
        chunks = self._without_retractions()._stream(messages, **options)  # noqa: SLF001 - of its own class
        return chunks_to_events(chunks, message_id=f"{LC_ID_PREFIX}-{run_manager.run_id}")

    def _astream_chat_model_events(
        self, messages: list[BaseMessage], *, run_manager: AsyncCallbackManagerForLLMRun, **options: Any
    ) -> AsyncIterator[MessagesData]:
        """As `_stream_chat_model_events`."""
        chunks = self._without_retractions()._astream(messages, **options)  # noqa: SLF001 - of its own class
        return achunks_to_events(chunks, message_id=f"{LC_ID_PREFIX}-{run_manager.run_id}")

    def _without_retractions(self) -> Self:
        """This model, in a mode that shows nothing that may be withdrawn."""
        return self.model_copy(update={"stream_mode": "hold"}) if self.stream_mode == "optimistic" else self

    def _result(self, decision: Decision) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=build_message(decision, model_name=self.model_name))])

    def _stop(self, stop: list[str] | None) -> list[str] | None:
        return self.stop if stop is None else stop

    def _options(self, stop: list[str] | None, given: dict[str, Any]) -> dict[str, Any]:
        """The guard's arguments beside the messages."""
        # `stream` is LangChain's: whether this call streams.
        if unknown := sorted(set(given) - {"labels", "stream"}):
            raise TypeError(f"a guard takes the keywords 'labels' and 'stop' and no other, got {unknown!r}")
        labels: Labels = given.get("labels") or {}
        return {"labels": {**self.labels, **labels}, "stop": self._stop(stop) or ()}
