"""A remote tier from harvest to decisions: real commands, ChatOpenAI, and a provider over HTTP."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ilis_guard import Action, Decision, Guard, Policy, Tier
from ilis_guard.cascade.loading import load_tier
from ilis_guard.cli import main
from ilis_guard.config.guard_yaml import read_config
from ilis_guard.errors import BundleMismatchError
from ilis_guard.lab.questions import write_questions
from ilis_guard.scoring import read_bundle
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from tests.explained import problem
from tests.provider import Provider, provider, sure_and_unsure, town

pytestmark = pytest.mark.usefixtures("fitted_model")

POLICY = """
version: 1
name: sure-or-nothing
rules:
  - {id: failed, when: 'error != ""', do: abstain, say: Down.}
  - {id: sure, when: 'uncertainty < 0.3 && typicality >= 0.005', do: answer}
  - {id: unsure, do: abstain, say: I don't know.}
"""
GUARANTEE = """
version: 1
name: at-most-a-third-wrong
guarantee: {max_error: 0.33, confidence: 0.8}
rules:
  - {id: covered, when: certified, do: answer}
  - {id: rest, do: abstain}
"""
TOWNS = [town(number) for number in range(400)]
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def serving() -> Iterator[Provider]:
    with provider() as one:
        yield one


@pytest.fixture(autouse=True)
def answering(serving: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    serving.before = lambda _prompt: 200


def guard_yaml(folder: Path, serving: Provider, *, arguments: dict[str, Any] | None = None, **tier: Any) -> Path:
    remote = {"chat_model": "langchain_openai:ChatOpenAI", "arguments": serving.arguments(**(arguments or {}))}
    config = {"version": 1, "policy": "sure.yaml", "tiers": [{"name": "clerk", "remote": remote, **tier}]}
    (folder / "sure.yaml").write_text(POLICY)
    path = folder / "guard.yaml"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def room(serving: Provider, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with harvested towns and a bundle that was fitted to them, by the commands."""
    folder = tmp_path_factory.mktemp("room")
    write_questions(folder / "towns.jsonl", TOWNS)
    config = guard_yaml(folder, serving, max_concurrent=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "sk-test")
        for command in (
            ["harvest", "towns.jsonl", "--tier", "clerk", "--to", "towns.parquet", "--config", config.name],
            ["fit", "towns.parquet", "--to", "towns"],
        ):
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["ilis-guard", *command])
            with pytest.raises(SystemExit) as end:
                main()
            assert not end.value.code
    return folder


@pytest.fixture
def config(room: Path, serving: Provider, tmp_path: Path) -> Path:
    """A guard.yaml whose remote tier has the bundle."""
    return guard_yaml(tmp_path, serving, bundle=str(room / "towns"))


def decided(config: Path, number: int) -> Decision:
    with Guard.from_config(config) as guard:
        return guard.decide(town(number).prompt())


def test_the_guard_answers_where_the_model_is_sure_and_nowhere_else(config: Path, room: Path) -> None:
    sure, unsure = sure_and_unsure()
    decision = decided(config, sure)
    assert (decision.action, decision.rule) == (Action.ANSWER, "sure")
    assert decision.text == f"T{sure}"
    assert decision.bundles == {"clerk": read_bundle(str(room / "towns")).digest}
    assert decision.attempts[0].typicality is not None

    decision = decided(config, unsure)
    assert (decision.action, decision.rule, decision.text) == (Action.ABSTAIN, "unsure", "I don't know.")
    assert decision.uncertainty is not None
    assert decision.uncertainty > 0.6


def test_a_reply_without_logprobs_fails_closed_with_the_reason(config: Path, serving: Provider) -> None:
    serving.is_mute = True
    try:
        decision = decided(config, sure_and_unsure()[0])
    finally:
        serving.is_mute = False
    assert (decision.action, decision.rule, decision.uncertainty) == (Action.ABSTAIN, "failed", None)
    assert problem(decision.attempts[0]).startswith("ScoringError: the generation has no output statistics")
    assert "without logprobs" in problem(decision.attempts[0])


def test_a_retry_on_a_larger_remote_tier_ends_in_its_answer(config: Path) -> None:
    small = Tier(name="small", model=FakeModel("Bergen?"), scorer=FixedScorer(0.6))
    sure, unsure = sure_and_unsure()
    with InMemoryQueue() as queue:
        tiers = [small, load_tier(read_config(config).tiers[0])]
        guard = Guard(tiers=tiers, policy=Policy.load("default"), review=queue)
        decision = guard.decide(town(sure).prompt())
        assert (decision.action, decision.text) == (Action.ANSWER, f"T{sure}")
        assert decision.rules == ("unsure-so-try-larger", "sure")
        assert guard.decide(town(unsure).prompt()).action is not Action.ANSWER


def test_a_guarantee_holds_of_its_answers(config: Path) -> None:
    (config.parent / "sure.yaml").write_text(GUARANTEE)
    sure, unsure = sure_and_unsure()
    decision = decided(config, sure)
    assert decision.action is Action.ANSWER
    threshold = decision.thresholds["clerk"]
    assert threshold is not None
    assert decision.uncertainty is not None
    assert decision.uncertainty <= threshold
    assert decided(config, unsure).action is Action.ABSTAIN


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"model": "mayor"}, "model"),
        ({"top_logprobs": None}, "arguments.top_logprobs"),
    ],
    ids=str,
)
def test_a_guard_whose_model_is_asked_otherwise_does_not_start(
    changes: dict[str, Any], name: str, room: Path, serving: Provider, tmp_path: Path
) -> None:
    config = guard_yaml(tmp_path, serving, arguments=changes, bundle=str(room / "towns"))
    with pytest.raises(BundleMismatchError, match=rf"doesn't fit the running model: {name} differ.*'town-clerk'"):
        Guard.from_config(config)


def test_a_guard_whose_model_decodes_otherwise_has_scores_that_only_rank(
    room: Path, serving: Provider, tmp_path: Path
) -> None:
    config = guard_yaml(tmp_path, serving, arguments={"temperature": 0.7}, bundle=str(room / "towns"))
    with Guard.from_config(config) as guard:
        assert guard.tiers[0].departures("answer") == ("decoding",)


def test_bundles_of_the_one_kind_do_not_go_with_tiers_of_the_other(
    room: Path, serving: Provider, tmp_path: Path
) -> None:
    packaged = guard_yaml(tmp_path, serving, bundle="packaged:smollm2-135m-instruct-full")
    with pytest.raises(BundleMismatchError, match=r"was fitted to a local model.*'clerk' is remote"):
        Guard.from_config(packaged)
    tier = {"name": "small", "model": "packaged:smollm2-135m-instruct", "bundle": str(room / "towns")}
    packaged.write_text(json.dumps({"version": 1, "policy": "sure.yaml", "tiers": [tier]}))
    with pytest.raises(BundleMismatchError, match=r"was fitted to a remote model, 'town-clerk', and.*'small' is local"):
        Guard.from_config(packaged)


def test_harvest_is_scored_and_simulated(run: Run, config: Path, room: Path, tmp_path: Path) -> None:
    table, changed = tmp_path / "scored.parquet", tmp_path / "bolder.yaml"
    harvest = str(room / "towns.parquet")
    done = run("score", harvest, "--tier", "clerk", "--to", str(table), "--config", str(config))
    assert done.status == 0, done.err
    assert f"{len(TOWNS)} rows" in done.flat
    changed.write_text(POLICY.replace("0.3", "0.6").replace("sure-or-nothing", "bolder"))
    done = run("policy", "simulate", str(config.parent / "sure.yaml"), str(changed), "--on", str(table))
    assert done.status == 0, done.err
    assert "coverage" in done.flat


def test_bundle_is_recalibrated_on_a_harvest(run: Run, room: Path, tmp_path: Path) -> None:
    harvest, ours = str(room / "towns.parquet"), tmp_path / "ours"
    done = run("recalibrate", str(room / "towns"), harvest, "--to", str(ours))
    assert done.status == 0, done.err
    assert read_bundle(str(ours)).metadata.recalibrated is not None


def test_commands_that_need_weights_or_maps_refuse_a_remote_tier(
    run: Run, config: Path, room: Path, tmp_path: Path
) -> None:
    harvest, to = str(room / "towns.parquet"), str(tmp_path / "out")
    tier = ("--tier", "clerk", "--config", str(config))
    asked = str(room / "towns.jsonl")
    for command, why in (
        (("observe", harvest, "--questions", asked, "--to", to, *tier), "there are no weights to run again"),
        (("evaluate", harvest, "--to", to), "hold no maps"),
        (("fit", harvest, "--to", to, "--stage", "prompt"), "nothing is known of it before it has answered"),
        (("harvest", asked, "--to", to, "--site", "residual", *tier), "has no layers to tap: leave --site out"),
    ):
        done = run(*command)
        assert (done.status, done.out) == (2, ""), command
        assert why in " ".join(done.err.split())


def test_without_logprobs_the_harvest_ends_with_the_argument_to_set(
    run: Run, room: Path, serving: Provider, tmp_path: Path
) -> None:
    config = guard_yaml(tmp_path, serving, arguments={"logprobs": None, "top_logprobs": None})
    before = len(serving.asked)
    to = tmp_path / "none.parquet"
    command = ("harvest", str(room / "towns.jsonl"), "--tier", "clerk", "--to", str(to), "--config", str(config))
    done = run(*command, "--batch-size", "5")
    assert done.status == 2
    assert "set `logprobs: true`" in " ".join(done.err.split())
    assert len(serving.asked) - before == 5
    assert not to.exists()


def test_the_bundle_tells_no_secret_and_no_address(room: Path, serving: Provider) -> None:
    told = (room / "towns" / "bundle.json").read_text()
    assert json.loads(told)["fingerprint"]["model"] == "town-clerk"
    for hidden in ("sk-test", serving.url, "127.0.0.1"):
        assert hidden not in told
