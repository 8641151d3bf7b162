"""Tiers: bundles in their places, and an answer followed step by step with its score."""

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ilis_guard.cascade.loading import load_tier
from ilis_guard.cascade.tier import Tier
from ilis_guard.config.tiers import TierConfig
from ilis_guard.errors import BundleMismatchError, ModelError, ScoringError
from ilis_guard.testing import FakeModel, FixedScorer
from ilis_guard.types import Generation, Message, Score, Step

ASKED = (Message(role="user", content="What is the capital of Norway?"),)
NF4 = "packaged:smollm2-135m-instruct-nf4"


def config(**changes: Any) -> TierConfig:
    fitting: dict[str, Any] = {
        "name": "small",
        "model": "packaged:smollm2-135m-instruct",
        "precision": "nf4",
        "prompt": "{question} Answer in a few words only.",
        "max_new_tokens": 16,
    }
    return TierConfig(**fitting | changes)


@pytest.mark.parametrize(("key", "bundle"), [("bundle", f"{NF4}-prompt"), ("prompt_bundle", NF4)])
def test_a_bundle_for_another_stage_is_refused_before_the_model_is_loaded(key: str, bundle: str) -> None:
    with pytest.raises(BundleMismatchError, match="`bundle` scores answers, `prompt_bundle` prompts"):
        load_tier(config(model="no/such/model", **{key: bundle}))


def test_stream_scores_the_prompt_first_then_the_answer_so_far() -> None:
    tier = Tier(
        name="t",
        model=FakeModel("It is Oslo"),
        scorer=FixedScorer({"It": 0.9, "It is": 0.6, "It is Oslo": 0.2}),
        prompt_scorer=FixedScorer(0.7),
    )
    steps = list(tier.stream(ASKED))
    assert "".join(step.token for step in steps) == "It is Oslo"
    scores = [step.score and step.score.uncertainty for step in steps]
    assert scores == [0.7, 0.9, 0.6, 0.2, 0.2]


def test_leaving_a_stream_leaves_the_models() -> None:
    left: list[bool] = []

    class Watched(FakeModel):
        def stream(self, messages: Any, *, stop: Sequence[str] = ()) -> Generator[Step, None, None]:
            try:
                yield from super().stream(messages, stop=stop)
            finally:
                left.append(True)

    stream = Tier(name="t", model=Watched("It is Oslo")).stream(ASKED)
    next(stream)
    stream.close()
    assert left == [True]


def test_answer_with_only_the_prompts_map_has_no_prompt_score() -> None:
    nothing = Tier(name="t", model=FakeModel(""), scorer=FixedScorer(0.9), prompt_scorer=FixedScorer(0.01))
    *_, end = nothing.stream(ASKED)
    assert (end.generation.finish_reason, end.score) == ("stop", None)
    cut = replace(FakeModel("Oslo").generate(ASKED), finish_reason="length")
    cut = replace(cut, signatures={"prompt": cut.signatures["prompt"]})
    one_token = Tier(name="t", model=FakeModel(cut), scorer=FixedScorer(0.9), prompt_scorer=FixedScorer(0.01))
    *_, end = one_token.stream(ASKED)
    assert end.score == Score(uncertainty=0.9, typicality=1.0)


def test_a_stream_without_bundles_has_no_scores() -> None:
    steps = list(Tier(name="t", model=FakeModel("It is Oslo")).stream(ASKED))
    assert [step.score for step in steps] == [None] * 5


def test_a_score_that_is_no_number_ends_the_stream() -> None:
    tier = Tier(name="t", model=FakeModel("Oslo"), scorer=FixedScorer(Score(uncertainty=float("nan"), typicality=1.0)))
    stream = tier.stream(ASKED)
    assert next(stream).score is None
    with pytest.raises(ScoringError, match="must lie between 0 and 1, got nan"):
        next(stream)


def test_a_model_that_only_generates_cant_be_followed() -> None:
    class Plain:
        fingerprint = None

        def generate(self, messages: Any) -> Generation:
            return FakeModel("x").generate(messages)

    with pytest.raises(ModelError, match="the model of the tier 't' can't be followed"):
        next(Tier(name="t", model=Plain()).stream(ASKED))


def test_paths_of_prompt_bundles_start_at_the_files_folder(tmp_path: Path) -> None:
    from ilis_guard.config.guard_yaml import read_config

    (tmp_path / "guard.yaml").write_text(
        "version: 1\npolicy: default\ntiers:\n  - {name: a, model: x/y, prompt_bundle: bundles/p}\n"
    )
    assert read_config(tmp_path / "guard.yaml").tiers[0].prompt_bundle == str(tmp_path / "bundles/p")
