"""Local models: any causal language model of transformers, full precision or NF4, tapped while it answers."""

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Self

import torch

from ilis_guard import events
from ilis_guard.calling.deadline import Deadline
from ilis_guard.errors import ModelError, PromptTooLongError
from ilis_guard.models.base import Proceed
from ilis_guard.models.checkpoint import Checkpoint, DeviceMap
from ilis_guard.models.decoding import end_tokens, generation_config, named, special_tokens, try_out
from ilis_guard.models.prompts import QUESTION, PromptTemplate
from ilis_guard.models.proofs import prove_once
from ilis_guard.models.spans import Span, offsets, tokens_in
from ilis_guard.models.stepwise import stepwise
from ilis_guard.models.weights import Progress
from ilis_guard.signature import Recorder, Recording, Tap, TapPoint, locate, pattern, read
from ilis_guard.types import Dtype, Fingerprint, FinishReason, Generation, Message, Position, Precision, Site, Step

Watch = Callable[[Recorder, torch.Tensor], None]
"""Called after each forward pass, once it is recorded, with the ids so far."""


class _StopAtPromptError(Exception):
    """The caller doesn't want an answer to this prompt."""


class LocalModel:
    """A causal language model that answers and shows its signatures and output statistics.

    Threads and tasks may share it and call it at once; their activations never mix.
    """

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
        self._template = template
        self._points = tuple(points)
        self._context = _context(checkpoint.model)
        self._end_tokens = end_tokens(checkpoint.model, self._tokenizer, chat=template.chat_template is not None)
        self._special_tokens = special_tokens(self._tokenizer)
        if self._tokenizer.pad_token is None:  # Llama 3 and Mistral name none; any will do, attention never sees it
            self._tokenizer.pad_token = self._tokenizer.convert_ids_to_tokens(self._end_tokens[0])
        self._decoding = generation_config(decoding, max_new_tokens=max_new_tokens, end_tokens=self._end_tokens)
        # What transformers fills in for options that ours leaves open must not be the checkpoint's.
        self._model.generation_config = self._decoding
        if decoding:
            try_out(checkpoint.model, self._decoding, decoding)
        # A fast tokenizer's padding is a state of its own: two threads that set it at once make it raise.
        self._tokenizing = threading.Lock()

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
    ) -> Generation:
        """Answer one conversation.

        Args:
            messages: the last turn is the user's.
            span: where the position `answer` lies in the text: offsets, or what finds them.
            proceed: asked once, after the prompt and before a token is generated, with a generation that has the
                prompt's signature and no text. Where it says no, that is what is returned; where it says yes, the
                prompt isn't computed again.
            deadline: looked at after each pass, the prompt's and each token's.

        Raises:
            BudgetError: the deadline has passed.
            PromptTooLongError: the prompt and the answer don't fit into the context.
            ModelError: the conversation can't be put to this model, or the span doesn't lie in the answer.
            SignatureError: an activation is missing or not finite.
        """
        stopped: list[Generation] = []

        def watch(recorder: Recorder, ids: torch.Tensor) -> None:
            if deadline is not None:
                deadline.check()
            if proceed is not None and ids.shape[1] == width:
                so_far = self._generation(recorder.so_far()[0], [], width, at_end=False, started=started)
                if not proceed(so_far):
                    stopped.append(so_far)
                    raise _StopAtPromptError

        started = time.perf_counter()
        inputs = self._inputs([messages])
        width = inputs["input_ids"].shape[1]
        try:
            recording, answer = self._recorded(
                inputs, watch=watch if proceed or deadline else None, every_token=span is not None
            )
        except _StopAtPromptError:
            return stopped[0]
        return self._generation(recording[0], answer[0], width, started=started, span=span)

    def generate_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Generation]:
        """Answer several conversations in one padded batch; as `generate`. `seconds` is each one's equal share."""
        if not conversations:
            return []
        started = time.perf_counter()
        inputs = self._inputs(conversations)
        recordings, answers = self._recorded(inputs)
        prompt_tokens = inputs["attention_mask"].sum(dim=1).tolist()
        return [
            self._generation(*row, started=started, share=len(recordings))
            for row in zip(recordings, answers, prompt_tokens, strict=True)
        ]

    def stream(self, messages: Sequence[Message]) -> Generator[Step, None, None]:
        """Answer one conversation step by step: after the prompt, after each token has passed, and at the end.

        A token is shown together with the maps and statistics that include it, so it comes one pass after it was
        drawn. Closing the iterator ends the generation: nothing is computed that isn't asked for.

        Raises:
            PromptTooLongError, ModelError, SignatureError: as `generate`, at the step where it happens.
        """

        def work(report: Callable[[Step], None]) -> None:
            started = time.perf_counter()
            inputs = self._inputs([messages])
            width = inputs["input_ids"].shape[1]
            shown = ""

            def step(generation: Generation) -> Step:
                nonlocal shown
                # Half a character decodes to a replacement sign: it is shown once its other half has come.
                text = generation.text if generation.finish_reason else generation.text.rstrip("\ufffd")
                token = text[len(shown) :] if text.startswith(shown) else ""
                shown += token
                return Step(token=token, generation=generation)

            def watch(recorder: Recorder, ids: torch.Tensor) -> None:
                answer = ids[0, width:].tolist()
                so_far = self._generation(recorder.so_far()[0], answer, width, at_end=False, started=started)
                report(step(so_far))

            recordings, answers = self._recorded(inputs, watch=watch)
            report(step(self._generation(recordings[0], answers[0], width, started=started)))

        return stepwise(work)

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
        started = time.perf_counter()
        prompt = self._inputs([messages], new_tokens=0)["input_ids"][0].tolist()
        given = self._answer_tokens(messages, prompt, answer) if isinstance(answer, str) else list(answer)
        tokens = self._before_the_end(given)
        if not tokens:
            raise ModelError(f"there is nothing to read: the answer has no token ({type(answer).__name__})")
        self._check_length(len(prompt), len(tokens))
        recording = read(
            self._model,
            self._points,
            prompt,
            tokens,
            special_tokens=self._special_tokens,
            temperature=self.fingerprint.temperature,
            cut=finish_reason == "length" and tokens == given,
            every_token=span is not None,
        )
        return self._generation(recording, tokens, len(prompt), started=started, span=span)

    def prompt_tokens(self, messages: Sequence[Message], *, template: PromptTemplate | None = None) -> list[int]:
        """The tokens that the model continues, in the tier's words or in others.

        Raises:
            PromptTooLongError: they don't fit into the context.
            ModelError: the conversation can't be put to this model.
        """
        tokens: list[int] = self._inputs([messages], new_tokens=0, template=template)["input_ids"][0].tolist()
        return tokens

    def generate_bare(self, messages: Sequence[Message]) -> str:
        """The same answer without a tap or a recorder: what the guard's cost is measured against."""
        return self.generate_bare_batch([messages])[0]

    def generate_bare_batch(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """As `generate_bare`, in one padded batch."""
        inputs = self._inputs(conversations)
        with torch.no_grad():
            sequences = self._model.generate(**inputs, generation_config=self._decoding)
        return [self._text(row) for row in sequences[:, inputs["input_ids"].shape[1] :].tolist()]

    def _inputs(
        self,
        conversations: Sequence[Sequence[Message]],
        new_tokens: int | None = None,
        template: PromptTemplate | None = None,
    ) -> Any:
        template = template or self._template
        texts = [template.render(messages, self._tokenizer) for messages in conversations]
        with self._tokenizing:
            # A chat template writes its own special tokens; a base model's beginning-of-text is the tokenizer's to add.
            inputs = self._tokenizer(
                texts, return_tensors="pt", padding=True, add_special_tokens=template.chat_template is None
            )
        self._check_length(inputs["input_ids"].shape[1], self.max_new_tokens if new_tokens is None else new_tokens)
        return inputs.to(self._model.device)

    def _check_length(self, prompt: int, answer: int) -> None:
        if prompt + answer > self._context:
            raise PromptTooLongError(
                f"the prompt has {prompt} tokens and the answer may have {answer}; the model's context "
                f"holds {self._context}: shorten the prompt or lower the tier's max_new_tokens"
            )

    def _answer_tokens(self, messages: Sequence[Message], prompt: list[int], answer: str) -> list[int]:
        """The tokens of an answer's text, where it stands: after the prompt."""
        rendered = self._template.render(messages, self._tokenizer)
        is_chat = self._template.chat_template is not None
        # A base model's answer is set off by a space, which `Generation.text` leaves out.
        gap = "" if is_chat or rendered[-1:].isspace() or answer[:1].isspace() else " "
        with self._tokenizing:
            whole = self._tokenizer(rendered + gap + answer, add_special_tokens=not is_chat)["input_ids"]
            if whole[: len(prompt)] == prompt:
                return list(whole[len(prompt) :])
            # The prompt's end and the answer's beginning would be one token: generated, they never are.
            return list(self._tokenizer(gap + answer, add_special_tokens=False)["input_ids"])

    def _recorded(
        self, inputs: Any, *, watch: Watch | None = None, every_token: bool = False
    ) -> tuple[list[Recording], list[list[int]]]:
        """Generate; what was recorded of each row, and its new tokens."""
        with torch.no_grad(), Tap(self._points) as tap:
            recorder = Recorder(
                tap,
                end_tokens=self._end_tokens,
                special_tokens=self._special_tokens,
                temperature=self.fingerprint.temperature,
                every_token=every_token,
            )

            def watched(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                if watch is not None:
                    watch(recorder, ids)
                return scores

            processors = [recorder] if watch is None else [recorder, watched]
            sequences = self._model.generate(**inputs, generation_config=self._decoding, logits_processor=processors)
            return recorder.finish(sequences), sequences[:, inputs["input_ids"].shape[1] :].tolist()

    def _generation(
        self,
        recording: Recording,
        answer: list[int],
        prompt_tokens: int,
        *,
        started: float,
        share: int = 1,
        at_end: bool = True,
        span: Span | None = None,
    ) -> Generation:
        token_ids = self._before_the_end(answer)
        text = self._text(token_ids)
        signatures: dict[Position, Any] = dict(recording.signatures)
        if span is not None and recording.token_maps is not None and (found := offsets(span, text)) is not None:
            places = tokens_in(found, token_ids, self._text)
            mapped = [
                place
                for place in places
                if place < len(recording.token_maps) and token_ids[place] not in self._special_tokens
            ]
            if mapped:
                signatures["answer"] = recording.token_maps[mapped].mean(axis=0, dtype="float64").astype("float32")
        reason: FinishReason = "stop" if recording.ended else "length"
        return Generation(
            text=text,
            tokens=recording.tokens,
            prompt_tokens=prompt_tokens,
            finish_reason=reason if at_end else None,
            seconds=(time.perf_counter() - started) / share,
            token_ids=tuple(token_ids),
            signatures=signatures,
            statistics=recording.statistics,
        )

    def _before_the_end(self, answer: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(answer) if token in self._end_tokens), len(answer))
        return answer[:end]

    def _text(self, answer: Sequence[int]) -> str:
        return str(self._tokenizer.decode(self._before_the_end(list(answer)), skip_special_tokens=True)).strip()


def _context(model: Any) -> int:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(context, int):
        raise ModelError(
            f"{type(model).__name__} doesn't say how much it can read: its configuration has no max_position_embeddings"
        )
    return context
