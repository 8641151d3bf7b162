"""Run lm-polygraph in its own environment: answer each prompt again, and score the answers with its estimators.

python -m benchmarks.baselines_crosscheck.worker WEIGHTS_FOLDER MAX_NEW_TOKENS < requests > answers

One request per line, {"prompt": ..., "judged": ..., "tokens": ...}: the rendered prompt, the rendered question whether
the answer is true, and the number of answer tokens. One answer per line, see `Estimated`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

import torch
from lm_polygraph.estimators import RAUQ, MaximumSequenceProbability, MeanTokenEntropy, Perplexity, SelfCertainty
from lm_polygraph.model_adapters import WhiteboxModel
from lm_polygraph.stat_calculators import EntropyCalculator, GreedyProbsCalculator
from lm_polygraph.stat_calculators.prompt import BasePromptCalculator

from benchmarks.neighbours.workers.plain import PlainModel

VERDICTS: Final = ("True", " True", "False", " False")


class Verdict(BasePromptCalculator):  # type: ignore[misc]  # lm-polygraph is in an environment of its own
    """The log-probability of a word after a prompt of ours."""

    @staticmethod
    def meta_info() -> tuple[list[str], list[str]]:
        """What lm-polygraph asks every calculator; nothing here is wired by it."""
        return ["verdict"], []


def main(folder: Path, tokens: int) -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the library prints is no answer
    plain = PlainModel.load(folder, tokens, attention="eager")
    adapter = WhiteboxModel(plain.model, plain.tokenizer)
    adapter.generation_parameters.allow_newlines = True
    config = plain.model.config
    greedy = GreedyProbsCalculator(output_attentions=True, output_hidden_states=False, n_alternatives=1)
    entropy = EntropyCalculator()
    estimators = {
        "neg_logprob_sum": MaximumSequenceProbability(),
        "perplexity": Perplexity(),
        "entropy_mean": MeanTokenEntropy(),
        "self_certainty": SelfCertainty(),
        "rauq": RAUQ(n_layers=config.num_hidden_layers, n_heads=config.num_attention_heads, instruct=True),
    }
    verdicts = {word: Verdict("{q}", word, "verdict") for word in VERDICTS}
    for line in sys.stdin:
        request = json.loads(line)
        seen: dict[str, Any] = greedy({}, texts=[request["prompt"]], model=adapter, max_new_tokens=tokens)
        seen |= entropy(seen, texts=[request["prompt"]], model=adapter, max_new_tokens=tokens)
        of_answer = seen | {
            "greedy_log_probs": [seen["greedy_log_probs"][0][: request["tokens"]]],
            "greedy_log_likelihoods": [seen["greedy_log_likelihoods"][0][: request["tokens"]]],
            "entropy": [seen["entropy"][0][: request["tokens"]]],
            "attention_all": [seen["attention_all"][0][:, : request["tokens"], : request["tokens"]]],
        }
        judged = {"greedy_texts": [""], "input_texts": [request["judged"]]}
        with torch.no_grad():
            logs = {word: float(of(judged, [""], adapter)["verdict"][0]) for word, of in verdicts.items()}
        estimated = {
            "token_ids": [int(token) for token in seen["greedy_tokens"][0]],
            "as it comes": {name: float(of(seen)[0]) for name, of in estimators.items()},
            "answer tokens": {name: float(of(of_answer)[0]) for name, of in estimators.items()},
            "verdicts": logs,
        }
        answers.write(json.dumps(estimated) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
