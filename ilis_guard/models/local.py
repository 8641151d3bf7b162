"""Local models: any causal language model of transformers, full precision or NF4, tapped while it answers."""

import copy
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch

from ilis_guard import events
from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.concurrency.shutdown import delay_exit
from ilis_guard.concurrency.threads import stream_steps
from ilis_guard.config.tiers import QUESTION, TemplateArgument, decoding_name
from ilis_guard.errors import ModelError, PromptTooLongError
from ilis_guard.models.answer_start import AnswerStart
from ilis_guard.models.answer_text import Span, find_span
from ilis_guard.models.base import Proceed
from ilis_guard.models.checkpoint import Checkpoint, DeviceMap
from ilis_guard.models.decoding import (
    check_decoding,
    context_length,
    continue_config,
    decoding_differences,
    end_tokens,
    generation_config,
    row_cache,
    special_tokens,
)
from ilis_guard.models.forward_batch import (
    BatchObserver,
    ForwardBatch,
    GenerationRequest,
    SingleObserver,
    StepObserver,
    StreamObserver,
    pad,
    select_rows,
)
from ilis_guard.models.prompts import PromptTemplate, TextCodec
from ilis_guard.models.shared_prefix import prefill
from ilis_guard.models.tokenizers import vocabulary_size
from ilis_guard.models.weights import Progress
from ilis_guard.signature import Recorder, Recording, Tap, TapPoint, locate, replay
from ilis_guard.types import Dtype, Fingerprint, FinishReason, Generation, Message, Position, Precision, Site, Step


class LocalModel:
    """A causal language model that answers with signatures and output statistics.

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
        self._context = context_length(checkpoint.model)
        self._vocabulary = vocabulary_size(checkpoint.model)
        ends = end_tokens(checkpoint.model, self._tokenizer, chat=template.is_chat)
        self._special_tokens = special_tokens(self._tokenizer)
        self._codec = TextCodec(self._tokenizer, template, ends)
        self._decoding = generation_config(decoding, max_new_tokens=max_new_tokens, end_tokens=ends)
        # transformers fills in options that ours leaves open: not with the checkpoint's.
        self._model.generation_config = copy.deepcopy(self._decoding)
        if decoding:
            check_decoding(checkpoint.model, self._decoding, decoding)

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
        chat_template_kwargs: Mapping[str, TemplateArgument] | None = None,
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
            dtype: of the computation; by default float32 on a CPU and bfloat16 on CUDA.
            site: the tapped output of each layer: its MLP's, or its own.
            decoding: options of transformers' GenerationConfig, such as ``do_sample``; greedy without any.
            chat_template_kwargs: variables of the model's chat template, such as ``enable_thinking``.
            device_map: transformers' own; by default one device, CUDA where there is one.
            proof: disturb each tap once and check that the logits move; cached for these weights and versions.
            progress: called with the steps of converting packaged weights.

        Raises:
            ModelError: the model can't be loaded, or its prompt or decoding is unusable.
            SignatureError: its architecture can't be tapped, or a tap isn't in the path to the logits.
        """
        started = time.monotonic()
        checkpoint = Checkpoint.load(name, precision=precision, dtype=dtype, device_map=device_map, progress=progress)
        template = PromptTemplate(
            text=prompt,
            chat_template=checkpoint.tokenizer.chat_template,
            chat_template_kwargs=chat_template_kwargs or {},
        )
        points = locate(checkpoint.model, checkpoint.layers, site)
        fingerprint = checkpoint.fingerprint(
            points, temperature=temperature, decoding=decoding_name(decoding or {}), template=template
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
            checkpoint.prove_taps(points)
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
            span: where the position `answer` lies in the text: offsets, or a function that finds them.
            proceed: called once, after the prompt and before a token is generated, with a generation that has the
                prompt's signature and no text. That generation is returned where it returns False; where it returns
                True, the prompt isn't computed again.
            deadline: checked after each pass, the prompt's and each token's.
            stop: the answer ends before the first of these. Its rest is then replayed, as `read` does: the recording
                includes the sequence that ended it.

        Raises:
            BudgetError: the deadline has passed.
            PromptTooLongError: the prompt and the answer don't fit into the context.
            ModelError: the conversation can't be put to this model, or the span doesn't lie in the answer.
            SignatureError: an activation is missing or not finite.
        """
        observer = SingleObserver(proceed, deadline)
        self.run([self.prepare(messages, stop)], observer, span=span)
        return observer.generation

    def generate_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Generation]:
        """Answer several conversations in one padded batch; as `generate`. `seconds` is each one's equal share."""
        if not conversations:
            return []
        started = time.perf_counter()
        observer = BatchObserver()
        self.run([self.prepare(messages) for messages in conversations], observer)
        share = (time.perf_counter() - started) / len(conversations)
        return [replace(observer.generations[row], seconds=share) for row in range(len(conversations))]

    def stream(self, messages: Sequence[Message], *, stop: Sequence[str] = ()) -> Generator[Step, None, None]:
        """Answer one conversation step by step: after the prompt, after each token has passed, and at the end.

        A token comes together with the maps and statistics that include it, one pass after it was drawn. Nothing is
        computed that isn't requested; closing the iterator ends the generation.

        Raises:
            PromptTooLongError, ModelError, SignatureError: as `generate`, at the step where it happens.
        """

        def work(report: Callable[[Step], None]) -> None:
            self.run([self.prepare(messages, stop)], StreamObserver(report))

        return stream_steps(work)

    def prepare(self, messages: Sequence[Message], stop: Sequence[str] = ()) -> GenerationRequest:
        """Encode a conversation for `run`.

        Raises:
            PromptTooLongError: the prompt and the answer don't fit into the context.
            ModelError: the conversation can't be put to this model.
        """
        started_at = time.perf_counter()
        prompt = self.prompt_tokens(messages, new_tokens=self.max_new_tokens)
        return self._request(prompt, started_at, stop)

    def run(self, requests: Sequence[GenerationRequest], observer: StepObserver, *, span: Span | None = None) -> None:
        """Answer conversations in one padded batch.

        Args:
            requests: from `prepare`, at least one.
            observer: follows the rows; its errors end the generation and are raised here.
            span: as for `generate`.

        Raises:
            ModelError: the span doesn't lie in an answer, or the model was changed in memory since it was loaded.
            SignatureError: an activation is missing or not finite.
        """
        self._check_unchanged()
        inputs = pad([request.tokens for request in requests], self._model.device)

        def build(recording: Recording, row: int, answer: list[int], is_complete: bool) -> Generation:
            finish_reason = self._finish_reason(answer) if is_complete else None
            return self._generation(recording, answer, requests[row], finish_reason, span)

        # Rows that are done are taken out of the cache; a single row needs no such cache.
        cache = row_cache(self._model, self._decoding) if len(requests) > 1 else None
        if cache is not None:
            with delay_exit(), torch.no_grad():
                prefill(self._model, [request.tokens for request in requests], cache)
        with delay_exit(), torch.no_grad(), Tap(self._points) as tap:
            recorder = Recorder(
                tap,
                end_tokens=self._codec.end_tokens,
                special_tokens=self._special_tokens,
                temperature=self.fingerprint.temperature,
                every_token=span is not None,
                find_answers=[self._find_answer(request) for request in requests],
            )
            batch = ForwardBatch(
                recorder,
                requests,
                self._codec,
                max_new_tokens=self.max_new_tokens,
                shrinks=cache is not None,
                observer=observer,
                build=build,
            )
            decoding = self._decoding
            while True:
                sequences = self._model.generate(
                    **inputs,
                    **({} if cache is None else {"past_key_values": cache}),
                    generation_config=decoding,
                    logits_processor=[recorder],
                    stopping_criteria=[batch],
                )
                places = batch.remaining(sequences)
                if not places:
                    break
                assert cache is not None, "without a cache, all rows are complete"
                cache.batch_select_indices(torch.tensor(places, device=self._model.device))
                recorder.keep(places)
                inputs = select_rows(inputs, sequences, places)
                decoding = continue_config(self._decoding, sequences.shape[1] - batch.width)
        # Replayed after the tap is removed, which would record these passes too.
        for row, answer in batch.stopped.items():
            observer.on_answer(row, self._stopped(requests[row], answer, span))

    def read(
        self,
        messages: Sequence[Message],
        answer: str | Sequence[int],
        *,
        finish_reason: FinishReason = "stop",
        span: Span | None = None,
    ) -> Generation:
        """Compute signatures and statistics of an existing answer, as if it had just been generated greedily.

        Each token passes through the model once, and nothing is generated. As a generated answer, it ends before the
        first end token (a base model's: the end of the line).

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
        started_at = time.perf_counter()
        prompt = self.prompt_tokens(messages)
        given = self._codec.encode_answer(messages, prompt, answer) if isinstance(answer, str) else list(answer)
        tokens = self._codec.before_end(given)
        if not tokens:
            raise ModelError(f"there is nothing to read: the answer has no token ({type(answer).__name__})")
        self._check_known(tokens)
        self._check_length(len(prompt), len(tokens))
        request = self._request(prompt, started_at)
        return self._read(request, tokens, "length" if finish_reason == "length" and tokens == given else "stop", span)

    def text_tokens(self, text: str) -> list[int]:
        """Encode any text by itself, without special tokens."""
        return self._codec.encode(text)

    def prompt_tokens(
        self, messages: Sequence[Message], *, new_tokens: int = 0, template: PromptTemplate | None = None
    ) -> list[int]:
        """Encode what the model continues, in the tier's wording or in another, with room for so many new tokens.

        Raises:
            PromptTooLongError: they don't fit into the context.
            ModelError: the conversation can't be put to this model.
        """
        prompt = self._codec.encode_prompt(messages, template)
        self._check_known(prompt)
        self._check_length(len(prompt), new_tokens)
        return prompt

    def generate_bare(self, messages: Sequence[Message]) -> str:
        """Generate the same answer without a tap or a recorder, for measurements of their cost."""
        return self.generate_bare_batch([messages])[0]

    def generate_bare_batch(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """As `generate_bare`, in one padded batch."""
        requests = [self.prepare(messages) for messages in conversations]
        inputs = pad([request.tokens for request in requests], self._model.device)
        with torch.no_grad():
            sequences = self._model.generate(**inputs, generation_config=self._decoding)
        rows = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._codec.decode_answer(row, request.opened_by) for row, request in zip(rows, requests, strict=True)]

    def _check_unchanged(self) -> None:
        """Check that the model, and the options of decoding that it fills in, are as they were when it was loaded."""
        self.checkpoint.snapshot.check()
        if different := decoding_differences(self._model, {"generation_config": self._decoding}, self._decoding):
            raise ModelError(
                f"the model's generation_config was changed after it was loaded ({', '.join(different)}), and its "
                "fingerprint says how it decodes: give options of decoding where it is loaded"
            )

    def _check_known(self, tokens: Sequence[int]) -> None:
        """Check that a model knows all tokens: its tokenizer may have words of a larger model of its family."""
        if tokens and max(tokens) >= self._vocabulary:
            raise ModelError(
                f"the text has the token {max(tokens)}, and the model knows {self._vocabulary}: its tokenizer has "
                "words that it wasn't trained on"
            )

    def _check_length(self, prompt: int, answer: int) -> None:
        if prompt + answer > self._context:
            raise PromptTooLongError(
                f"the prompt has {prompt} tokens and the answer may have {answer}; the model's context "
                f"holds {self._context}: shorten the prompt or lower the tier's max_new_tokens"
            )

    def _request(self, prompt: Sequence[int], started_at: float, stop: Sequence[str] = ()) -> GenerationRequest:
        opened_by = self._codec.opened_thinking(prompt)
        return GenerationRequest(tokens=tuple(prompt), started_at=started_at, stop=tuple(stop), opened_by=opened_by)

    def _find_answer(self, request: GenerationRequest) -> AnswerStart:
        return AnswerStart(self._codec, lambda: request.opened_by)

    def _stopped(self, request: GenerationRequest, answer: Sequence[int], span: Span | None) -> Generation:
        """Build the generation of an answer that reached a stop sequence."""
        tokens = self._codec.before_stop(answer, request.stop, request.opened_by)
        assert tokens is not None, "it reached one"
        if tokens:
            # Bundles are fitted to answers that end by themselves.
            return replace(self._read(request, tokens, "stop", span), departures=("decoding",))
        seconds = time.perf_counter() - request.started_at
        return Generation(text="", tokens=0, prompt_tokens=len(request.tokens), finish_reason="stop", seconds=seconds)

    def _read(
        self, request: GenerationRequest, tokens: list[int], finish_reason: FinishReason, span: Span | None
    ) -> Generation:
        self.checkpoint.snapshot.check()
        recording = replay(
            self._model,
            self._points,
            request.tokens,
            tokens,
            special_tokens=self._special_tokens,
            temperature=self.fingerprint.temperature,
            cut=finish_reason == "length",
            every_token=span is not None,
            find_answer=self._find_answer(request),
        )
        return self._generation(recording, tokens, request, finish_reason, span)

    def _finish_reason(self, answer: Sequence[int]) -> FinishReason:
        return "stop" if len(self._codec.before_end(answer)) < len(answer) else "length"

    def _generation(
        self,
        recording: Recording,
        answer: list[int],
        request: GenerationRequest,
        finish_reason: FinishReason | None,
        span: Span | None,
    ) -> Generation:
        token_ids = self._codec.before_end(answer)
        # A complete answer holds no stop sequence; of one that isn't, the end may be the beginning of one.
        is_complete = finish_reason is not None
        if is_complete:  # with a model that was changed meanwhile, it is nobody's answer
            self._check_unchanged()
        text, problem = (
            self._codec.find_answer(token_ids, request.opened_by)
            if is_complete
            else self._codec.find_partial_answer(token_ids, request.stop, request.opened_by)
        )
        signatures: dict[Position, Any] = dict(recording.signatures)
        if problem:  # tokens that may yet become a marker were counted
            signatures = {"prompt": signatures["prompt"]}
        if span is not None and recording.token_maps is not None and (found := find_span(span, text)) is not None:
            places = self._codec.places_in_span(found, token_ids, request.opened_by)
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
            prompt_tokens=len(request.tokens),
            finish_reason=finish_reason,
            seconds=time.perf_counter() - request.started_at,
            token_ids=tuple(token_ids),
            signatures=signatures,
            statistics=None if problem else recording.statistics,
            thinking_problem=problem,
        )
