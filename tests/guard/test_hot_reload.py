"""Policy files that change while the guard runs: whole and right, or not at all, and no request is lost or mixed up."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ilis_guard import events
from ilis_guard.cascade.tier import Tier
from ilis_guard.guard import Guard
from ilis_guard.policy import Policy
from ilis_guard.policy.binding import ActivePolicies, BoundPolicy
from ilis_guard.policy.reload import PolicyReloader
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Action
from tests.explained import why

QUESTION = "What is the boiling point of gallium?"
LATER = 0.03
"""Seconds, after which a changed file has been looked at and stood still."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at the files all the time and lets them stand still for a moment only."""
    monkeypatch.setattr("ilis_guard.policy.reload.CHECK_SECONDS", 0.0)
    monkeypatch.setattr("ilis_guard.policy.reload.SETTLE_SECONDS", 0.01)


def saying(text: str, *, rules: int = 1) -> str:
    passed_over = "".join(
        f"  - {{id: r{number}, when: tokens == {900 + number}, do: abstain}}\n" for number in range(rules)
    )
    return f"version: 1\nname: p\nrules:\n{passed_over}  - {{id: no, do: abstain, say: '{text}'}}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(saying("one"), "utf-8")
    return path


def following(file: Path, shadow: Path | None = None) -> Guard:
    tier = Tier(name="small", model=FakeModel("yes"), scorer=FixedScorer(0.1))
    guard = Guard(tiers=[tier], policy=Policy.load(file), review=InMemoryQueue())
    guard.follow(file, shadow)
    return guard


def said(guard: Guard) -> str:
    """What is said once everybody has had the time to look."""
    time.sleep(LATER)
    guard.decide(QUESTION)
    time.sleep(LATER)
    return guard.decide(QUESTION).text


def in_place(file: Path, text: str) -> None:
    file.write_text(text, "utf-8")


def by_rename(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text, "utf-8")
    new.replace(file)


def through_backup(file: Path, text: str) -> None:
    """As some editors write: for a moment there is no file."""
    file.rename(file.with_suffix(".bak"))
    file.write_text(text, "utf-8")


@pytest.mark.parametrize("write", [in_place, by_rename, through_backup])
def test_a_changed_file_takes_effect(file: Path, write: Callable[[Path, str], None]) -> None:
    guard = following(file)
    before = guard.decide(QUESTION)
    with capture_logs() as entries:
        write(file, saying("two"))
        assert said(guard) == "two"
    after = Policy.load(file).fingerprint
    assert (before.text, before.policy) != ("two", after)
    assert (guard.policy.fingerprint, guard.decide(QUESTION).policy, guard.policy_problem) == (after, after, "")
    (reloaded,) = [entry for entry in entries if entry["event"] == events.POLICY_RELOADED]
    assert reloaded == {
        "event": "ilis_guard.policy.reloaded",
        "log_level": "warning",
        "files": [str(file)],
        "policy": after,
        "mode": "enforce",
        "shadow": None,
    }


def test_reload_into_shadow_mode_is_logged(file: Path) -> None:
    guard = following(file)
    with capture_logs() as entries:
        in_place(file, saying("two").replace("rules:", "mode: shadow\nrules:"))
        time.sleep(LATER)
        assert guard.decide(QUESTION).mode == "shadow"
    (reloaded,) = [entry for entry in entries if entry["event"] == events.POLICY_RELOADED]
    assert reloaded["mode"] == "shadow"


def test_a_file_that_changed_long_ago_takes_effect_for_the_next_request(file: Path) -> None:
    guard = following(file)
    in_place(file, saying("two"))
    time.sleep(LATER)
    assert guard.decide(QUESTION).text == "two"


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ("version: 1\nname: p\nrules:\n  - {id: no, do: nothing}\n", ":4:18: "),
        ("", "is empty"),
        (saying("x").replace("do: abstain, say: 'x'", "do: retry, to: huge"), "retries on the tier 'huge'"),
        (None, "there is no such file"),
    ],
)
def test_a_file_that_cant_be_used_keeps_the_old_one_and_says_so_once(
    file: Path, wrong: str | None, problem: str
) -> None:
    guard = following(file)
    with capture_logs() as entries:
        if wrong is None:
            file.unlink()
        else:
            in_place(file, wrong)
        assert said(guard) == "one"
        assert said(guard) == "one"
    assert problem in guard.policy_problem
    (told,) = [entry for entry in entries if entry["event"] == events.POLICY_RELOAD_FAILED]
    assert told == {
        "event": "ilis_guard.policy.reload_failed",
        "log_level": "error",
        "files": [str(file)],
        "policy": guard.policy.fingerprint,
        "shadow": None,
        "problems": guard.policy_problem,
    }
    in_place(file, saying("mended"))
    assert (said(guard), guard.policy_problem) == ("mended", "")


def test_the_policy_that_looks_on_is_followed_too(file: Path, tmp_path: Path) -> None:
    shadow = tmp_path / "shadow.yaml"
    shadow.write_text(saying("shadow"), "utf-8")
    guard = following(file, shadow)
    in_place(shadow, saying("another shadow"))
    said(guard)
    made = guard.decide(QUESTION)
    assert made.shadow is not None
    assert (made.text, made.shadow.policy) == ("one", Policy.load(shadow).fingerprint)
    in_place(shadow, "nonsense")
    assert said(guard) == "one"
    assert "shadow.yaml" in guard.policy_problem


def test_a_file_that_was_only_touched_is_nothing_new(file: Path) -> None:
    guard = following(file)
    with capture_logs() as entries:
        os.utime(file)
        said(guard)
    assert {entry["event"] for entry in entries} == {events.ATTEMPT_FINISHED, events.DECISION_MADE}


def test_running_request_keeps_the_policy_of_the_beginning(file: Path) -> None:
    go, asked = threading.Event(), threading.Event()

    class Waiting(FakeModel):
        def generate(self, *args: Any, **options: Any) -> Any:
            asked.set()
            go.wait()
            return super().generate(*args, **options)

    guard = Guard(
        tiers=[
            Tier(name="small", model=FakeModel("yes"), scorer=FixedScorer(0.5)),
            Tier(name="large", model=Waiting("yes"), scorer=FixedScorer(0.1)),
        ],
        policy=Policy.load(file),
    )
    rules = "rules:\n  - {id: on, do: retry}\n  - {id: no, do: abstain, say: 'NUMBER'}\n"
    in_place(file, f"version: 1\nname: p\n{rules}".replace("NUMBER", "old"))
    guard.follow(file)
    with ThreadPoolExecutor(1) as threads:
        pending = threads.submit(guard.decide, QUESTION)
        asked.wait()
        old = guard.policy.fingerprint
        in_place(file, f"version: 1\nname: p\n{rules}".replace("NUMBER", "new"))
        time.sleep(LATER)
        assert guard.policy.fingerprint != old
        go.set()
        made = pending.result()
    assert (made.text, made.policy, made.rules) == ("old", old, ("on", "no"))
    assert guard.decide(QUESTION).text == "new"


@pytest.mark.parametrize("write", [in_place, by_rename])
def test_requests_survive_hundreds_of_rewrites_of_a_policy(file: Path, write: Callable[[Path, str], None]) -> None:
    texts = {saying(f"number {number}", rules=1 + number % 7): f"number {number}" for number in range(200)}
    known = {Policy.parse(text).fingerprint: said for text, said in texts.items()}
    known[Policy.load(file).fingerprint] = "one"
    guard, done = following(file), threading.Event()

    def hammer() -> list[tuple[str, str, Action, str]]:
        made = []
        while not done.is_set():
            decision = guard.decide(QUESTION)
            made.append((decision.policy, decision.text, decision.action, why(decision)[-1]))
            time.sleep(0.002)
        return made

    with ThreadPoolExecutor(4) as threads:
        hammering = [threads.submit(hammer) for _ in range(4)]
        for text in texts:
            write(file, text)
            time.sleep(0.02)
        time.sleep(LATER)
        done.set()
        made = [decision for each in hammering for decision in each.result()]
    for policy, text, action, reason in made:
        assert known[policy] == text
        assert action is Action.ABSTAIN
        assert reason == "rule 'no' decided: abstain, because it has no condition"
    # Many of them were in force, and the last one is.
    assert len({policy for policy, *_ in made}) > 20
    assert guard.decide(QUESTION).text == "number 199"
    assert guard.policy_problem == ""


def test_incomplete_file_is_ignored_even_if_valid(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ilis_guard.policy.reload.SETTLE_SECONDS", 3600.0)
    now = [0.0]
    follow = PolicyReloader([file], lambda: _bound(Policy.load(file)), clock=lambda: now[0])

    def in_force() -> str:
        return follow.current.enforced.policy.name

    whole = saying("two").replace("name: p", "name: whole")
    in_place(file, whole.replace("name: whole", "name: half"))
    assert in_force() == "p"
    now[0] = 3599.0
    assert in_force() == "p"
    in_place(file, whole)
    now[0] = 3601.0
    assert in_force() == "p"
    now[0] = 7201.0
    assert in_force() == "whole"


def test_file_that_changes_during_a_read_is_read_again(file: Path) -> None:
    now, loads = [0.0], []

    def load() -> ActivePolicies:
        loads.append(Policy.load(file))
        if len(loads) == 2:
            in_place(file, saying("three"))
        return _bound(loads[-1])

    follow = PolicyReloader([file], load, clock=lambda: now[0])
    in_place(file, saying("two"))
    for _ in range(4):
        assert follow.current.enforced.policy is loads[0 if len(loads) < 3 else 2]
        now[0] += 1.0
    assert (len(loads), follow.problem) == (3, "")
    assert loads[2].fingerprint == Policy.parse(saying("three")).fingerprint


def _bound(policy: Policy) -> ActivePolicies:
    return ActivePolicies(enforced=BoundPolicy(policy=policy, thresholds={}))


def test_between_two_looks_a_request_costs_no_look(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ilis_guard.policy.reload.CHECK_SECONDS", 0.25)
    monkeypatch.setattr("ilis_guard.policy.reload.SETTLE_SECONDS", 0.25)
    in_force, now, looked = following(file)._active, [0.0], []
    stat = os.stat

    def counted(path: Path) -> os.stat_result:
        looked.append(path)
        return stat(path)

    monkeypatch.setattr("ilis_guard.policy.reload.os.stat", counted)
    follow = PolicyReloader([file], lambda: in_force, clock=lambda: now[0])
    looked.clear()
    for hundredth in range(100):
        now[0] = hundredth / 100
        assert follow.current is in_force
    assert looked == [file] * 3
