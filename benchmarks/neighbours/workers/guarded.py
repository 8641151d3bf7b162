"""ilis_guard: maps, output statistics and the calibrated uncertainty of a bundle that comes with it."""

from pathlib import Path

from benchmarks.neighbours.workers.plain import PlainModel
from benchmarks.neighbours.workers.serving import Subject, serve
from ilis_guard.models.local import LocalModel
from ilis_guard.scoring import LightGBMScorer, read_bundle
from ilis_guard.types import Message


def load(folder: Path, tokens: int) -> Subject:
    """The guarded model, and the same without its guard."""
    model = LocalModel.load(str(folder), max_new_tokens=tokens)
    # Not loaded a second time: where two copies lie in memory can make as much of a difference as the guard.
    plain = PlainModel(model._model, model._tokenizer, tokens)  # noqa: SLF001
    # The bundle was fitted to short answers: what its score costs is the same here, what it says isn't.
    scorer = LightGBMScorer(read_bundle("packaged:smollm2-135m-instruct-full"))

    def scored(prompt: str) -> list[int]:
        generation = model.generate((Message(role="user", content=prompt),))
        scorer.score(generation)
        return list(generation.token_ids)

    return Subject(attention=plain.attention, runs={"scored": scored, "bare": plain.bare})


if __name__ == "__main__":
    serve("ilis-guard", load)
