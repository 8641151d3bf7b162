"""A wrapped chat model in a remote tier's place: the tier's bundle holds where it is asked as the bundle's own was."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from ilis_guard import Action, Decision, Guard, Policy, Tier, events
from ilis_guard.errors import BundleMismatchError
from ilis_guard.lab.fit import fit
from ilis_guard.models.remote import RemoteModel, fingerprint_of
from ilis_guard.scoring import LightGBMScorer, read_bundle
from ilis_guard.testing import FakeModel, FixedScorer
from ilis_guard_langchain import wrap
from tests.explained import problem
from tests.provider import Provider, provider, sure_and_unsure, town, towns_harvest

pytestmark = pytest.mark.usefixtures("fitted_model")

SURE, UNSURE = sure_and_unsure()
POLICY = """
version: 1
name: sure-or-nothing
rules:
  - {id: sure, when: 'uncertainty < 0.3', do: answer}
  - {id: unsure, do: abstain, say: I don't know.}
"""


@pytest.fixture(scope="module")
def serving() -> Iterator[Provider]:
    with provider() as one:
        yield one


def chat(serving: Provider, **changes: Any) -> ChatOpenAI:
    return ChatOpenAI(**serving.arguments(api_key=SecretStr("sk-test"), **changes))


@pytest.fixture(scope="module")
def guard(serving: Provider, tmp_path_factory: pytest.TempPathFactory) -> Guard:
    """Of one remote tier, whose bundle was fitted to it."""
    model = RemoteModel(chat(serving))
    folder: Path = tmp_path_factory.mktemp("bundles") / "towns"
    fit(towns_harvest(model.fingerprint), folder)
    tier = Tier(name="clerk", model=model, scorer=LightGBMScorer(read_bundle(str(folder))))
    return Guard(tiers=[tier], policy=Policy.parse(POLICY))


def decided(guard: Guard, wrapped: Runnable[Any, Any], number: int, **options: Any) -> Decision:
    found: Decision = wrap(wrapped, guard, output="decision").invoke(town(number).prompt(), **options)
    return found


ALIKE: dict[str, Callable[[Provider], Runnable[Any, Any]]] = {
    "as it is": chat,
    "with another time-out": lambda serving: chat(serving, timeout=20, max_retries=1),
    "bound": lambda serving: chat(serving, logprobs=None, top_logprobs=None).bind(logprobs=True, top_logprobs=2),
    "in a chain": lambda serving: ChatPromptTemplate.from_template("{question}") | chat(serving) | StrOutputParser(),
    "with a config": lambda serving: chat(serving).with_config(tags=["shop"]),
}


@pytest.mark.parametrize("name", ALIKE)
def test_the_bundle_scores_a_model_that_is_asked_alike(name: str, guard: Guard, serving: Provider) -> None:
    wrapped = ALIKE[name](serving)
    decision = decided(guard, wrapped, SURE)
    assert (decision.action, decision.text) == (Action.ANSWER, f"T{SURE}")
    assert decision.uncertainty == guard.decide(town(SURE).prompt()).uncertainty
    assert decided(guard, wrapped, UNSURE).action is Action.ABSTAIN


async def test_the_bundle_scores_an_awaited_model(guard: Guard, serving: Provider) -> None:
    wrapped = wrap(chat(serving), guard)
    assert (await wrapped.ainvoke(town(SURE).prompt())).content == f"T{SURE}"
    assert (await wrapped.ainvoke(town(UNSURE).prompt())).content == "I don't know."


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"logprobs": None, "top_logprobs": None}, ["arguments.logprobs", "arguments.top_logprobs"]),
        ({"model": "mayor"}, ["model"]),
    ],
    ids=str,
)
def test_a_model_with_other_arguments_has_no_score_and_they_are_named(
    changes: dict[str, Any], differing: list[str], guard: Guard, serving: Provider
) -> None:
    with structlog.testing.capture_logs() as logs:
        decision = decided(guard, chat(serving, **changes), SURE)
    assert (decision.action, decision.uncertainty, decision.bundles) == (Action.ABSTAIN, None, {})
    assert "no bundle" in problem(decision.attempts[0])
    (told,) = (log for log in logs if log["event"] == events.BUNDLE_MISMATCHED)
    assert (told["tier"], told["differing"]) == ("clerk", differing)


@pytest.mark.parametrize(
    ("changes", "departures"),
    [
        ({"temperature": 0.7}, ("decoding",)),
        ({"max_tokens": 3}, ("length",)),
        ({"seed": 4, "top_p": 0.5, "max_tokens": 3}, ("decoding", "length")),
    ],
    ids=str,
)
def test_a_model_that_decodes_otherwise_is_scored_uncalibrated_and_named(
    changes: dict[str, Any], departures: tuple[str, ...], guard: Guard, serving: Provider
) -> None:
    with structlog.testing.capture_logs() as logs:
        decision = decided(guard, chat(serving, **changes), SURE)
    assert decision.uncertainty == guard.decide(town(SURE).prompt()).uncertainty
    assert (decision.calibrated, decision.attempts[0].departures) == (False, departures)
    (told,) = (log for log in logs if log["event"] == events.TIER_UNCALIBRATED)
    assert (told["tier"], told["stage"], told["departures"]) == ("clerk", "answer", list(departures))


def test_a_chains_own_system_message_is_seen(guard: Guard, serving: Provider) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
    decision = wrap(prompt | chat(serving), guard, output="decision").invoke({"question": town(SURE).prompt()})
    assert (decision.calibrated, decision.attempts[0].departures) == (False, ("system",))
    assert decided(guard, chat(serving), SURE).calibrated


def test_neither_has_one_with_tools_or_fallbacks(guard: Guard, serving: Provider) -> None:
    def weather(place: str) -> str:
        """Tell the weather."""
        return place

    other = chat(serving, model="mayor")
    for wrapped in (chat(serving).bind_tools([weather]), chat(serving).with_fallbacks([other])):
        assert decided(guard, wrapped, SURE).uncertainty is None


def test_a_calls_options_take_the_score_or_its_calibration(guard: Guard, serving: Provider) -> None:
    decision = decided(guard, chat(serving), SURE, user="me")
    assert (decision.action, decision.uncertainty) == (Action.ABSTAIN, None)
    assert "the call passes ['user'] on to the chain's model" in problem(decision.attempts[0])
    for options, departures in (
        ({"temperature": 1.5}, ("decoding",)),
        ({"stop": ["\n"]}, ("decoding",)),
        ({"max_tokens": 5}, ("length",)),
    ):
        decided_so = decided(guard, chat(serving), SURE, **options)
        assert (decided_so.action, decided_so.attempts[0].departures) == (Action.ANSWER, departures)
    assert decided(guard, chat(serving), SURE, stop=None).calibrated


def test_a_model_whose_arguments_change_after_it_was_loaded_or_wrapped_is_calibrated_no_more(
    guard: Guard, serving: Provider
) -> None:
    wrapped = chat(serving)
    chain = wrap(wrapped, guard, output="decision")
    loaded = chat(serving)
    own = Guard(tiers=[replace(guard.tiers[0], model=RemoteModel(loaded))], policy=Policy.parse(POLICY))
    for ask in (chain.invoke, own.decide):
        assert ask(town(SURE).prompt()).action is Action.ANSWER
    wrapped.temperature = loaded.temperature = 1.5
    for ask in (chain.invoke, own.decide):
        decision = ask(town(SURE).prompt())
        assert (decision.calibrated, decision.attempts[0].departures) == (False, ("decoding",))
    wrapped.model_name = loaded.model_name = "mayor"
    for ask in (chain.invoke, own.decide):
        decision = ask(town(SURE).prompt())
        assert (decision.action, decision.uncertainty) == (Action.ABSTAIN, None)
        assert "model differ" in problem(decision.attempts[0])


def test_a_tier_that_a_program_makes_of_another_models_bundle_is_refused(guard: Guard, serving: Provider) -> None:
    with pytest.raises(BundleMismatchError, match="the bundle doesn't fit the running model: model differ"):
        replace(guard.tiers[0], model=RemoteModel(chat(serving, model="mayor")))


def test_a_scorer_of_ones_own_minds_none_of_that(serving: Provider) -> None:
    tier = Tier(name="clerk", model=FakeModel("never asked"), scorer=FixedScorer(0.1))
    guard = Guard(tiers=[tier], policy=Policy.parse(POLICY))
    assert decided(guard, chat(serving, temperature=0.7), SURE, temperature=1.5).action is Action.ANSWER


def test_a_chat_model_in_a_local_tiers_place_has_no_score_and_no_warning(serving: Provider) -> None:
    scorer = LightGBMScorer(read_bundle("packaged:smollm2-135m-instruct-full"))
    guard = Guard(tiers=[Tier(name="small", model=FakeModel("x"), scorer=scorer)], policy=Policy.parse(POLICY))
    with structlog.testing.capture_logs() as logs:
        assert decided(guard, chat(serving), SURE).uncertainty is None
    assert events.BUNDLE_MISMATCHED not in [log["event"] for log in logs]


def test_the_fingerprint_of_a_tiers_model_is_its_chat_models(guard: Guard, serving: Provider) -> None:
    assert guard.tiers[0].model.fingerprint == fingerprint_of(chat(serving))
