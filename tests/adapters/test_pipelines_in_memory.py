"""A chain's pipeline whose model was changed in memory is another model than its bundle's, or gives no answer."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from langchain_core.prompts import ChatPromptTemplate
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from ilis_guard import Action, Guard, Policy, Tier
from ilis_guard.errors import BundleMismatchError, ModelError
from ilis_guard.models.local import LocalModel
from ilis_guard.models.weights import converted_folder, packaged_weights
from ilis_guard.scoring import LightGBMScorer, read_bundle
from ilis_guard.testing import FakeModel
from ilis_guard_langchain import wrap
from tests.explained import problem

FEW_WORDS: ChatPromptTemplate = ChatPromptTemplate.from_messages([("human", "{question} Answer in a few words only.")])
QUESTION = {"question": "What is the capital of France?"}
# PEFT reads it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
POLICY = """
version: 1
name: scored
rules:
  - {id: failed, when: 'error != ""', do: abstain, say: No score.}
  - {id: scored, when: 'uncertainty <= 1.0', do: answer}
"""


@pytest.fixture(scope="module")
def loaded(smollm2_full: LocalModel) -> tuple[Any, Any]:  # noqa: ARG001 - it converts the weights, or skips
    folder = converted_folder(packaged_weights("smollm2-135m-instruct"))
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def model(loaded: tuple[Any, Any]) -> Iterator[Any]:
    """Whose one matrix is put back after the test."""
    weight = loaded[0].model.layers[3].mlp.down_proj.weight
    before = weight.detach().clone()
    yield loaded[0]
    weight.data.copy_(before)


@pytest.fixture
def chain(loaded: tuple[Any, Any]) -> Callable[..., Any]:
    def build(model: Any = loaded[0], **options: Any) -> Any:
        told = {"max_new_tokens": 16, "do_sample": False, "return_full_text": False, **options}
        llm = HuggingFacePipeline(pipeline=pipeline("text-generation", model=model, tokenizer=loaded[1], **told))
        return FEW_WORDS | ChatHuggingFace(llm=llm, tokenizer=loaded[1])

    return build


def guard() -> Guard:
    scorer = LightGBMScorer(read_bundle("packaged:smollm2-135m-instruct-full"))
    return Guard(tiers=[Tier(name="small", model=FakeModel([]), scorer=scorer)], policy=Policy.parse(POLICY))


def scaled(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight.mul_(1.01)


def test_weights_scaled_before_wrapping_are_another_model(model: Any, chain: Callable[..., Any]) -> None:
    scaled(model)
    with pytest.raises(BundleMismatchError, match="weights differ"):
        wrap(chain(), guard())


def test_weights_scaled_between_two_requests_end_the_answers(model: Any, chain: Callable[..., Any]) -> None:
    wrapped = wrap(chain(), guard(), output="decision")
    assert wrapped.invoke(QUESTION).action is Action.ANSWER
    scaled(model)
    decision = wrapped.invoke(QUESTION)
    assert (decision.action, decision.uncertainty) == (Action.ABSTAIN, None)
    assert "changed in memory after its fingerprint was taken: its weights" in problem(decision.attempts[0])


def test_an_adapter_is_refused_and_its_merged_model_is_another(model: Any, chain: Callable[..., Any]) -> None:
    adapter = LoraConfig(
        r=2, target_modules=["down_proj"], layers_to_transform=[3], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, adapter).eval()
    with pytest.raises(ModelError, match="a PEFT adapter"):
        wrap(chain(adapted), guard())
    merged = adapted.merge_and_unload().eval()
    assert merged is model
    with pytest.raises(BundleMismatchError, match="weights differ"):
        wrap(chain(merged), guard())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"num_beams": 3}, "num_beams"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
        ({"dola_layers": "high"}, "dola_layers"),
        ({"custom_generate": "some/body"}, "custom_generate"),
        ({"prefix_allowed_tokens_fn": lambda _row, _ids: [1]}, "prefix_allowed_tokens_fn"),
        ({"logits_processor": [lambda _ids, scores: scores]}, "logits_processor"),
    ],
)
def test_other_modes_of_generation_are_refused_when_wrapped(
    options: dict[str, Any], named: str, chain: Callable[..., Any]
) -> None:
    with pytest.raises(BundleMismatchError, match=rf"{named}.* differ"):
        wrap(chain(**options), guard())


def test_an_assistant_model_is_refused_when_wrapped(loaded: tuple[Any, Any], chain: Callable[..., Any]) -> None:
    with pytest.raises(BundleMismatchError, match=r"assistant_model.* differ"):
        wrap(chain(assistant_model=loaded[0]), guard())


def replaced_model(llm: Any) -> None:
    llm.pipeline.model = type(llm.pipeline.model)(llm.pipeline.model.config).eval()


def configured(llm: Any, **options: Any) -> None:
    """Options that the pipeline leaves open, and that the model's own configuration fills in."""
    model = llm.pipeline.model
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.update(**options)


def beaming(llm: Any) -> None:
    configured(llm, num_beams=2)


@pytest.mark.parametrize(
    ("change", "said"),
    [(replaced_model, "its tokenizer was replaced after it was wrapped"), (beaming, "num_beams differ")],
)
def test_a_pipeline_changed_after_it_was_wrapped_gives_no_answer(
    change: Callable[[Any], object], said: str, loaded: tuple[Any, Any], chain: Callable[..., Any]
) -> None:
    built = chain()
    before = loaded[0].generation_config
    wrapped = wrap(built, guard(), output="decision")
    change(built.last.llm)
    decision = wrapped.invoke(QUESTION)
    loaded[0].generation_config = before
    assert (decision.action, decision.uncertainty) == (Action.ABSTAIN, None)
    assert said in problem(decision.attempts[0])


def test_a_pipeline_that_decodes_otherwise_after_it_was_wrapped_is_not_calibrated(
    loaded: tuple[Any, Any], chain: Callable[..., Any]
) -> None:
    built = chain()
    before = loaded[0].generation_config
    wrapped = wrap(built, guard(), output="decision")
    first = wrapped.invoke(QUESTION)
    configured(built.last.llm, repetition_penalty=1.3)
    second = wrapped.invoke(QUESTION)
    loaded[0].generation_config = before
    assert (second.calibrated, second.attempts[0].departures) == (False, ("decoding",))
    assert "decoding" not in first.attempts[0].departures
