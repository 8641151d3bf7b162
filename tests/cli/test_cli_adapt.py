"""A profile of traffic that nobody labelled, from a real model's answers to a guard's decisions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ilis_guard import Action, Guard
from ilis_guard.scoring import read_bundle
from ilis_guard.scoring.profile import read_profile
from tests.conftest import FEW_WORDS, SMOLLM2

BUNDLE = "packaged:smollm2-135m-instruct-full"
TIER = {"name": "small", "model": SMOLLM2, "prompt": FEW_WORDS, "max_new_tokens": 16, "bundle": BUNDLE}
SYSTEM = {"role": "system", "content": "You answer briefly and politely."}
COUNTRIES = (
    *("France", "Norway", "Peru", "Japan", "Chile", "Spain", "Mali", "Italy", "Fiji", "Kenya"),
    *("Chad", "Cuba", "Iran", "Laos", "Oman", "Togo", "Greece", "Nepal", "Tonga", "Palau"),
)


def talk(country: str) -> list[dict[str, str]]:
    return [SYSTEM, {"role": "user", "content": f"What is the capital of {country}?"}]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    guard = {"version": 1, "policy": "default", "tiers": [TIER], "review": {"storage": "sqlite:///t.db"}}
    (tmp_path / "guard.yaml").write_text(json.dumps(guard))
    ranked = guard | {"tiers": [TIER | {"profile": "mine.json"}]}
    (tmp_path / "ranked.yaml").write_text(json.dumps(ranked))
    (tmp_path / "r.jsonl").write_text("".join(json.dumps({"messages": talk(name)}) + "\n" for name in COUNTRIES))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("real_model")
def test_traffic_in_another_wording_gets_ranks_without_a_label(room: Path, run: Callable[..., Any]) -> None:
    command = ("adapt", BUNDLE, "--tier", "small", "--questions", "r.jsonl", "--to", "mine.json")
    made = run(*command, "--config", "guard.yaml")
    assert made.status == 0, made.err
    profile = read_profile(room / "mine.json")
    assert profile.bundle == read_bundle(BUNDLE).digest
    assert len(profile.uncertainties) == len(COUNTRIES)
    assert [(kind.name, kind.rows) for kind in profile.traffic.kinds] == [("all", 20)]
    assert profile.wordings == ()
    assert "20 answers; kinds by their prompts" in " ".join(made.out.split())
    assert f"20 answers; the surest 60 % have an uncertainty below {profile.uncertainties[12]:.3f}" in made.out
    ranks: dict[str, float] = {}
    with Guard.from_config(room / "ranked.yaml") as guard:
        for country in COUNTRIES[:6]:
            decision = guard.decide(talk(country))
            (attempt,) = decision.attempts
            assert attempt.departures == ("system", "traffic")
            assert attempt.rank is not None
            ranks[country] = attempt.rank
            # Alone or in a batch, an answer's maps are the same but for the last digits.
            nearest = min(abs(one - attempt.uncertainty) for one in profile.uncertainties if attempt.uncertainty)
            assert nearest < 1e-3
            assert (decision.action is Action.ANSWER) is (attempt.rank < 0.6)
    assert len(set(ranks.values())) > 3


def test_a_source_is_named_once(room: Path, run: Callable[..., Any]) -> None:
    for options in ((), ("--from", "r.jsonl", "--tier", "small"), ("--tier", "small"), ("--questions", "r.jsonl")):
        refused = run("adapt", BUNDLE, "--to", "mine.json", *options)
        assert refused.status == 2
        assert "give either --from FILE, or --tier NAME with --questions FILE" in " ".join(refused.err.split())
    assert not (room / "mine.json").exists()
