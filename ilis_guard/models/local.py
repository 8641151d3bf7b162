"""Local models: any causal language model of transformers, full precision or NF4, tapped while it answers."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from ilis_guard import events
from ilis_guard.errors import MissingDependencyError, ModelError, PromptTooLongError

try:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig
    from transformers.utils.hub import cached_file
except ImportError as error:
    raise MissingDependencyError(
        f"local models need torch and transformers: install torch, then 'ilis-guard[hf]' ({error})"
    ) from error

from ilis_guard.models.fingerprint import weights_digest
from ilis_guard.models.prompts import QUESTION, PromptTemplate
from ilis_guard.models.weights import LOADING, PREFIX, Progress, converted_folder, packaged_weights
from ilis_guard.signature import Recorder, Recording, Tap, locate_mlps
from ilis_guard.types import Dtype, Fingerprint, Generation, Message, Precision


class LocalModel:
    """A causal language model that answers greedily and shows its signatures and output statistics.

    One call at a time runs on a model; others wait. Threads may share it.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, fingerprint: Fingerprint, template: PromptTemplate, max_new_tokens: int
    ) -> None:
        self.fingerprint = fingerprint
        self.prompt = template.text
        self.max_new_tokens = max_new_tokens
        self._model = model
        self._tokenizer = tokenizer
        self._template = template
        self._context = _context(model)
        self._mlps = locate_mlps(model, fingerprint.layers)
        self._end_tokens = _end_tokens(model, tokenizer, chat=template.chat_template is not None)
        self._special_tokens = _special_tokens(tokenizer)
        if tokenizer.pad_token is None:  # Llama 3 and Mistral name none; any will do, attention never sees it
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self._end_tokens[0])
        # A decoding of our own: the checkpoint's may sample, or penalise repetition.
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers types it partly
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=self._end_tokens,
            pad_token_id=self._end_tokens[0],
        )
        self._alone = threading.Lock()

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
        progress: Progress | None = None,
    ) -> Self:
        """Load a model.

        Args:
            name: a folder, a hub id, or ``packaged:NAME`` for weights that a Python package carries.
            precision: ``full``, or ``nf4`` for bitsandbytes 4-bit weights with double quantisation.
            prompt: the wording around the user's last turn; must hold ``{question}`` once.
            max_new_tokens: an answer is cut off at this length.
            temperature: of the signature's softmax (decoding is greedy).
            dtype: what is computed in; by default float32 on a CPU and bfloat16 on CUDA.
            progress: told of the steps where packaged weights are converted first.

        Raises:
            ModelError: the model can't be loaded, or its prompt is unusable.
            SignatureError: its architecture can't be tapped.
        """
        started = time.monotonic()
        source = _source(name, progress)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = dtype or ("bfloat16" if device == "cuda" else "float32")
        quantisation = BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # transformers types it partly
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
            with LOADING:
                model = AutoModelForCausalLM.from_pretrained(
                    source,
                    dtype=getattr(torch, dtype),
                    device_map=device,
                    use_safetensors=True,  # a pickled checkpoint could run code
                    quantization_config=quantisation if precision == "nf4" else None,
                )
            folder = Path(str(cached_file(source, "config.json"))).parent
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"the model {name!r} can't be loaded: {error}") from error
        config = model.config.get_text_config()
        template = PromptTemplate(text=prompt, chat_template=tokenizer.chat_template)
        fingerprint = Fingerprint(
            weights=weights_digest(folder),
            precision=precision,
            dtype=dtype,
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            site="mlp",
            temperature=temperature,
            prompt=template.digest,
        )
        events.log().info(
            events.MODEL_LOADED,
            model=name,
            precision=precision,
            layers=fingerprint.layers,
            fingerprint=str(fingerprint),
            seconds=time.monotonic() - started,
        )
        model.eval()  # type: ignore[no-untyped-call]  # transformers types it partly
        _compute_as_asked(model)
        return cls(model, tokenizer, fingerprint=fingerprint, template=template, max_new_tokens=max_new_tokens)

    def generate(self, messages: Sequence[Message]) -> Generation:
        """Answer one conversation.

        Raises:
            PromptTooLongError: the prompt and the answer don't fit into the context.
            ModelError: the conversation can't be put to this model.
            SignatureError: an activation is missing or not finite.
        """
        return self.generate_batch([messages])[0]

    def generate_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Generation]:
        """Answer several conversations in one padded batch; as `generate`. `seconds` is each one's equal share."""
        with self._alone, torch.inference_mode():
            started = time.perf_counter()
            inputs = self._inputs(conversations)
            with Tap(self._mlps) as tap:
                recorder = Recorder(
                    tap,
                    end_tokens=self._end_tokens,
                    special_tokens=self._special_tokens,
                    temperature=self.fingerprint.temperature,
                )
                sequences = self._sequences(inputs, [recorder])
                recordings = recorder.finish(sequences)
            prompt_width = inputs["input_ids"].shape[1]
            answers = sequences[:, prompt_width:].tolist()
            prompt_tokens = inputs["attention_mask"].sum(dim=1).tolist()
            seconds = (time.perf_counter() - started) / len(recordings)
        return [self._generation(*row, seconds=seconds) for row in zip(recordings, answers, prompt_tokens, strict=True)]

    def generate_bare(self, messages: Sequence[Message]) -> str:
        """The same answer without a tap or a recorder: what the guard's cost is measured against."""
        with self._alone, torch.inference_mode():
            inputs = self._inputs([messages])
            sequences = self._sequences(inputs, [])
        return self._text(sequences[0, inputs["input_ids"].shape[1] :].tolist())

    def _inputs(self, conversations: Sequence[Sequence[Message]]) -> Any:
        texts = [self._template.render(messages, self._tokenizer) for messages in conversations]
        # A chat template writes its own special tokens; a base model's beginning-of-text is the tokenizer's to add.
        inputs = self._tokenizer(
            texts, return_tensors="pt", padding=True, add_special_tokens=self._template.chat_template is None
        )
        longest = inputs["input_ids"].shape[1]
        if longest + self.max_new_tokens > self._context:
            raise PromptTooLongError(
                f"the prompt has {longest} tokens and the answer may have {self.max_new_tokens}; the model's context "
                f"holds {self._context}: shorten the prompt or lower the tier's max_new_tokens"
            )
        return inputs.to(self._model.device)

    def _sequences(self, inputs: Any, processors: list[Any]) -> Any:
        return self._model.generate(**inputs, logits_processor=processors)

    def _generation(self, recording: Recording, answer: list[int], prompt_tokens: int, *, seconds: float) -> Generation:
        return Generation(
            text=self._text(answer),
            tokens=recording.tokens,
            prompt_tokens=prompt_tokens,
            finish_reason="stop" if recording.ended else "length",
            seconds=seconds,
            signatures=recording.signatures,
            statistics=recording.statistics,
        )

    def _text(self, answer: list[int]) -> str:
        end = next((place for place, token in enumerate(answer) if token in self._end_tokens), len(answer))
        return str(self._tokenizer.decode(answer[:end], skip_special_tokens=True)).strip()


def _compute_as_asked(model: Any) -> None:
    """Keep bitsandbytes from computing in bfloat16 where float32 was asked for.

    On processors with AVX512-BF16 its 4-bit layers repack their weights and round activations to bfloat16, whatever
    the compute dtype says (bitsandbytes 0.50, ``Linear4bit.forward``). Maps would differ by percents from one
    processor to the next, and a bundle would hold on one and not on the other.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _source(name: str, progress: Progress | None) -> str:
    if name.startswith(PREFIX):
        return str(converted_folder(packaged_weights(name.removeprefix(PREFIX)), progress))
    return name


def _context(model: Any) -> int:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(context, int):
        raise ModelError(
            f"{type(model).__name__} doesn't say how much it can read: its configuration has no max_position_embeddings"
        )
    return context


def _special_tokens(tokenizer: Any) -> list[int]:
    """Tokens that decoding leaves out: those with a name, and those only marked special, as most of Llama 3's."""
    marked = (token for token, added in tokenizer.added_tokens_decoder.items() if added.special)
    return sorted({*tokenizer.all_special_ids, *marked})


def _end_tokens(model: Any, tokenizer: Any, *, chat: bool) -> list[int]:
    """Tokens that end an answer: the model's own, and for a base model every token with a line break in it."""
    configured = model.generation_config.eos_token_id
    own = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}
    if not own:
        raise ModelError("neither the model nor its tokenizer names an end-of-sequence token")
    if chat:
        return sorted(own)
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return sorted(own) + [token for token, text in enumerate(texts) if "\n" in text and token not in own]
