"""What a provider doesn't say of its tokens is unknown, never 0: budgets close, and everybody is told."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import tenacity
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI
from rich.console import Console

from ilis_guard import Action, Guard, Policy, Tier
from ilis_guard.cli.decision_tables import attempts_table
from ilis_guard.config.tiers import TierCost
from ilis_guard.errors import UnfinishedAnswerError
from ilis_guard.lab.score import score_decisions
from ilis_guard.models.remote import RemoteModel, usage_of
from ilis_guard.policy.explain import explain_decision, reasons
from ilis_guard.policy.facts import Facts
from ilis_guard.policy.records import read_decision
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Decision, Generation, StreamMode, Usage
from ilis_guard_langchain import ChatIlisGuard, wrap
from tests.scripted_provider import Scripted, ScriptedProvider, chunks, completion, scripted_provider
from tests.server.servers import serve

QUESTION = "Where is Oslo?"
POLICY = """version: 1
name: cheap
budget: {max_cost: 0.02}
rules:
- {id: sure, when: uncertainty < 0.5, do: answer}
- {id: larger, do: retry}
- {id: unsure, do: escalate, say: A person will answer.}
"""
BY_TOKENS = TierCost(per_million_prompt_tokens=100, per_million_tokens=1000)
UNKNOWN: Any = {"usage": None}


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with scripted_provider() as one:
        yield one


def decide(provider: ScriptedProvider, small: float = 0.9, *, cost: TierCost | None = BY_TOKENS) -> Decision:
    return guard_of(RemoteModel(ChatOpenAI(**provider.arguments())), small, cost=cost).decide(QUESTION)


def guard_of(model: Any, small: float = 0.9, *, cost: TierCost | None = BY_TOKENS, policy: str = POLICY) -> Guard:
    tiers = [
        Tier(name="small", model=model, scorer=FixedScorer(small), cost=cost),
        Tier(name="large", model=FakeModel("Oslo"), scorer=FixedScorer(0.1), cost=TierCost(per_request=0.001)),
    ]
    return Guard(tiers=tiers, policy=Policy.parse(policy), review=InMemoryQueue(), backoff=tenacity.wait_none())


def test_known_usage_is_paid_for_and_leaves_the_budget_open(provider: ScriptedProvider) -> None:
    provider.script = completion("Bergen")
    made = decide(provider)
    assert [attempt.tier for attempt in made.attempts] == ["small", "large"]
    assert (made.attempts[0].prompt_tokens, made.attempts[0].tokens) == (12, 2)
    assert made.cost == pytest.approx(12e-6 * 100 + 2e-6 * 1000 + 0.001)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": 12, "completion_tokens": 0, "total_tokens": 12},
        {"prompt_tokens": 0, "completion_tokens": 2, "total_tokens": 2},
    ],
    ids=["none", "zeros", "no answer tokens", "no prompt tokens"],
)
def test_unknown_usage_closes_a_budget_of_costs_and_the_ruling_says_why(
    provider: ScriptedProvider, usage: dict[str, int] | None
) -> None:
    provider.script = completion("Bergen", usage=usage)
    made = decide(provider)
    assert (made.action, made.cost, len(made.attempts)) == (Action.ESCALATE, None, 1)
    spent = made.rulings[0].spent
    assert spent is not None
    assert (spent.limit, spent.value, spent.is_known) == ("max_cost", 0.02, False)
    assert "no larger tier is left: the request's cost isn't known, so its limit (0.02) counts as reached" in reasons(
        made
    )


def test_without_prices_for_tokens_the_cost_is_known_all_the_same(provider: ScriptedProvider) -> None:
    provider.script = completion("Bergen", usage=None)
    made = decide(provider, cost=TierCost(per_request=0.005))
    assert (made.cost, len(made.attempts)) == (0.006, 2)
    assert made.attempts[0].tokens is None


def test_a_sure_answer_of_unknown_cost_is_given(provider: ScriptedProvider) -> None:
    """It is paid for already: the budget is about what comes after it."""
    provider.script = completion("Oslo", usage=None)
    made = decide(provider, 0.1)
    assert (made.action, made.text, made.cost) == (Action.ANSWER, "Oslo", None)


def test_a_streamed_reply_without_usage_is_unknown_too(provider: ScriptedProvider) -> None:
    provider.script = chunks("Ber", "gen")
    chat = ChatOpenAI(**provider.arguments(streaming=True, stream_usage=False))
    assert guard_of(RemoteModel(chat)).decide(QUESTION).cost is None


def test_what_a_refused_or_unfinished_reply_took_counts(provider: ScriptedProvider) -> None:
    provider.script = completion("Bergen", "content_filter")
    made = decide(provider)
    error = made.attempts[0].error
    assert error is not None
    assert error.kind == UnfinishedAnswerError.__name__
    assert (made.attempts[0].prompt_tokens, made.attempts[0].tokens) == (12, 2)
    assert made.attempts[0].cost == pytest.approx(12e-6 * 100 + 2e-6 * 1000)


@pytest.mark.parametrize("script", ["never replies", "resets", "closes in the middle of a reply"])
def test_what_a_call_took_whose_reply_was_lost_is_unknown(provider: ScriptedProvider, script: Scripted) -> None:
    provider.script = script
    chat = ChatOpenAI(**provider.arguments(timeout=0.3))
    lost = guard_of(RemoteModel(chat)).decide(QUESTION)
    error = lost.attempts[0].error
    assert error is not None
    assert error.kind == "TransientModelError"
    assert (lost.attempts[0].tokens, lost.attempts[0].cost, lost.cost) == (None, None, None)
    assert lost.action is Action.ESCALATE, "its budget counts as spent"


def test_nothing_is_unknown_of_a_call_that_was_never_made(provider: ScriptedProvider) -> None:
    chat = ChatOpenAI(**provider.arguments() | {"base_url": "http://127.0.0.1:9/v1"})
    made = guard_of(RemoteModel(chat)).decide(QUESTION).attempts[0]
    assert made.error is not None
    assert (made.error.kind, made.tokens, made.cost) == ("TransientModelError", 0, 0.0)


def test_a_failed_call_gave_nothing_back_and_a_given_up_one_is_unknown(provider: ScriptedProvider) -> None:
    provider.script = 400
    failed = decide(provider).attempts[0]
    assert (failed.prompt_tokens, failed.tokens, failed.cost) == (0, 0, 0.0)
    provider.script = "never replies"
    policy = POLICY.replace("max_cost: 0.02", "max_cost: 0.02, max_seconds: 0.3")
    guard = guard_of(RemoteModel(ChatOpenAI(**provider.arguments())), policy=policy)
    given_up = guard.decide(QUESTION).attempts[0]
    assert given_up.error is not None
    assert given_up.error.kind == "BudgetError"
    assert (given_up.prompt_tokens, given_up.tokens, given_up.cost) == (None, None, None)
    provider.closed.set()


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, (None, None)),
        ({"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}, (3, 2)),
        ({"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}, (None, None)),
        ({"input_tokens": -1, "output_tokens": -2, "total_tokens": -3}, (None, None)),
    ],
)
def test_usage_of_a_reply(usage: Any, expected: tuple[int | None, int | None]) -> None:
    assert usage_of(AIMessage("Oslo", usage_metadata=usage)) == expected


def test_an_empty_answer_may_have_no_tokens() -> None:
    usage: Any = {"input_tokens": 3, "output_tokens": 0, "total_tokens": 3}
    assert usage_of(AIMessage("", usage_metadata=usage)) == (3, 0)


def test_a_chain_with_one_unknown_usage_has_an_unknown_sum() -> None:
    usage: Any = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}

    def reply(usage: Any) -> GenericFakeChatModel:
        message = AIMessage("Oslo", usage_metadata=usage, response_metadata={"finish_reason": "stop"})
        return GenericFakeChatModel(messages=iter([message]))

    for second, expected in ((usage, (6, 4)), (None, (None, None))):
        models = [reply(usage), reply(second)]
        made = wrap(in_turn(models), guard_of(FakeModel("never"), 0.1), output="decision").invoke(QUESTION)
        assert (made.attempts[0].prompt_tokens, made.attempts[0].tokens) == expected


@pytest.mark.parametrize("chain", [lambda asked: f"Oslo, to {asked}", lambda _: AIMessage("Oslo")])
def test_a_chain_that_calls_its_model_by_itself_has_an_unknown_usage(chain: Any) -> None:
    guard = guard_of(FakeModel("never"), 0.9)
    made = wrap(RunnableLambda(chain), guard, output="decision").invoke(QUESTION)
    assert (made.attempts[0].prompt_tokens, made.attempts[0].tokens, made.attempts[0].cost) == (None, None, None)
    assert (made.action, len(made.attempts), made.cost) == (Action.ESCALATE, 1, None)


def in_turn(models: list[Any]) -> RunnableLambda[str, str]:
    def run(given: str) -> str:
        return [str(each.invoke(given).content) for each in models][-1]

    return RunnableLambda(run)


def test_a_users_own_model_may_not_know_its_tokens() -> None:
    answer = Generation(text="Oslo", tokens=None, prompt_tokens=None, finish_reason="stop", seconds=0.0)
    made = guard_of(FakeModel(answer)).decide(QUESTION)
    assert (made.attempts[0].tokens, made.cost) == (None, None)
    modes: tuple[StreamMode, ...] = ("optimistic", "early_stop")
    for mode in modes:
        last = list(guard_of(FakeModel(answer)).stream(QUESTION, mode=mode))[-1]
        error = last.attempts[0].error  # type: ignore[union-attr]
        assert error is not None
        assert "doesn't count the tokens of its steps" in error.detail


def test_a_tier_without_prices_costs_an_unknown_amount_once_it_is_called() -> None:
    policy = POLICY.replace("budget: {max_cost: 0.02}\n", "")
    assert guard_of(FakeModel("Oslo"), 0.1, cost=None, policy=policy).decide(QUESTION).cost is None


@pytest.mark.parametrize("when", ["tokens > 100", "cost > 0.01", "!(tokens < 100)", "tokens + 1 > 100"])
def test_a_rule_that_reads_what_isnt_known_blocks_every_answer_after_it(when: str) -> None:
    policy = Policy.parse(
        "version: 1\nname: p\nrules:\n"
        f"- {{id: dear, when: '{when}', do: abstain}}\n"
        "- {id: sure, when: uncertainty < 0.5, do: answer}\n- {id: unsure, do: escalate}\n"
    )
    known = policy.evaluate(Facts(uncertainty=0.1, tokens=5, cost=0.001))
    unknown = policy.evaluate(Facts(uncertainty=0.1, tokens=None, cost=None))
    assert (known.action, unknown.action) == (Action.ANSWER, Action.ESCALATE)
    obstacle = unknown.outcomes[1].obstacle
    assert obstacle is not None
    assert (obstacle.kind, obstacle.rule) == ("rule_undetermined", "dear")


@pytest.mark.parametrize("when", ["tokens < 100", "cost < 0.01", "!(tokens > 100)", "!(cost > 0.01)", "tokens != 3"])
def test_an_answer_never_rests_on_what_isnt_known(when: str) -> None:
    policy = Policy.parse(
        "version: 1\nname: p\nrules:\n"
        f"- {{id: sure, when: 'uncertainty < 0.5 && {when}', do: answer}}\n- {{id: unsure, do: escalate}}\n"
    )
    assert policy.evaluate(Facts(uncertainty=0.1, tokens=5, cost=0.001)).action is Action.ANSWER
    assert policy.evaluate(Facts(uncertainty=0.1, tokens=None, cost=None)).action is Action.ESCALATE


def test_what_isnt_known_doesnt_matter_where_a_rule_holds_without_it() -> None:
    policy = Policy.parse(
        "version: 1\nname: p\nrules:\n- {id: vip, when: 'has(labels.vip) || tokens > 3', do: escalate}\n"
        "- {id: other, when: 'labels.plain == true && tokens > 3', do: escalate}\n"
        "- {id: sure, when: uncertainty < 0.5, do: answer}\n- {id: unsure, do: abstain}\n"
    )
    assert policy.evaluate(Facts(uncertainty=0.1, tokens=None, labels={"vip": True, "plain": False})).rule == "vip"
    blocked = policy.evaluate(Facts(uncertainty=0.1, tokens=None, labels={"plain": False}))
    assert blocked.action is Action.ABSTAIN


def test_unknown_is_shown_as_unknown_wherever_it_is_shown(provider: ScriptedProvider, tmp_path: Path) -> None:
    provider.script = completion("Oslo", usage=None)
    guard = guard_of(RemoteModel(ChatOpenAI(**provider.arguments())), 0.1)
    with structlog.testing.capture_logs() as logs:
        made = guard.decide(QUESTION)
    values = json.loads(json.dumps(made.to_dict()))
    assert (values["cost"], values["attempts"][0]["tokens"], values["attempts"][0]["cost"]) == (None, None, None)
    (logged,) = [each for each in logs if each["event"] == "ilis_guard.decision.made"]
    assert logged["cost"] is None
    (tmp_path / "decision.json").write_text(json.dumps(values))
    assert read_decision(tmp_path / "decision.json").attempts[0].tokens is None
    table = score_decisions(["small", "large"], tmp_path / "decision.json")
    assert [(row["tokens"], row["cost"]) for row in table.rows()] == [(None, None)]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(attempts_table(made.attempts))
    assert "None" not in console.export_text()
    assert "answered with an uncertainty of 0.1" in explain_decision(made)
    assert ChatIlisGuard(guard=guard).invoke(QUESTION).usage_metadata is None
    with serve(guard) as served, served.client() as client:
        messages: Any = [{"role": "user", "content": QUESTION}]
        whole: Any = client.chat.completions.create(model="ilis-guard", messages=messages)
        assert (whole.choices[0].message.content, whole.usage, whole.ilis_guard["cost"]) == ("Oslo", None, None)
        asked: Any = {"stream": True, "stream_options": {"include_usage": True}}
        last = list(client.chat.completions.create(model="ilis-guard", messages=messages, **asked))[-1]
        assert last.usage is None


def test_costs_of_unknown_usage() -> None:
    assert BY_TOKENS.of(1, Usage(prompt_tokens=None, tokens=1)) is None
    assert BY_TOKENS.of(1, Usage(prompt_tokens=1, tokens=None)) is None
    assert TierCost(per_million_tokens=1.0).of(1, Usage(prompt_tokens=None, tokens=1_000_000)) == 1.0
    assert TierCost(per_request=0.5).of(2, Usage(prompt_tokens=None, tokens=None)) == 1.0
