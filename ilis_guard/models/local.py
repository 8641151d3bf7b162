"""Local models: any causal language model of transformers, full precision or NF4, tapped while it answers."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch

from ilis_guard import events
from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.concurrency.threads import stream_steps
from ilis_guard.config.tiers import QUESTION
from ilis_guard.errors import ModelError, PromptTooLongError
from ilis_guard.models.base import Proceed
from ilis_guard.models.checkpoint import Checkpoint, DeviceMap
from ilis_guard.models.decoding import (
    after,
    cache_by_rows,
    end_tokens,
    generation_config,
    named,
    special_tokens,
    try_out,
)
from ilis_guard.models.ending import generation
from ilis_guard.models.passes import Asked, Audience, Everybody, Following, One, Reporting, narrowed, padded
from ilis_guard.models.prompts import PromptTemplate
from ilis_guard.models.proofs import prove_once
from ilis_guard.models.spans import Span, offsets, tokens_in
from ilis_guard.models.texts import Texts
from ilis_guard.models.weights import Progress
from ilis_guard.signature import Recorder, Recording, Tap, TapPoint, locate, pattern, read
from ilis_guard.types import Dtype, Fingerprint, FinishReason, Generation, Message, Position, Precision, Site, Step


class LocalModel:
    """A causal language model that answers and shows its signatures and output statistics.

    Threads and tasks may share it and call it at once; their activations never mix.
    """

    takes_stop = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        points: Sequence[TapPoint],
        *,
        fingerprint: Fingerprint,
        template: PromptTemplate,
        max_new_tokens: int,
        decoding: Mapping[str, Any],
    ) -> None:
        self.checkpoint = checkpoint
        self.fingerprint = fingerprint
        self.prompt = template.text
        self.max_new_tokens = max_new_tokens
        self._model = checkpoint.model
        self._tokenizer = checkpoint.tokenizer
        self._points = tuple(points)
        self._context = _context(checkpoint.model)
        self._end_tokens = end_tokens(checkpoint.model, self._tokenizer, chat=template.chat_template is not None)
        self._special_tokens = special_tokens(self._tokenizer)
        self._texts = Texts(self._tokenizer, template, self._end_tokens)
        self._decoding = generation_config(decoding, max_new_tokens=max_new_tokens, end_tokens=self._end_tokens)
        # What transformers fills in for options that ours leaves open must not be the checkpoint's.
        self._model.generation_config = self._decoding
        if decoding:
            try_out(checkpoint.model, self._decoding, decoding)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        precision: Precision = "full",
        prompt: str = QUESTION,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        dtype: Dtype | None = None,
        site: Site = "mlp",
        decoding: Mapping[str, Any] | None = None,
        device_map: DeviceMap | None = None,
        proof: bool = True,
        progress: Progress | None = None,
    ) -> Self:
        """Load a model.

        Args:
            name: a folder, a hub id, or ``packaged:NAME`` for weights that a Python package carries.
            precision: ``full``, or ``nf4`` for bitsandbytes 4-bit weights with double quantisation.
            prompt: the wording around the user's last turn; must hold ``{question}`` once.
            max_new_tokens: an answer is cut off at this length.
            temperature: of the signature's softmax.
            dtype: what is computed in; by default float32 on a CPU and bfloat16 on CUDA.
            site: what is tapped of each layer: its MLP's output, or its own.
            decoding: options of transformers' GenerationConfig, such as ``do_sample``; greedy without any.
            device_map: transformers' own; by default one device, CUDA where there is one.
            proof: disturb each tap once and see that the logits move; remembered for these weights and versions.
            progress: told of the steps where packaged weights are converted first.

        Raises:
            ModelError: the model can't be loaded, or its prompt or decoding is unusable.
            SignatureError: its architecture can't be tapped, or a tap isn't in the path to the logits.
        """
        started = time.monotonic()
        checkpoint = Checkpoint.load(name, precision=precision, dtype=dtype, device_map=device_map, progress=progress)
        template = PromptTemplate(text=prompt, chat_template=checkpoint.tokenizer.chat_template)
        points = locate(checkpoint.model, checkpoint.layers, site)
        fingerprint = Fingerprint(
            weights=checkpoint.weights,
            precision=precision,
            dtype=checkpoint.dtype,
            layers=checkpoint.layers,
            hidden=checkpoint.hidden,
            site=site,
            taps=pattern(points),
            temperature=temperature,
            decoding=named(decoding or {}),
            prompt=template.digest,
        )
        model = cls(
            checkpoint,
            points,
            fingerprint=fingerprint,
            template=template,
            max_new_tokens=max_new_tokens,
            decoding=decoding or {},
        )
        if proof:
            prove_once(checkpoint, points)
        events.log().info(
            events.MODEL_LOADED,
            model=name,
            precision=precision,
            layers=fingerprint.layers,
            fingerprint=str(fingerprint),
            seconds=time.monotonic() - started,
        )
        return model

    def generate(
        self,
        messages: Sequence[Message],
        *,
        span: Span | None = None,
        proceed: Proceed | None = None,
        deadline: Deadline | None = None,
        stop: Sequence[str] = (),
    ) -> Generation:
        """Answer one conversation.

        Args:
            messages: the last turn is the user's.
            span: where the position `answer` lies in the text: offsets, or what finds them.
            proceed: asked once, after the prompt and before a token is generated, with a generation that has the
                prompt's signature and no text. Where it says no, that is what is returned; where it says yes, the
                prompt isn't computed again.
            deadline: looked at after each pass, the prompt's and each token's.
            stop: the answer ends before the first of these. What is left of it is then read anew, as `read` does: what
                was seen on the way is also of the sequence that ended it.

        Raises:
            BudgetError: the deadline has passed.
            PromptTooLongError: the prompt and the answer don't fit into the context.
            ModelError: the conversation can't be put to this model, or the span doesn't lie in the answer.
            SignatureError: an activation is missing or not finite.
        """
        one = One(proceed, deadline)
        self.run([self.asked(messages, stop)], one, span=span)
        return one.generation

    def generate_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Generation]:
        """Answer several conversations in one padded batch; as `generate`. `seconds` is each one's equal share."""
        if not conversations:
            return []
        started = time.perf_counter()
        everybody = Everybody()
        self.run([self.asked(messages) for messages in conversations], everybody)
        share = (time.perf_counter() - started) / len(conversations)
        return [replace(everybody.generations[row], seconds=share) for row in range(len(conversations))]

    def stream(self, messages: Sequence[Message], *, stop: Sequence[str] = ()) -> Generator[Step, None, None]:
        """Answer one conversation step by step: after the prompt, after each token has passed, and at the end.

        A token is shown together with the maps and statistics that include it, so it comes one pass after it was
        drawn. Closing the iterator ends the generation: nothing is computed that isn't asked for.

        Raises:
            PromptTooLongError, ModelError, SignatureError: as `generate`, at the step where it happens.
        """

        def work(report: Callable[[Step], None]) -> None:
            self.run([self.asked(messages, stop)], Reporting(report))

        return stream_steps(work)

    def asked(self, messages: Sequence[Message], stop: Sequence[str] = ()) -> Asked:
        """A conversation whose answer is wanted, up to a stop sequence, as `run` takes it.

        Raises:
            PromptTooLongError: the prompt and the answer don't fit into the context.
            ModelError: the conversation can't be put to this model.
        """
        since = time.perf_counter()
        prompt = self.prompt_tokens(messages, new_tokens=self.max_new_tokens)
        return Asked(tokens=tuple(prompt), since=since, stop=tuple(stop))

    def run(self, conversations: Sequence[Asked], audience: Audience, *, span: Span | None = None) -> None:
        """Answer conversations in one padded batch, and tell an audience of each pass and each answer.

        Args:
            conversations: from `asked`, at least one.
            audience: whoever follows them; what it raises ends the generation and is raised here.
            span: as for `generate`.

        Raises:
            ModelError: the span doesn't lie in an answer.
            SignatureError: an activation is missing or not finite.
        """
        inputs = padded([asked.tokens for asked in conversations], self._model.device)
        width = inputs["input_ids"].shape[1]

        def tell(recording: Recording, row: int, answer: list[int], is_at_end: bool) -> Generation:
            asked = conversations[row]
            finish_reason = self._finish_reason(answer) if is_at_end else None
            return self._generation(recording, answer, asked, finish_reason, span)

        def is_stopped(row: int, answer: Sequence[int]) -> bool:
            stop = conversations[row].stop
            return bool(stop) and self._texts.before_stop(answer, stop) is not None

        with generation(), torch.no_grad(), Tap(self._points) as tap:
            recorder = Recorder(
                tap,
                end_tokens=self._end_tokens,
                special_tokens=self._special_tokens,
                temperature=self.fingerprint.temperature,
                every_token=span is not None,
            )
            # Rows that are done needn't be computed along for long; a single one has nothing to be taken out of.
            cache = cache_by_rows(self._model, self._decoding) if len(conversations) > 1 else None
            following = Following(
                recorder,
                rows=len(conversations),
                width=width,
                max_new_tokens=self.max_new_tokens,
                end_tokens=self._end_tokens,
                is_stopped=is_stopped,
                narrows=cache is not None,
                audience=audience,
                tell=tell,
            )
            decoding = self._decoding
            while True:
                sequences = self._model.generate(
                    **inputs,
                    **({} if cache is None else {"past_key_values": cache}),
                    generation_config=decoding,
                    logits_processor=[recorder],
                    stopping_criteria=[following],
                )
                places = following.left(sequences)
                if not places:
                    break
                assert cache is not None, "without one, all rows come to their ends"
                cache.batch_select_indices(torch.tensor(places, device=self._model.device))
                recorder.keep(places)
                inputs = narrowed(inputs, sequences, places)
                decoding = after(self._decoding, sequences.shape[1] - width)
        # Not before the tap is gone: it would take these passes for its own.
        for row, answer in following.stopped.items():
            audience.answered(row, self._stopped(conversations[row], answer, span))

    def read(
        self,
        messages: Sequence[Message],
        answer: str | Sequence[int],
        *,
        finish_reason: FinishReason = "stop",
        span: Span | None = None,
    ) -> Generation:
        """Signatures and statistics of an answer that already exists, as if it had just been generated greedily.

        Each token passes through the model once, and nothing is generated. As a generated answer does, it ends before
        the first end token (a base model's: the end of the line).

        Args:
            messages: the conversation that it answers.
            answer: its text, or the `token_ids` of a generation (a text may be cut into tokens in several ways).
            finish_reason: ``length`` for an answer that was cut off: its last token has no map.
            span: as for `generate`.

        Raises:
            PromptTooLongError: both don't fit into the context.
            ModelError: the conversation can't be put to this model, the answer is empty, or the span doesn't lie in it.
            SignatureError: an activation is missing or not finite.
        """
        since = time.perf_counter()
        prompt = self.prompt_tokens(messages)
        given = self._texts.answer_tokens(messages, prompt, answer) if isinstance(answer, str) else list(answer)
        tokens = self._texts.before_the_end(given)
        if not tokens:
            raise ModelError(f"there is nothing to read: the answer has no token ({type(answer).__name__})")
        self._check_length(len(prompt), len(tokens))
        asked = Asked(tokens=tuple(prompt), since=since)
        return self._read(asked, tokens, "length" if finish_reason == "length" and tokens == given else "stop", span)

    def text_tokens(self, text: str) -> list[int]:
        """The tokens of any text by itself, without special ones: how long it is to this model."""
        return self._texts.tokens(text)

    def prompt_tokens(
        self, messages: Sequence[Message], *, new_tokens: int = 0, template: PromptTemplate | None = None
    ) -> list[int]:
        """The tokens that the model continues, in the tier's words or in others, with room for so many of an answer.

        Raises:
            PromptTooLongError: they don't fit into the context.
            ModelError: the conversation can't be put to this model.
        """
        prompt = self._texts.prompt(messages, template)
        self._check_length(len(prompt), new_tokens)
        return prompt

    def generate_bare(self, messages: Sequence[Message]) -> str:
        """The same answer without a tap or a recorder: what the guard's cost is measured against."""
        return self.generate_bare_batch([messages])[0]

    def generate_bare_batch(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """As `generate_bare`, in one padded batch."""
        inputs = self._inputs(conversations)
        with torch.no_grad():
            sequences = self._model.generate(**inputs, generation_config=self._decoding)
        return [self._texts.answer(row) for row in sequences[:, inputs["input_ids"].shape[1] :].tolist()]

    def _inputs(self, conversations: Sequence[Sequence[Message]]) -> dict[str, torch.Tensor]:
        return padded([self.asked(messages).tokens for messages in conversations], self._model.device)

    def _check_length(self, prompt: int, answer: int) -> None:
        if prompt + answer > self._context:
            raise PromptTooLongError(
                f"the prompt has {prompt} tokens and the answer may have {answer}; the model's context "
                f"holds {self._context}: shorten the prompt or lower the tier's max_new_tokens"
            )

    def _stopped(self, asked: Asked, answer: Sequence[int], span: Span | None) -> Generation:
        """What is left of an answer that has come to a stop sequence."""
        tokens = self._texts.before_stop(answer, asked.stop)
        assert tokens is not None, "it has come to one"
        if tokens:
            return self._read(asked, tokens, "stop", span)
        seconds = time.perf_counter() - asked.since
        return Generation(text="", tokens=0, prompt_tokens=len(asked.tokens), finish_reason="stop", seconds=seconds)

    def _read(self, asked: Asked, tokens: list[int], finish_reason: FinishReason, span: Span | None) -> Generation:
        recording = read(
            self._model,
            self._points,
            asked.tokens,
            tokens,
            special_tokens=self._special_tokens,
            temperature=self.fingerprint.temperature,
            cut=finish_reason == "length",
            every_token=span is not None,
        )
        return self._generation(recording, tokens, asked, finish_reason, span)

    def _finish_reason(self, answer: Sequence[int]) -> FinishReason:
        return "stop" if len(self._texts.before_the_end(answer)) < len(answer) else "length"

    def _generation(
        self,
        recording: Recording,
        answer: list[int],
        asked: Asked,
        finish_reason: FinishReason | None,
        span: Span | None,
    ) -> Generation:
        token_ids = self._texts.before_the_end(answer)
        # What has been read, or come to its end otherwise, holds no stop sequence; on the way one may have begun.
        is_at_end = finish_reason is not None
        text = self._texts.answer(token_ids) if is_at_end else self._texts.answer_so_far(token_ids, asked.stop)
        signatures: dict[Position, Any] = dict(recording.signatures)
        if span is not None and recording.token_maps is not None and (found := offsets(span, text)) is not None:
            places = tokens_in(found, token_ids, self._texts.answer)
            mapped = [
                place
                for place in places
                if place < len(recording.token_maps) and token_ids[place] not in self._special_tokens
            ]
            if mapped:
                signatures["answer"] = recording.token_maps[mapped].mean(axis=0, dtype="float64").astype("float32")
        return Generation(
            text=text,
            tokens=recording.tokens,
            prompt_tokens=len(asked.tokens),
            finish_reason=finish_reason,
            seconds=time.perf_counter() - asked.since,
            token_ids=tuple(token_ids),
            signatures=signatures,
            statistics=recording.statistics,
        )


def _context(model: Any) -> int:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(context, int):
        raise ModelError(
            f"{type(model).__name__} doesn't say how much it can read: its configuration has no max_position_embeddings"
        )
    return context
