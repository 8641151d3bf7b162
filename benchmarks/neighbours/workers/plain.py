"""The bare model, the reference of every library's cost."""

from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class PlainModel:
    """A causal language model in float32 that answers greedily on one thread.

    No minimum length is set, since not every library lets it through: the driver's prompts have answers that run into
    the limit, and it refuses shorter ones.
    """

    def __init__(self, model: Any, tokenizer: Any, tokens: int) -> None:
        torch.set_num_threads(1)
        self.model = model
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.attention = str(model.config._attn_implementation)  # noqa: SLF001  # transformers tells it nowhere else

    @classmethod
    def load(cls, folder: Path, tokens: int, attention: str = "sdpa") -> Self:
        """Load a folder; `tokens` is how many an answer has."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
        return cls(model, AutoTokenizer.from_pretrained(folder), tokens)

    def rendered(self, prompt: str) -> str:
        """The text that the model continues."""
        turns = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def inputs(self, prompt: str) -> Any:
        """The same, as tokens."""
        return self.tokenizer(self.rendered(prompt), return_tensors="pt", add_special_tokens=False)

    def generate(self, inputs: Any, **options: Any) -> Any:
        """What transformers' own `generate` gives."""
        with torch.no_grad():
            return self.model.generate(**inputs, max_new_tokens=self.tokens, do_sample=False, **options)

    def bare(self, prompt: str) -> list[int]:
        """The tokens of the answer."""
        inputs = self.inputs(prompt)
        return answer(inputs, self.generate(inputs))


def answer(inputs: Any, sequences: torch.Tensor) -> list[int]:
    """What comes after the prompt in the only sequence."""
    return [int(token) for token in sequences[0, inputs["input_ids"].shape[1] :]]
