"""lm-polygraph: one estimator, used as its notebooks `causal_lm_with_uncertainty` and `low_level_example` do.

python -m benchmarks.neighbours.workers.polygraph mean-token-entropy|rauq
"""

import sys
from pathlib import Path

from lm_polygraph import CausalLMWithUncertainty
from lm_polygraph.estimators import RAUQ, MeanTokenEntropy
from lm_polygraph.model_adapters import WhiteboxModel
from lm_polygraph.stat_calculators import EntropyCalculator, GreedyProbsCalculator, InferCausalLMCalculator

from benchmarks.neighbours.workers.plain import PlainModel, answer
from benchmarks.neighbours.workers.serving import Subject, serve


def mean_token_entropy(folder: Path, tokens: int) -> Subject:
    """Reads no attention, so sdpa does. What the estimator doesn't look at is switched off where it can be."""
    plain = PlainModel.load(folder, tokens)
    calculators = [
        InferCausalLMCalculator(tokenize=False, return_embeddings=False, n_alternatives=1),
        EntropyCalculator(),
    ]
    model = CausalLMWithUncertainty(plain.model, plain.tokenizer, calculators, MeanTokenEntropy())

    def scored(prompt: str) -> list[int]:
        inputs = plain.inputs(prompt)
        out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return answer(inputs, out.sequences)

    return Subject(attention=plain.attention, runs={"scored": scored, "bare": plain.bare})


def rauq(folder: Path, tokens: int) -> Subject:
    """Reads attention weights, which only the eager implementation gives.

    CausalLMWithUncertainty can't carry it in 0.7: it hands the calculator that collects attention a dictionary where
    that one reads an attribute, and expects an output that it doesn't give. So calculator and estimator are called in
    turn, as the notebook `low_level_example` does.
    """
    plain, eager = PlainModel.load(folder, tokens), PlainModel.load(folder, tokens, attention="eager")
    adapter = WhiteboxModel(eager.model, eager.tokenizer)
    calculator = GreedyProbsCalculator(output_attentions=True, output_hidden_states=False, n_alternatives=1)
    config = eager.model.config
    estimator = RAUQ(n_layers=config.num_hidden_layers, n_heads=config.num_attention_heads, instruct=True)

    def scored(prompt: str) -> list[int]:
        statistics = calculator({}, texts=[eager.rendered(prompt)], model=adapter, max_new_tokens=tokens)
        estimator(statistics)
        return list(statistics["greedy_tokens"][0])

    return Subject(attention=eager.attention, runs={"scored": scored, "bare": eager.bare, "bare_sdpa": plain.bare})


if __name__ == "__main__":
    serve("lm-polygraph", {"mean-token-entropy": mean_token_entropy, "rauq": rauq}[sys.argv[1]])
