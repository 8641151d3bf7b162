"""TruthTorchLM: one truth method, used as in its README.

python -m benchmarks.neighbours.workers.truth_torch confidence|inside
"""

import sys
from functools import partial
from pathlib import Path

import TruthTorchLM
from TruthTorchLM.truth_methods import Confidence, Inside

from benchmarks.neighbours.workers.plain import PlainModel
from benchmarks.neighbours.workers.serving import Subject, serve


def load(method: TruthTorchLM.TruthMethod, folder: Path, tokens: int) -> Subject:
    """The plain model, answering through the library or not."""
    plain = PlainModel.load(folder, tokens)

    def scored(prompt: str) -> list[int]:
        result = TruthTorchLM.generate_with_truth_value(
            model=plain.model,
            tokenizer=plain.tokenizer,
            messages=[{"role": "user", "content": prompt}],
            truth_methods=[method],
            generation_seed=0,
            max_new_tokens=tokens,
            do_sample=False,
        )
        return [int(token) for token in result["generated_tokens"]]

    return Subject(attention=plain.attention, runs={"scored": scored, "bare": plain.bare})


if __name__ == "__main__":
    # Inside samples ten further answers in one batch, which is its default and the number in its paper.
    serve("TruthTorchLM", partial(load, {"confidence": Confidence, "inside": Inside}[sys.argv[1]]()))
