"""An implementation without a library: `output_hidden_states=True`, and a Python loop over pairs of layers."""

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.neighbours.workers.plain import PlainModel, answer
from benchmarks.neighbours.workers.serving import Subject, serve


def signature_map(layers: Sequence[torch.Tensor]) -> torch.Tensor:
    """KL divergences between all pairs of layers, `[layers, layers]`, of one vector a layer."""
    log_p = [torch.log_softmax(layer, dim=-1) for layer in layers]
    p = [each.exp() for each in log_p]
    divergences = torch.zeros(len(layers), len(layers))
    for i in range(len(layers)):
        for j in range(len(layers)):
            if i != j:
                divergences[i, j] = (p[i] * (log_p[i] - log_p[j])).sum()
    return divergences


def signatures(hidden_states: Sequence[Sequence[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The maps of the positions that ilis_guard keeps, of what `generate` returns: a tuple of layers a step.

    The embeddings, which come first, are left out. The last of the layers isn't what ilis_guard's site `residual`
    sees: transformers gives it after the model's final norm.
    """
    prompt, *tokens = [signature_map([layer[0, -1] for layer in step[1:]]) for step in hidden_states]
    return {"prompt": prompt, "last": tokens[-1], "mean": torch.stack(tokens).mean(dim=0)}


def load(folder: Path, tokens: int) -> Subject:
    """The plain model, asked for its hidden states or not."""
    plain = PlainModel.load(folder, tokens)

    def scored(prompt: str) -> list[int]:
        inputs = plain.inputs(prompt)
        out = plain.generate(inputs, output_hidden_states=True, return_dict_in_generate=True)
        signatures(out.hidden_states)
        return answer(inputs, out.sequences)

    return Subject(attention=plain.attention, runs={"scored": scored, "bare": plain.bare})


if __name__ == "__main__":
    serve("transformers", load)
