"""What a guard.yaml makes of a policy that goes with it."""

from pathlib import Path

import pytest

from ilis_guard.config.guard_yaml import GuardConfig, read_config
from ilis_guard.policy import Notice, Policy

SURE = "id: sure, when: uncertainty < 0.2, do: answer"
TWO = "[{name: small, model: m}, {name: large, model: m}]"
ENDPOINT = "{name: chat, url: 'https://hooks.example/x', secret: '${SECRET}'"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def config(folder: Path, tiers: str, review: str = "") -> GuardConfig:
    path = folder / "guard.yaml"
    storage = f"review: {{storage: 'sqlite:///tickets.db'{review}}}\n"
    path.write_text(f"version: 1\npolicy: default\ntiers: {tiers}\n{storage}")
    return read_config(path)


def told(guard: GuardConfig, *rules: str, keys: str = "description: d") -> tuple[Notice, ...]:
    text = f"version: 1\nname: p\n{keys}\nrules:\n" + "".join(f"  - {{{rule}}}\n" for rule in rules)
    return Policy.parse(text, path="p.yaml").config_notices(guard)


def test_retries_of_a_guard_with_one_tier_are_warned_of(folder: Path) -> None:
    rules = (SURE, "id: up, do: retry", "id: early, stage: prompt, when: tokens > 5, do: retry")
    one = told(config(folder, "[{name: small, model: m}]"), *rules)
    assert [(notice.level, notice.place) for notice in one] == [("warning", "p.yaml:6:18"), ("warning", "p.yaml:7:54")]
    assert one[0].what == (
        "rule 'up': never retries: this guard has one tier, 'small', so the rule is always passed over"
    )
    assert told(config(folder, TWO), *rules) == ()


def test_a_retry_on_the_smallest_tier_is_warned_of(folder: Path) -> None:
    guard = config(folder, TWO)
    (notice,) = told(guard, SURE, "id: up, do: retry, to: small")
    assert (notice.level, notice.place) == ("warning", "p.yaml:6:29")
    assert notice.what == "rule 'up': never retries: 'small' is the smallest tier, and a retry goes to a larger one"
    assert told(guard, SURE, "id: up, do: retry, to: large") == ()


def test_comparison_with_an_unknown_tier_is_noted(folder: Path) -> None:
    guard = config(folder, TWO)
    (notice,) = told(guard, "id: a, when: \"uncertainty < 0.2 && (tier == 'larg' || tier != 'small')\", do: answer")
    assert (notice.level, notice.place) == ("warning", "p.yaml:5:19")
    assert notice.what == "rule 'a': there is no tier 'larg'; did you mean 'large'?"
    (notice,) = told(guard, "id: a, when: \"uncertainty < 0.2 && tier == 'xyz'\", do: answer")
    assert notice.what == "rule 'a': there is no tier 'xyz'; there are ['small', 'large']"


@pytest.mark.parametrize(
    ("review", "unheard"),
    [
        ("", ["audits", "legal", "default"]),
        (f", endpoints: [{ENDPOINT}}}]", []),
        (f", endpoints: [{ENDPOINT}, queues: [legal, audits]}}]", ["default"]),
        (f", endpoints: [{ENDPOINT}, events: [ticket.resolved]}}]", ["audits", "legal", "default"]),
        (", page: {url: 'https://review.example', proxy: {header: X-User, addresses: [127.0.0.1]}}", []),
    ],
)
def test_a_queue_that_nobody_hears_of_is_warned_of_once(folder: Path, review: str, unheard: list[str]) -> None:
    found = told(
        config(folder, TWO, review),
        SURE,
        "id: a, when: tokens > 5, do: escalate, to: legal",
        "id: b, when: tokens > 4, do: escalate, to: legal",
        "id: c, do: escalate",
        keys="audit: {fraction: 0.1, queue: audits}",
    )
    assert [notice.what.split("'")[1] for notice in found] == unheard
    places = {"audits": "p.yaml:3:31", "legal": "p.yaml:6:49", "default": "p.yaml:8:17"}
    assert [notice.place for notice in found] == [places[queue] for queue in unheard]


def test_guarantee_on_requests_of_smaller_tiers_is_noted(folder: Path) -> None:
    rules = ("id: covered, when: certified, do: answer", "id: up, do: retry, to: large", "id: no, do: abstain")
    scored = "[{name: small, model: m, bundle: s}, {name: middle, model: m, bundle: m}, {name: large, model: m%s}]"
    (notice,) = told(config(folder, scored % ", bundle: l"), *rules, keys="guarantee: {max_error: 0.1}")
    assert (notice.level, notice.place) == ("note", "p.yaml:3:12")
    assert notice.what.startswith("the tiers ['large'] see only what rules pass on to them, mostly harder requests")
    unscored = config(folder, scored % "")
    assert told(unscored, *rules, keys="guarantee: {max_error: 0.1}") == ()
    assert told(config(folder, scored % ", bundle: l"), SURE, rules[1]) == ()
    alone = config(folder, "[{name: small, model: m, bundle: s}]")
    notices_alone = told(alone, rules[0], "id: up, do: retry", rules[2], keys="guarantee: {max_error: 0.1}")
    assert [one.level for one in notices_alone] == ["warning"]
