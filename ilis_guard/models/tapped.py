"""Models that somebody else runs, such as a pipeline inside a chain: tapped while theirs is the call."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import torch

from ilis_guard.errors import BundleMismatchError, ModelError
from ilis_guard.models.checkpoint import Checkpoint
from ilis_guard.models.decoding import (
    differences,
    end_tokens,
    generation_config,
    named,
    of_fingerprint,
    special_tokens,
)
from ilis_guard.models.prompts import PromptTemplate
from ilis_guard.models.proofs import prove_once
from ilis_guard.signature import Recorder, Tap, TapPoint, locate, pattern
from ilis_guard.types import Fingerprint, Generation, Message


class TappedModel:
    """A causal language model whose ``generate`` somebody else calls, once for each conversation.

    What it shows is comparable with a `LocalModel`'s of the same fingerprint, as long as it is asked in the same words:
    that is looked at call by call, for the words aren't ours.
    """

    def __init__(
        self, checkpoint: Checkpoint, points: Sequence[TapPoint], *, fingerprint: Fingerprint, template: PromptTemplate
    ) -> None:
        self.fingerprint = fingerprint
        self.template = template
        self._tokenizer = checkpoint.tokenizer
        self._points = tuple(points)
        self._end_tokens = end_tokens(checkpoint.model, checkpoint.tokenizer, chat=template.chat_template is not None)
        self._special_tokens = special_tokens(checkpoint.tokenizer)

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
        """Of a model in memory, which shall be scored by a bundle.

        Args:
            model: a causal language model of transformers.
            tokenizer: its own.
            options: what ``generate`` is called with.
            fitted: the bundle's fingerprint, which says where the model is tapped; the bundle itself sees that it fits.
            prompt: the bundle's wording around the user's last turn.
            max_new_tokens: the bundle's.

        Raises:
            ModelError: it isn't in evaluation mode, or its weights or its precision are unknown.
            SignatureError: its architecture can't be tapped, or a tap isn't in the path to the logits.
            BundleMismatchError: it answers otherwise than the bundle says: chosen otherwise, or of another length.
        """
        checkpoint = Checkpoint.of(model, tokenizer)
        template = PromptTemplate(text=prompt, chat_template=tokenizer.chat_template)
        points = locate(model, checkpoint.layers, fitted.site)
        decoding = of_fingerprint(fitted.decoding)
        ours = generation_config(
            decoding,
            max_new_tokens=max_new_tokens,
            end_tokens=end_tokens(model, tokenizer, chat=template.chat_template is not None),
        )
        if different := differences(model, options, ours):
            wanted = {name: getattr(ours, name, None) for name in different}
            raise BundleMismatchError(
                f"the chain's model generates otherwise than the one that the tier's bundle was fitted to: "
                f"{', '.join(different)} differ. The bundle wants {wanted!r} (decoding {fitted.decoding}); give the "
                "pipeline these, or harvest and fit a bundle for it"
            )
        fingerprint = Fingerprint(
            weights=checkpoint.weights,
            precision=checkpoint.precision,
            dtype=checkpoint.dtype,
            layers=checkpoint.layers,
            hidden=checkpoint.hidden,
            site=fitted.site,
            taps=pattern(points),
            temperature=fitted.temperature,
            decoding=named(decoding),
            prompt=template.digest,
        )
        prove_once(checkpoint, points)
        return cls(checkpoint, points, fingerprint=fingerprint, template=template)

    def worded(self, messages: Sequence[Message]) -> tuple[Message, ...] | None:
        """A conversation without the bundle's own words around its last turn; None where it hasn't these words."""
        question = self.template.question_in(messages[-1].content)
        return None if question is None else (*messages[:-1], replace(messages[-1], content=question))

    def rendered(self, prompt: str) -> tuple[Message, ...] | None:
        """As `worded`, of a prompt's whole text, with the marks of the model's chat template."""
        question = self.template.question_in_rendered(prompt, self._tokenizer)
        return None if question is None else (Message(role="user", content=question),)

    @contextmanager
    def listening(self) -> Iterator["Listening"]:
        """Listen to one call of ``generate``, which this thread makes, with one row."""
        with torch.no_grad(), Tap(self._points) as tap:
            recorder = Recorder(
                tap,
                end_tokens=self._end_tokens,
                special_tokens=self._special_tokens,
                temperature=self.fingerprint.temperature,
            )
            yield Listening(recorder)

    def prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        """How a conversation is put to this model, where the words are the bundle's."""
        text = self.template.render(messages, self._tokenizer)
        is_chat = self.template.chat_template is not None
        return list(self._tokenizer(text, add_special_tokens=not is_chat)["input_ids"])


class Listening:
    """One call of somebody else's ``generate`` that is listened to."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._prompt: list[int] = []
        self._sequences: torch.Tensor | None = None
        self._started = time.perf_counter()

    @property
    def options(self) -> dict[str, Any]:
        """To be passed to ``generate``."""
        return {"logits_processor": [self._record], "stopping_criteria": [self._follow]}

    @property
    def prompt(self) -> list[int]:
        """The tokens of the prompt as it was really put; empty before it was read."""
        return self._prompt

    def generation(self, text: str) -> Generation:
        """What was heard, once ``generate`` has returned.

        Args:
            text: the answer, as the caller of ``generate`` got it.

        Raises:
            SignatureError: nothing was heard, as where a cache answered; or an activation isn't finite.
            ModelError: several rows were generated at once.
        """
        if self._sequences is None:
            raise ModelError("the chain's model returned and no token was heard: did a cache answer?")
        if len(self._sequences) != 1:
            raise ModelError(f"the chain's model generated {len(self._sequences)} rows for one request")
        (recording,) = self._recorder.finish(self._sequences)
        return Generation(
            text=text,
            tokens=recording.tokens,
            prompt_tokens=len(self._prompt),
            finish_reason="stop" if recording.ended else "length",
            seconds=time.perf_counter() - self._started,
            token_ids=(),
            signatures=recording.signatures,
            statistics=recording.statistics,
        )

    def _record(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self._prompt:
            self._prompt = ids[0].tolist()
        return self._recorder(ids, scores)

    def _follow(self, ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """A stopping criterion that stops nothing: the last token of an answer is shown to no logits processor."""
        self._sequences = ids
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
