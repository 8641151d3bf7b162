"""Local models in chains: LangChain's Hugging Face pipelines, tapped for the bundle of the tier they stand in."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from langchain_core.prompt_values import PromptValue

from ilis_guard import Message, Tier
from ilis_guard.types import Fingerprint
from ilis_guard_langchain.parts import Parts, bound_to

if TYPE_CHECKING:  # importing it imports torch
    from ilis_guard.models.tapped import TappedModel

KEY: Final = "pipeline_kwargs"
"""What langchain-huggingface passes on to the pipeline, and that to ``generate``."""


class TappedPipeline:
    """A pipeline of transformers inside a chain."""

    def __init__(self, model: "TappedModel", *, bound: Mapping[str, Any], is_chat: bool) -> None:
        self.model = model
        self._bound = bound
        self._is_chat = is_chat

    @classmethod
    def found(cls, parts: Parts, tier: Tier) -> Self | None:
        """The pipeline in a chain; None where its model is another, or the tier has no bundle to read it with.

        Raises:
            BundleMismatchError: it generates otherwise than the bundle says.
            ModelError, SignatureError: it can't be tapped.
        """
        # Who has such a model has imported it.
        huggingface = sys.modules.get("langchain_huggingface")
        if huggingface is None or tier.bundle is None or (bound := bound_to(parts.model)) is None:
            return None
        core: Any = parts.core
        is_chat = isinstance(core, huggingface.ChatHuggingFace)
        llm = core.llm if is_chat else core
        metadata = tier.bundle.metadata
        fitted = metadata.fingerprint
        if not (isinstance(llm, huggingface.HuggingFacePipeline) and isinstance(fitted, Fingerprint)):
            return None
        from ilis_guard.models.tapped import TappedModel

        assert metadata.max_new_tokens is not None, "a bundle of a tapped model says"
        pipeline = llm.pipeline
        model = TappedModel.of(
            pipeline.model,
            pipeline.tokenizer,
            _generate_options(pipeline, bound.get(KEY, {})),
            fitted=fitted,
            prompt=metadata.prompt,
            max_new_tokens=metadata.max_new_tokens,
        )
        return cls(model, bound=bound, is_chat=is_chat)

    def conversation(self, given: Any, turns: Sequence[Message]) -> tuple[Message, ...] | None:
        """What the chain asks, without the bundle's own words; None where it words its prompt otherwise.

        Args:
            given: what the chain's model is given.
            turns: the same as messages.
        """
        if self._is_chat:
            return self.model.strip_template(turns)
        return self.model.strip_rendered(given.to_string() if isinstance(given, PromptValue) else turns[-1].content)

    def problem(self, given: Mapping[str, Any]) -> str:
        """Why an answer to a call with these options has no score; empty where they change nothing about it."""
        if not given.get(KEY):
            return ""
        return (
            f"the call passes {sorted(given[KEY])!r} on to the chain's pipeline, which was compared with the tier's "
            "bundle without them: how uncertain its answers are isn't known; bind them before it is wrapped"
        )

    def options(self, listening: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """What the chain's model is called with, so that it is listened to.

        Args:
            listening: what ``generate`` needs for that.
            given: what the caller passes on.
        """
        passed = {**self._bound.get(KEY, {}), **given.get(KEY, {}), **listening}
        # Streaming, the pipeline would run in a thread of its own, which nobody listens to.
        return {**given, KEY: passed} | ({"stream": False} if self._is_chat else {})


def _generate_options(pipeline: Any, bound: Mapping[str, Any]) -> dict[str, Any]:
    """What the pipeline passes to ``generate``: its own options, a call's, and its defaults where both are silent."""
    _, of_call, _ = pipeline._sanitize_parameters(**bound)  # noqa: SLF001 - it says nowhere else what it passes on
    options: dict[str, Any] = pipeline._prepare_generate_kwargs({**pipeline._forward_params, **of_call})  # noqa: SLF001
    return options
