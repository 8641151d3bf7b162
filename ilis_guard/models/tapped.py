"""Tapped models: third parties' models, such as a pipeline in a chain, recorded while the third party calls them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, Self

import torch
from transformers import GenerationConfig

from ilis_guard.config.tiers import QUESTION
from ilis_guard.errors import BundleMismatchError, ModelError
from ilis_guard.models.answer_start import AnswerStart
from ilis_guard.models.checkpoint import Checkpoint
from ilis_guard.models.decoding import (
    decoding_departures,
    end_tokens,
    generation_config,
    hard_decoding_differences,
    parse_decoding,
    special_tokens,
)
from ilis_guard.models.prompts import PromptTemplate, TextCodec
from ilis_guard.models.snapshot import ModelSnapshot
from ilis_guard.signature import Recorder, Tap, TapPoint, locate
from ilis_guard.types import Departure, Fingerprint, Generation, Message

OTHER_DECODING: Final = "another"
"""In the fingerprint of a third party's model that doesn't decode as the bundle's."""


class TappedModel:
    """A causal language model whose ``generate`` a third party calls, once for each conversation.

    Its fingerprint is that of a `LocalModel` in the bundle's wording. What a call has of its own, `strip_template`,
    `strip_rendered` and `check_call` tell.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        points: Sequence[TapPoint],
        *,
        fingerprint: Fingerprint,
        template: PromptTemplate,
        decoding: GenerationConfig,
        max_new_tokens: int | None,
    ) -> None:
        self.fingerprint = fingerprint
        self.template = template
        self.max_new_tokens = max_new_tokens
        """The bundle's; None where the third party has another limit."""
        self._decoding = decoding
        self._model = checkpoint.model
        self._tokenizer = checkpoint.tokenizer
        self._snapshot = checkpoint.snapshot
        self._points = tuple(points)
        self._end_tokens = end_tokens(checkpoint.model, checkpoint.tokenizer, chat=template.is_chat)
        self._special_tokens = special_tokens(checkpoint.tokenizer)
        self._codec = TextCodec(checkpoint.tokenizer, template, self._end_tokens)

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        options: Mapping[str, Any],
        *,
        fitted: Fingerprint,
        prompt: str,
        max_new_tokens: int,
    ) -> Self:
        """Prepare a model in memory, which a bundle will score.

        Args:
            model: a causal language model of transformers.
            tokenizer: its own.
            options: the arguments of ``generate``.
            fitted: the bundle's fingerprint, which says where to tap; the bundle's scorer checks that it fits.
            prompt: the bundle's wording around the user's last turn.
            max_new_tokens: the bundle's.

        Raises:
            ModelError: it isn't in evaluation mode, was changed in memory, or its precision is unknown.
            SignatureError: its architecture can't be tapped, or a tap isn't in the path to the logits.
            BundleMismatchError: its tokens don't each come from a pass of their own, as the bundle's do.
        """
        checkpoint = Checkpoint.of(model, tokenizer)
        if model.config.is_encoder_decoder:
            raise ModelError(f"a {type(model).__name__} encodes its prompt apart from its answer, and can't be tapped")
        template = PromptTemplate(text=prompt, chat_template=tokenizer.chat_template)
        points = locate(model, checkpoint.layers, fitted.site)
        ours = generation_config(
            parse_decoding(fitted.decoding),
            max_new_tokens=max_new_tokens,
            end_tokens=end_tokens(model, tokenizer, chat=template.is_chat),
        )
        if problem := _hard_differences(model, options, ours):
            raise BundleMismatchError(problem)
        departures = decoding_departures(model, options, ours)
        fingerprint = checkpoint.fingerprint(
            points,
            temperature=fitted.temperature,
            decoding=OTHER_DECODING if "decoding" in departures else fitted.decoding,
            template=template,
        )
        checkpoint.prove_taps(points)
        limit = None if "length" in departures else max_new_tokens
        return cls(checkpoint, points, fingerprint=fingerprint, template=template, decoding=ours, max_new_tokens=limit)

    def strip_template(self, messages: Sequence[Message]) -> tuple[Message, ...] | None:
        """Remove the bundle's wording from a conversation's last turn; None where the turn has another wording."""
        question = self.template.question_in(messages[-1].content)
        return None if question is None else (*messages[:-1], replace(messages[-1], content=question))

    def strip_rendered(self, prompt: str) -> tuple[Message, ...] | None:
        """As `strip_template`, for a whole rendered prompt, with the marks of the chat template."""
        question = self.template.question_in_rendered(prompt, self._tokenizer)
        return None if question is None else (Message(role="user", content=question),)

    def check_call(self, model: Any, tokenizer: Any, options: Mapping[str, Any]) -> tuple[Departure, ...]:
        """Check that the third party still calls this model, with its tokenizer; return what departs from the bundle's.

        Args:
            model: that it will call.
            tokenizer: that it will use.
            options: the arguments of ``generate``.

        Raises:
            ModelError: it has replaced the model or its tokenizer, or its tokens don't each come from a pass of their
                own any more.
        """
        if model is not self._model or tokenizer is not self._tokenizer:
            raise ModelError("the pipeline's model or its tokenizer was replaced after it was wrapped; wrap it anew")
        if problem := _hard_differences(model, options, self._decoding):
            raise ModelError(problem)
        return decoding_departures(model, options, self._decoding)

    @contextmanager
    def record(self) -> Iterator["CallRecorder"]:
        """Record one call of ``generate``, of one row, in this thread.

        Raises:
            ModelError: the model was changed in memory since it was prepared.
        """
        self._snapshot.check()
        with torch.no_grad(), Tap(self._points) as tap:
            recorder = Recorder(
                tap,
                end_tokens=self._end_tokens,
                special_tokens=self._special_tokens,
                temperature=self.fingerprint.temperature,
                find_answers=[AnswerStart(self._codec, lambda: call.opened_by)],
            )
            call = CallRecorder(recorder, self._codec, self._snapshot)
            yield call

    def prompt_tokens(self, messages: Sequence[Message], *, is_worded: bool = False) -> list[int]:
        """Encode a conversation in the bundle's wording, or one that has a wording already."""
        return self._codec.encode_prompt(messages, replace(self.template, text=QUESTION) if is_worded else None)


def _hard_differences(model: Any, options: Mapping[str, Any], ours: GenerationConfig) -> str:
    """Describe the options of a third party's call with which no signature belongs to its answer; empty without any."""
    different = hard_decoding_differences(model, options, ours)
    if not different:
        return ""
    wanted = {name: getattr(ours, name, None) for name in different}
    return (
        f"the chain's model generates otherwise than the one that the tier's bundle was fitted to: "
        f"{', '.join(wanted)} differ. The bundle wants {wanted!r}; give the pipeline these, or harvest and fit a "
        "bundle for it"
    )


class CallRecorder:
    """Records one call of a third party's ``generate``."""

    def __init__(self, recorder: Recorder, codec: TextCodec, snapshot: ModelSnapshot) -> None:
        self._recorder = recorder
        self._codec = codec
        self._snapshot = snapshot
        self._prompt: list[int] = []
        self._sequences: torch.Tensor | None = None
        self._started = time.perf_counter()

    @property
    def options(self) -> dict[str, Any]:
        """Arguments to pass to ``generate``."""
        return {"logits_processor": [self._record], "stopping_criteria": [self._keep]}

    @property
    def prompt(self) -> list[int]:
        """The prompt's tokens as ``generate`` got them; empty before its first pass."""
        return self._prompt

    @property
    def opened_by(self) -> str:
        """The marker with which the prompt opens the model's thinking; empty where it opens none."""
        return self._codec.opened_thinking(self._prompt)

    def generation(self, text: str) -> Generation:
        """Build the generation, once ``generate`` has returned.

        Args:
            text: the answer, as the caller of ``generate`` got it: thinking may have lost its markers there.

        Raises:
            ModelError: no token was recorded, several rows were generated at once, or the model was changed meanwhile.
            SignatureError: an activation is missing or not finite.
        """
        if self._sequences is None:
            raise ModelError("the chain's model returned and no token was recorded: did a cache answer?")
        if len(self._sequences) != 1:
            raise ModelError(f"the chain's model generated {len(self._sequences)} rows for one request")
        self._snapshot.check()
        (recording,) = self._recorder.finish(self._sequences)
        tokens = self._sequences[0, len(self._prompt) :].tolist()
        answer, problem = self._codec.find_answer(tokens, self.opened_by)
        return Generation(
            text=text if self._codec.answer_start(self._codec.before_end(tokens), self.opened_by) == 0 else answer,
            tokens=recording.tokens,
            prompt_tokens=len(self._prompt),
            finish_reason="stop" if recording.ended else "length",
            seconds=time.perf_counter() - self._started,
            token_ids=(),
            signatures={"prompt": recording.signatures["prompt"]} if problem else recording.signatures,
            statistics=None if problem else recording.statistics,
            thinking_problem=problem,
        )

    def _record(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self._prompt:
            self._prompt = ids[0].tolist()
        return self._recorder(ids, scores)

    def _keep(self, ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """Keep the sequences, as a stopping criterion: logits processors don't get the last token."""
        self._sequences = ids
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
