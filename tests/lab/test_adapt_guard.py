"""A guard's own decisions are traffic, and a tier with a profile scores in its units."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ilis_guard import Action, Decision, Guard, Policy, Tier
from ilis_guard.cascade.loading import load_scorer
from ilis_guard.config.guard_yaml import read_config
from ilis_guard.errors import AttemptsError, ConfigError, ProfileError, ScoringError
from ilis_guard.lab.adapt import adapt, harvested_traffic, logged_traffic, write_profile
from ilis_guard.scoring import Bundle, LightGBMScorer
from ilis_guard.scoring.profile import AdaptedProfile
from ilis_guard.testing import FakeModel
from ilis_guard.types import Message
from tests.lab.synthetic import synthetic_answers, write_harvest
from tests.lab.test_adapt import OWN, answered, at_home, bundle, folder, traffic_of

__all__ = ["bundle", "folder"]
pytestmark = pytest.mark.usefixtures("fitted_model")

GUARD = "version: 1\npolicy: default\ntiers:\n- {name: small, model: m, prompt: '{question}', bundle: bundle%s}\n"
ANSWER_ALL = (
    "version: 1\nname: p\nrules:\n- {id: all, when: uncertainty <= 1.0, do: answer}\n- {id: rest, do: abstain}\n"
)
KINDS = synthetic_answers({"c": 40, "d": 30}, seed=4, unlike=["d"])


def decisions(bundle: Bundle, profile: AdaptedProfile | None = None) -> list[Decision]:
    """A guard's, on the answers of two kinds."""
    model = FakeModel(answered(KINDS), fingerprint=bundle.metadata.fingerprint, max_new_tokens=8)
    tier = Tier(name="small", model=model, scorer=LightGBMScorer(bundle, profile))
    with Guard(tiers=[tier], policy=Policy.parse(ANSWER_ALL), review=None) as guard:
        return [guard.decide("Who?", labels={"dataset": str(name)}) for name in KINDS.datasets]


def written(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    return path


def test_logged_answers_have_the_profile_of_the_same_answers_harvested(bundle: Bundle, tmp_path: Path) -> None:
    log = written(tmp_path / "log.jsonl", [made.to_dict() for made in decisions(bundle)])
    harvest = write_harvest(KINDS, tmp_path / "rows.parquet")
    logged, harvested = logged_traffic(bundle, log), harvested_traffic(bundle, harvest)
    assert logged.wordings is None
    for by in (None, "dataset"):
        first, second = (adapt(bundle, traffic, by=by) for traffic in (logged, harvested))
        assert [(kind.name, kind.rows) for kind in first.traffic.kinds] == [
            (kind.name, kind.rows) for kind in second.traffic.kinds
        ]
        assert first.uncertainties == pytest.approx(second.uncertainties, abs=1e-9)
        for known, found in zip(first.traffic.kinds, second.traffic.kinds, strict=True):
            for block, moments in known.moments.items():
                assert moments.mean == pytest.approx(found.moments[block].mean, rel=1e-6, abs=1e-6)
                assert moments.spread == pytest.approx(found.moments[block].spread, rel=1e-5)


def test_only_what_the_bundle_scored_is_taken_from_a_log(bundle: Bundle, tmp_path: Path) -> None:
    lines = [made.to_dict() for made in decisions(bundle)]
    unscored = lines[0] | {"attempts": [lines[0]["attempts"][0] | {"uncertainty": None}]}
    stopped = lines[0] | {"attempts": [lines[0]["attempts"][0] | {"stopped_at": 1}]}
    at_prompt = lines[0] | {"attempts": [lines[0]["attempts"][0] | {"stage": "prompt"}]}
    others = lines[0] | {"bundles": {"small": "0" * 16}}
    path = written(tmp_path / "log.jsonl", [*lines, unscored, stopped, at_prompt, others])
    assert len(logged_traffic(bundle, path).answers) == len(lines) == 70
    other = dataclasses.replace(bundle, digest="1" * 16)
    with pytest.raises(ProfileError, match=rf"none of 74 decisions .* they name \['0{{16}}', '{bundle.digest}'\]"):
        logged_traffic(other, path)
    at_prompts = dataclasses.replace(bundle, metadata=bundle.metadata.model_copy(update={"stage": "prompt"}))
    with pytest.raises(ProfileError, match="decisions don't say which bundle scored their prompts"):
        logged_traffic(at_prompts, path)


@pytest.mark.parametrize(
    ("maps", "what"),
    [
        ({"prompt": [[0.0, 1.0], [1.0]]}, "a signature has as many rows as columns"),
        ({"prompt": [[0.0, 1.0]]}, "a signature has as many rows as columns"),
        ({"prompt": [["x"]]}, "signatures"),
        ({"prompt": None}, "signatures"),
        ({"middle": [[0.0]]}, "signatures"),
    ],
    ids=str,
)
def test_a_line_without_its_maps_is_named(maps: dict[str, Any], what: str, bundle: Bundle, tmp_path: Path) -> None:
    made = decisions(bundle)[0].to_dict()
    (attempt,) = made["attempts"]
    damaged = made | {"attempts": [attempt | {"signatures": attempt["signatures"] | maps}]}
    path = written(tmp_path / "log.jsonl", [made, damaged])
    with pytest.raises(AttemptsError, match=rf"log\.jsonl:3: not a line of `ilis-guard ask --json`: .*{what}"):
        logged_traffic(bundle, path)
    path.write_text('{"id": 1}\n')
    with pytest.raises(AttemptsError, match=r"log\.jsonl:1: not a line of `ilis-guard ask --json`"):
        logged_traffic(bundle, path)


@pytest.mark.parametrize(("number", "said"), [(1e300, "finite divergence"), (-1.0, "finite divergence")])
def test_a_logged_map_that_is_none_is_refused(number: float, said: str, bundle: Bundle, tmp_path: Path) -> None:
    lines = [made.to_dict() for made in decisions(bundle)]
    lines[9]["attempts"][0]["signatures"]["mean"][0][1] = number
    traffic = logged_traffic(bundle, written(tmp_path / "log.jsonl", lines))
    with pytest.raises(ProfileError, match=rf"answer 10 can't be measured: the signature 'mean' .*{said}"):
        adapt(bundle, traffic)


def test_a_guards_decisions_by_a_profile_are_ranked_and_never_calibrated(bundle: Bundle) -> None:
    profile = adapt(bundle, traffic_of(KINDS), by="dataset")
    for made in decisions(bundle, profile):
        (attempt,) = made.attempts
        assert attempt.departures == ("traffic",)
        assert (attempt.calibrated, made.calibrated) == (False, False)
        assert attempt.uncertainty is not None
        assert attempt.rank == sum(one < attempt.uncertainty for one in profile.uncertainties) / 70
    for made in decisions(bundle):
        assert (made.attempts[0].departures, made.attempts[0].rank, made.calibrated) == ((), None, True)


@pytest.mark.parametrize("labels", [{}, {"dataset": "e"}, {"Dataset": "c"}], ids=str)
def test_a_request_of_an_unknown_kind_is_never_answered(
    labels: dict[str, str], bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    profile = adapt(bundle, traffic_of(KINDS), by="dataset")
    model = FakeModel(answered(KINDS)[0], fingerprint=bundle.metadata.fingerprint, max_new_tokens=8)
    tier = Tier(name="small", model=model, scorer=LightGBMScorer(bundle, profile))
    with Guard(tiers=[tier], policy=Policy.parse(ANSWER_ALL), review=None) as guard:
        known = guard.decide("Who?", labels={"dataset": "c"})
        refused = guard.decide("Who?", labels=labels)
    assert known.action is Action.ANSWER
    (attempt,) = refused.attempts
    assert refused.action is not Action.ANSWER
    assert attempt.uncertainty is None
    assert attempt.error is not None
    assert attempt.error.kind == "ScoringError"
    assert "the traffic profile" in caplog.text


def test_a_tier_that_streams_is_told_the_kind_by_its_labels(bundle: Bundle) -> None:
    profile = adapt(bundle, traffic_of(KINDS), by="dataset")
    model = FakeModel(answered(KINDS)[0], layers=5, fingerprint=bundle.metadata.fingerprint, max_new_tokens=8)
    tier = Tier(name="small", model=model, scorer=(scorer := LightGBMScorer(bundle, profile)))
    question = [Message(role="user", content="Who?")]
    *_, last = tier.stream(question, {"dataset": "d"})
    assert last.score is not None
    assert last.score.uncertainty == scorer.score(answered(KINDS)[0], labels={"dataset": "d"}).uncertainty
    with pytest.raises(ScoringError, match="the label 'dataset' names the kinds"):
        list(tier.stream(question))


def test_a_profile_applies_to_requests_as_its_own_and_not_to_those_of_labelled_rows(bundle: Bundle) -> None:
    """A request that is put as the labelled rows were is scored as they were, unless the profile's were put so, too."""
    (labelled,) = bundle.metadata.wordings
    talking = dataclasses.replace(labelled, system="Be brief.")
    answer = answered(OWN)[0]
    plain = LightGBMScorer(bundle).score(answer)
    for wordings in (frozenset({talking}), frozenset({talking, labelled}), None):
        traffic = dataclasses.replace(traffic_of(OWN), wordings=wordings)
        scorer = LightGBMScorer(bundle, profile := adapt(bundle, traffic))
        is_home = wordings == frozenset({talking})
        assert profile.wordings == (() if is_home else (labelled,))
        assert scorer.departures == (() if is_home else ("traffic",))
        first, other = scorer.score(answer, labelled), scorer.score(answer, talking)
        assert (first.uncertainty == plain.uncertainty, first.departures == ()) == (is_home, is_home)
        assert (other.departures, other.uncertainty != plain.uncertainty) == (("traffic",), True)
        assert scorer.score(answer) == other


def test_a_tier_names_its_profile(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    write_profile(profile := at_home(bundle), folder.parent / "mine.json")
    (folder.parent / "guard.yaml").write_text(GUARD % ", profile: mine.json")
    (config,) = read_config(folder.parent / "guard.yaml").tiers
    assert config.bundle is not None
    scorer = load_scorer(config, config.bundle, "answer")
    score = scorer.score(answered(OWN)[0])
    assert score.rank == profile.rank(score.uncertainty)
    assert (score.departures, scorer.departures) == (("traffic",), ("traffic",))
    write_profile(profile.model_copy(update={"bundle": "0" * 16}), folder.parent / "mine.json")
    with pytest.raises(ProfileError, match="made with the bundle '0000000000000000'"):
        load_scorer(config, config.bundle, "answer")
    (tmp_path / "guard.yaml").write_text(GUARD % ", prompt_profile: mine.json")
    with pytest.raises(ConfigError, match=r"guard\.yaml:4:.*`prompt_profile` goes with the `prompt_bundle`"):
        read_config(tmp_path / "guard.yaml")
