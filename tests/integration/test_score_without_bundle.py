"""Without a bundle, with real parts: a local model, a provider over HTTP, a wrapped chat model, a killed process."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from ilis_guard import Action, Decision, Guard, Policy, ReviewQueue, Tier
from ilis_guard.errors import ConfigError, ProfileError
from ilis_guard.models.batching import BatchedModel
from ilis_guard.models.local import LocalModel
from ilis_guard.models.remote import RemoteModel
from ilis_guard.scoring.profile import LEAST_ANSWERS
from ilis_guard.scoring.rolling_profile import RollingProfile
from ilis_guard.testing import InMemoryQueue
from ilis_guard_langchain import wrap
from tests.explained import problem
from tests.processes import die, ended, forked
from tests.provider import Provider, confidence, provider, town

REQUESTS = 60


@pytest.fixture
def serving() -> Iterator[Provider]:
    with provider() as one:
        yield one


def check_course(made: list[Decision], queue: ReviewQueue) -> None:
    """Of sixty requests in a row: a sample and shadows, then answers and a person, without one uncertainty."""
    cold, ranked = made[:LEAST_ANSWERS], made[LEAST_ANSWERS:]
    assert {one.rank for one in cold} == {None}
    assert {(one.mode, one.action) for one in cold} == {("shadow", Action.ANSWER), ("enforce", Action.ESCALATE)}
    assert {one.mode for one in ranked} == {"enforce"}
    assert all(one.rank is not None and (one.action is Action.ANSWER) is (one.rank < 0.6) for one in ranked)
    assert 0.3 < np.mean([one.action is Action.ANSWER for one in ranked]) < 0.9
    assert {one.uncertainty for one in made} == {None}
    assert {one.calibrated for one in made} == {False}
    assert [problem(attempt) for one in made for attempt in one.attempts if attempt.error] == []
    assert len(queue.list()) == sum(one.ticket is not None for one in made)


@pytest.mark.usefixtures("real_model")
def test_a_local_model_without_a_bundle_decides_something_within_fifty_requests(tmp_path: Path) -> None:
    profile = RollingProfile(tmp_path / "small.db")
    model = BatchedModel(LocalModel.load("packaged:smollm2-135m-instruct", max_new_tokens=3), 10)
    tier = Tier(name="small", model=model, profile=profile)
    with (
        Guard(tiers=[tier], policy=Policy.load("cold-start"), review=(queue := InMemoryQueue())) as guard,
        ThreadPoolExecutor(10) as threads,
    ):

        def decide(number: int) -> Decision:
            return guard.decide(f"What is {number} plus {number % 7 + 2}?", id=f"r{number}")

        # The first twenty by themselves, so that none of them finds a rank.
        numbers = range(REQUESTS)
        made = [*threads.map(decide, numbers[:10]), *threads.map(decide, numbers[10:20])]
        made += [*threads.map(decide, numbers[20:-1]), decide(numbers[-1])]
        check_course(made, queue)
    assert profile.answers == REQUESTS, "each answer once"
    means = [of.logprob_mean for one in made if (of := one.attempts[0].statistics) is not None]
    assert made[-1].rank == np.mean([mean >= means[-1] for mean in means[:-1]]), "by perplexity"


def guard_yaml(tmp_path: Path, serving: Provider, profile: str) -> Path:
    path = tmp_path / "guard.yaml"
    path.write_text(
        f"""
version: 1
policy: cold-start
tiers:
  - name: clerk
    remote:
      chat_model: langchain_openai:ChatOpenAI
      arguments: {{model: town-clerk, base_url: "{serving.url}/v1", logprobs: true}}
{profile}
review: {{storage: "sqlite:///tickets.db"}}
"""
    )
    return path


ROLLING = "    profile: {rolling: 500, file: profiles/clerk.db}"


def test_a_remote_model_over_http_decides_something_within_fifty_requests(
    serving: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    path = guard_yaml(tmp_path, serving, ROLLING)
    with Guard.from_config(path) as guard, ReviewQueue(f"sqlite:///{tmp_path}/tickets.db") as queue:
        made = [guard.decide(town(number).prompt(), id=f"r{number}") for number in range(REQUESTS)]
        check_course(made, queue)
    answered = [confidence(number) for number in range(LEAST_ANSWERS, REQUESTS) if made[number].action is Action.ANSWER]
    others = [
        confidence(number) for number in range(LEAST_ANSWERS, REQUESTS) if made[number].action is not Action.ANSWER
    ]
    assert np.mean(answered) > np.mean(others) + 0.3, "those that the model is surer of"
    # A restart ranks at once, by the same answers.
    with Guard.from_config(path) as again:
        made_again = again.decide(town(0).prompt())
        assert made_again.rank is not None
        assert made_again.mode == "enforce"

    # So does one after a kill in the middle of its work.
    def decide_and_die() -> None:
        with Guard.from_config(path) as killed:
            for number in range(5):
                killed.decide(town(number).prompt())
            die()

    before = RollingProfile(tmp_path / "profiles" / "clerk.db").answers
    assert ended(forked(decide_and_die)) == -9
    assert RollingProfile(tmp_path / "profiles" / "clerk.db").answers == before + 5


def test_a_remote_model_without_log_probabilities_is_never_answered(
    serving: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    serving.is_mute = True
    with Guard.from_config(guard_yaml(tmp_path, serving, ROLLING)) as guard:
        made = [guard.decide(town(number).prompt(), id=f"r{number}") for number in range(30)]
    assert {(one.action, one.rule, one.mode) for one in made} == {
        (Action.ESCALATE, "failed-so-ask-a-person", "enforce")
    }
    assert "came without log-probabilities" in problem(made[0].attempts[0])


def test_a_guard_doesnt_start_on_a_damaged_profile_or_another_models(
    serving: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    path, file = guard_yaml(tmp_path, serving, ROLLING), tmp_path / "profiles" / "clerk.db"
    with Guard.from_config(path) as guard:
        guard.decide(town(1).prompt())
    path.write_text(path.read_text().replace("town-clerk", "mayor"))
    with pytest.raises(ProfileError, match=r"were scored by 'perplexity of .*town-clerk.*this is .*mayor"):
        Guard.from_config(path)
    for left in file.parent.iterdir():
        left.unlink()
    file.write_bytes(b"SQLite format 3\x00")
    with pytest.raises(ProfileError, match=r"clerk\.db' can't be used"):
        Guard.from_config(path)


def test_without_a_profile_there_is_no_score_and_nothing_is_answered(
    serving: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with Guard.from_config(guard_yaml(tmp_path, serving, "")) as guard:
        made = guard.decide(town(1).prompt())
    assert (made.action, made.rule) == (Action.ESCALATE, "failed-so-ask-a-person")
    with pytest.raises(ConfigError, match=r"profile: \{rolling: 500, file: profiles/NAME\.db\}"):
        Guard.from_config(guard_yaml(tmp_path, serving, "    profile: support.json"))


CHAINS = ["a chat model", "a chain", "bound"]


@pytest.mark.parametrize("name", CHAINS)
def test_a_wrapped_chat_model_decides_something_within_fifty_requests(
    name: str, serving: Provider, tmp_path: Path
) -> None:
    chat = ChatOpenAI(**serving.arguments(api_key=SecretStr("sk-test"), top_logprobs=None))
    chains: dict[str, Runnable[Any, Any]] = {
        "a chat model": chat,
        "a chain": ChatPromptTemplate.from_template("{question}") | chat | StrOutputParser(),
        "bound": ChatOpenAI(**serving.arguments(api_key=SecretStr("x"), logprobs=None, top_logprobs=None)).bind(
            logprobs=True
        ),
    }
    tier = Tier(name="clerk", model=RemoteModel(chat), profile=RollingProfile(tmp_path / "clerk.db"))
    with Guard(tiers=[tier], policy=Policy.load("cold-start"), review=(queue := InMemoryQueue())) as guard:
        wrapped = wrap(chains[name], guard, output="decision")
        made = [wrapped.invoke(town(number).prompt()) for number in range(REQUESTS)]
        ranked = made[LEAST_ANSWERS:]
        assert {one.mode for one in ranked} == {"enforce"}
        assert {one.action for one in ranked} == {Action.ANSWER, Action.ESCALATE}
        assert {one.uncertainty for one in made} == {None}
        assert len(queue.list()) == sum(one.ticket is not None for one in made)
        message = wrap(chat, guard).invoke(town(1).prompt())
        summary = message.response_metadata["ilis_guard"]
        assert (summary["uncertainty"], summary["calibrated"]) == (None, False)
        assert 0 <= summary["rank"] <= 1
        assert not math.isnan(summary["rank"])


async def test_an_awaited_and_a_streamed_chat_model_are_ranked_too(serving: Provider, tmp_path: Path) -> None:
    chat = ChatOpenAI(**serving.arguments(api_key=SecretStr("sk-test"), top_logprobs=None))
    profile = RollingProfile(tmp_path / "clerk.db")
    with Guard(
        tiers=[Tier(name="clerk", model=RemoteModel(chat), profile=profile)],
        policy=Policy.load("cold-start"),
        review=InMemoryQueue(),
    ) as guard:
        wrapped = wrap(chat, guard, output="decision")
        made = [await wrapped.ainvoke(town(number).prompt()) for number in range(LEAST_ANSWERS)]
        made += [await guard.adecide(town(number).prompt()) for number in range(5)]
        async for event in guard.astream(town(7).prompt()):
            last = event
    assert isinstance(last, Decision)
    assert last.rank is not None
    assert all(one.rank is not None for one in made[LEAST_ANSWERS:])
    assert profile.answers == LEAST_ANSWERS + 6
