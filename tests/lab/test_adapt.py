"""Traffic profiles: how uncertain a bundle is of its own traffic, without a label."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ilis_guard import Guard, Policy, Tier
from ilis_guard.cascade.tier import load_scorer
from ilis_guard.config.guard_yaml import read_config
from ilis_guard.errors import AttemptsError, ConfigError, ProfileError
from ilis_guard.lab.adapt import (
    adapt,
    harvested_uncertainties,
    logged_uncertainties,
    read_requests,
    write_profile,
)
from ilis_guard.lab.fit import fit
from ilis_guard.scoring import Bundle, LightGBMScorer, read_bundle
from ilis_guard.scoring.profile import read_profile
from ilis_guard.testing import FakeModel
from ilis_guard.types import Message
from tests.lab.synthetic import synthetic_answers, write_harvest
from tests.lab.test_fit import generation

pytestmark = pytest.mark.usefixtures("fitted_model")

GUARD = "version: 1\npolicy: default\ntiers:\n- {name: small, model: m, prompt: '{question}', bundle: bundle%s}\n"


ROWS = synthetic_answers({"a": 200, "b": 200})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapt") / "bundle"
    fit(ROWS, path)
    return path


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return read_bundle(str(folder))


SPREAD = [place / 50 for place in range(40)]


def test_a_rank_is_the_share_of_the_traffic_that_is_surer(bundle: Bundle, tmp_path: Path) -> None:
    write_profile(adapt(bundle, SPREAD[::-1]), tmp_path / "deep" / "mine.json")
    profile = read_profile(tmp_path / "deep" / "mine.json")
    assert list(profile.uncertainties) == SPREAD
    assert [profile.rank(uncertainty) for uncertainty in (0.0, 0.4, 0.41, 0.78, 1.0)] == [0, 0.5, 0.525, 0.975, 1]
    plain, ranked = LightGBMScorer(bundle), LightGBMScorer(bundle, profile)
    for row in range(20):
        before, after = plain.score(generation(ROWS, row)), ranked.score(generation(ROWS, row))
        surer = sum(one < after.uncertainty for one in SPREAD) / len(SPREAD)
        assert (after.uncertainty, after.typicality, after.rank) == (before.uncertainty, before.typicality, surer)
        assert np.isnan(before.rank)


@pytest.mark.parametrize(
    ("uncertainties", "what"),
    [
        ([0.1, 0.2, 0.3], r"needs 20 scored answers, got 3"),
        ([], r"needs 20 scored answers, got 0"),
        ([0.25] * 40, r"all 40 answers got the same uncertainty, 0\.25"),
    ],
)
def test_traffic_that_says_nothing_is_refused(bundle: Bundle, uncertainties: list[float], what: str) -> None:
    with pytest.raises(ProfileError, match=what):
        adapt(bundle, uncertainties)


def test_a_profile_belongs_to_the_bundle_that_it_was_made_with(bundle: Bundle) -> None:
    profile = adapt(dataclasses.replace(bundle, digest="0" * 16), SPREAD)
    with pytest.raises(ProfileError, match=rf"made with the bundle '0{{16}}'.* this one is '{bundle.digest}'"):
        LightGBMScorer(bundle, profile)


@pytest.mark.parametrize(
    "change",
    [
        {"uncertainties": [0.1] * 3},
        {"uncertainties": [*SPREAD[::-1]]},
        {"uncertainties": [*SPREAD, 1.5]},
        {"uncertainties": [*SPREAD, None]},
        {"uncertainties": ["0.1"] * 30},
        {"version": 2},
        {"extra": 1},
        {"bundle": None},
    ],
    ids=str,
)
def test_a_file_that_is_no_profile_is_named(bundle: Bundle, change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    write_profile(adapt(bundle, SPREAD), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ProfileError, match=r"mine\.json"):
        read_profile(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"version": NaN}'])
def test_any_file_is_a_profile_or_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_bytes(content)
    with pytest.raises(ProfileError, match=r"mine\.json"):
        read_profile(tmp_path / "mine.json")
    with pytest.raises(ProfileError, match=r"none\.json.*make a profile with `ilis-guard adapt`"):
        read_profile(tmp_path / "none.json")


def test_harvested_answers_are_scored_whatever_they_are_labelled(bundle: Bundle, tmp_path: Path) -> None:
    rows, scorer = synthetic_answers({"a": 30, "c": 30}, seed=5), LightGBMScorer(bundle)
    path = write_harvest(rows, tmp_path / "rows.parquet")
    known = harvested_uncertainties(bundle, path)
    assert known == [scorer.score(generation(rows, row)).uncertainty for row in range(60)]
    with pytest.raises(ProfileError, match=r"rows\.parquet has another model .* precision differ"):
        harvested_uncertainties(bundle, write_harvest(rows, path, "nf4"))


def test_logged_answers_count_with_the_uncertainty_that_they_had(bundle: Bundle, tmp_path: Path) -> None:
    model = FakeModel(generation(ROWS, 0), fingerprint=bundle.metadata.fingerprint)
    tier = Tier(name="small", model=model, scorer=LightGBMScorer(bundle))
    policy = Policy.parse("version: 1\nname: p\nrules:\n- {id: all, do: abstain}\n")
    with Guard(tiers=[tier], policy=policy, review=None) as guard:
        made_now = guard.decide("Who?").to_dict()
    logged = []
    for uncertainty in SPREAD:
        (attempt,) = made_now["attempts"]
        logged.append(made_now | {"attempts": [attempt | {"uncertainty": uncertainty}]})
    unscored = made_now | {"attempts": [made_now["attempts"][0] | {"uncertainty": None}]}
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n\n" for line in [*logged, unscored]))
    assert logged_uncertainties(bundle, path) == SPREAD
    other = dataclasses.replace(bundle, digest="0" * 16)
    with pytest.raises(ProfileError, match=rf"none of 41 decisions .* they name \['{bundle.digest}'\]"):
        logged_uncertainties(other, path)
    path.write_text('{"id": 1}\n')
    with pytest.raises(AttemptsError, match=r"log\.jsonl:1: not a line of `ilis-guard ask --json`"):
        logged_uncertainties(bundle, path)


def test_requests_are_conversations_or_questions_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    system = {"role": "system", "content": "Be brief."}
    path.write_text(
        "".join(
            json.dumps(line) + "\n"
            for line in (
                {"question": "Who?", "context": "Ada wrote it."},
                {"id": "7", "question": "Which?", "choices": ["a", "b"], "answers": ["a"], "kind": "choice"},
                {"messages": [system, {"role": "user", "content": "Why?"}], "labels": {"topic": "x"}},
            )
        )
    )
    user = [(Message(role="user", content=text),) for text in ("Ada wrote it.\n\nWho?", "Which?\nA) a\nB) b")]
    talk = (Message(role="system", content="Be brief."), Message(role="user", content="Why?"))
    assert read_requests(path) == [*user, talk]
    for wrong, what in (
        ('{"id": "1"}', r":2: there is neither `messages` nor `question`"),
        ("{", r":2: "),
        ('{"question": 5}', r":2: question: "),
        ('{"messages": [{"role": "user"}]}', r":2: "),
        ('{"question": " "}', r":2: the prompt is empty"),
    ):
        path.write_text('{"question": "Who?"}\n' + wrong)
        with pytest.raises(AttemptsError, match=r"q\.jsonl" + what):
            read_requests(path)
    path.write_text("\n")
    with pytest.raises(AttemptsError, match="there are no requests in it"):
        read_requests(path)


def test_a_tier_names_its_profile(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    write_profile(adapt(bundle, SPREAD), folder.parent / "mine.json")
    (folder.parent / "guard.yaml").write_text(GUARD % ", profile: mine.json")
    (config,) = read_config(folder.parent / "guard.yaml").tiers
    assert config.bundle is not None
    score = load_scorer(config, config.bundle, "answer").score(generation(ROWS, 0))
    assert score.rank == sum(one < score.uncertainty for one in SPREAD) / len(SPREAD)
    (tmp_path / "guard.yaml").write_text(GUARD % ", prompt_profile: mine.json")
    with pytest.raises(ConfigError, match=r"guard\.yaml:4:.*`prompt_profile` goes with the `prompt_bundle`"):
        read_config(tmp_path / "guard.yaml")
