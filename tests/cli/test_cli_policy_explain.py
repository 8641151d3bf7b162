"""`ilis-guard policy explain`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ilis_guard.cascade.tier import Tier
from ilis_guard.guard import Guard
from ilis_guard.policy import Policy
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Labels

POLICY = """\
version: 1
name: mine
rules:
  - {id: hard, stage: prompt, when: tokens > 5, do: retry}
  - {id: legal, when: "has(labels.topic) && labels.topic == 'legal'", do: escalate, to: lawyers}
  - {id: sure, when: uncertainty < 0.25 && !(typicality < 0.01), do: answer}
  - {id: again, when: uncertainty < 0.8, do: retry}
  - {id: person, do: escalate}
"""
QUESTION = "What is the geheimnis?"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(POLICY)
    return path


@pytest.mark.parametrize("form", ["yaml", "json", "lines", "@file", "file"])
def test_facts_are_explained_however_they_are_given(
    run: Callable[..., Any], policy: Path, tmp_path: Path, form: str
) -> None:
    file = tmp_path / "facts.yaml"
    file.write_text("# a case\nuncertainty: 0.43\ntier: small\nlabels: {topic: tax}\n")
    facts = {
        "yaml": "{uncertainty: 0.43, tier: small, labels: {topic: tax}}",
        "json": '{"uncertainty": 0.43, "tier": "small", "labels": {"topic": "tax"}}',
        "lines": "uncertainty: 0.43\ntier: small\nlabels:\n  topic: tax",
        "@file": f"@{file}",
        "file": str(file),
    }[form]
    result = run("policy", "explain", str(policy), "--facts", facts)
    assert (result.status, result.err) == (0, "")
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in _rows(result.out)}
    assert rows["legal"] == ["escalate", "passed over", "`labels.topic == 'legal'` is false (labels.topic is 'tax')"]
    assert rows["sure"] == [
        "answer",
        "passed over",
        # There is no typicality, so nothing is said against an answer by it.
        "`uncertainty < 0.25` is false (uncertainty is 0.43)",
    ]
    assert rows["again"] == ["retry", "passed over", "it would retry, but there is no larger tier"]
    assert rows["person"] == ["escalate", "decided", "it has no condition"]
    assert "hard" not in rows
    assert result.flat.endswith(
        "By rule 'person' a person decides (escalate), because it has no condition. Passed over before it: rule "
        "'legal', as `labels.topic == 'legal'` is false (labels.topic is 'tax'); rule 'sure', as `uncertainty < 0.25` "
        "is false (uncertainty is 0.43); rule 'again', as it would retry, but there is no larger tier."
    )


def test_the_deciding_conditions_parts_are_shown(run: Callable[..., Any], policy: Path) -> None:
    result = run("policy", "explain", str(policy), "--facts", "{uncertainty: 0.1, typicality: 0.3}")
    rows = [[cell.strip() for cell in cells] for cells in _rows(result.out.partition("made of")[2])]
    assert rows == [
        ["uncertainty < 0.25 && !(typicality < 0.01)", "true", "uncertainty is 0.1, typicality is 0.3"],
        ["uncertainty < 0.25", "true", "uncertainty is 0.1"],
        ["!(typicality < 0.01)", "true", "typicality is 0.3"],
        ["typicality < 0.01", "false", "typicality is 0.3"],
    ]
    assert "not reached" in result.out


def test_rules_of_the_prompt_are_explained_where_they_are_asked_for(run: Callable[..., Any], policy: Path) -> None:
    facts = ("--facts", "{tokens: 6, last_tier: false}", "--stage", "prompt")
    told = run("policy", "explain", str(policy), *facts, "--json").json
    assert [(rule["rule"], rule["outcome"]) for rule in told["rules"]] == [("hard", "decided")]
    assert (told["stage"], told["action"], told["rule"]) == ("prompt", "retry", "hard")
    assert told["rules"][0]["condition"]["facts"] == {"tokens": 6}
    assert told["facts"]["tokens"] == 6


def test_a_shipped_policy_is_explained_by_its_name(run: Callable[..., Any]) -> None:
    told = run("policy", "explain", "default", "--facts", "{uncertainty: 0.1, typicality: 0.5}", "--json").json
    assert (told["action"], told["rule"]) == ("answer", "sure")


@pytest.mark.parametrize(
    ("facts", "problems"),
    [
        ("{uncertainy: 0.4}", ["--facts:1:2: unknown key 'uncertainy'; did you mean 'uncertainty'?"]),
        ("{statistics: {entropy: 1}}", ["unknown key 'entropy'; did you mean 'entropy_mean'?"]),
        ("{uncertainty: 1.5}", ["--facts:1:15: uncertainty: should be less than or equal to 1, got 1.5"]),
        (
            "{tokens: 1.5, typicality: 'no'}",
            ["--facts:1:10: tokens: ", "--facts:1:27: typicality: should be a valid number"],
        ),
        ("{last_tier: no}", ["--facts:1:13: last_tier: should be a valid boolean, got 'no'"]),
        ("{attempt: 0}", ["--facts:1:11: attempt: should be greater than or equal to 1"]),
        ("{finish_reason: cut}", ["--facts:1:17: finish_reason: should be 'stop', 'length' or '', got 'cut'"]),
        ("{labels: {a-b: 1}}", ["--facts:1:16: labels.a-b: must be an identifier: conditions say labels.NAME"]),
        (
            "{labels: {topic: [legal]}}",
            ["--facts:1:18: labels.topic: must be a text, a number, true or false, got ['legal']"],
        ),
        ("{certified: true}", ["--facts:1:2: `certified` follows from `uncertainty` and `threshold`; give those"]),
        ("{tier: a, tier: b}", ["--facts:1:11: duplicate key 'tier'"]),
        ("{tier: &a b}", ["--facts:1:8: got the anchor '&a'"]),
        ("tier: [", ["--facts:1:", "not valid YAML"]),
        ("@nowhere.yaml", ["nowhere.yaml: there is no such file"]),
        ("nowhere", ["nowhere: there is no such file"]),
    ],
)
def test_facts_that_are_none_are_refused_with_their_place(
    run: Callable[..., Any], policy: Path, facts: str, problems: list[str]
) -> None:
    result = run("policy", "explain", str(policy), "--facts", facts)
    assert (result.status, result.out) == (2, "")
    for problem in problems:
        assert problem in result.err


def test_without_facts_there_is_nothing_to_explain(run: Callable[..., Any], policy: Path) -> None:
    result = run("policy", "explain", str(policy))
    assert (result.status, result.out) == (2, "")
    assert "there is nothing to explain; give --facts" in result.err


def test_facts_print_no_control_sequences(run: Callable[..., Any], policy: Path) -> None:
    facts = {"uncertainty": 0.9, "tier": "[red]x[/red]", "labels": {"topic": "[/] \x1b[2J"}}
    result = run("policy", "explain", str(policy), "--facts", json.dumps(facts))
    assert result.status == 0
    assert "The tier '[red]x[/red]' answered" in result.flat
    assert "\x1b[2J" not in result.out


@pytest.fixture
def decision(run: Callable[..., Any], use: Callable[[Guard], None], policy: Path, tmp_path: Path) -> Callable[..., Any]:
    """Makes a decision, as `ask --json` prints it, and the JSON of its ticket, if it has one."""

    def decide(labels: Labels, *uncertainties: float) -> tuple[Path, Path]:
        queue = InMemoryQueue()
        tiers = [
            Tier(name=name, model=FakeModel("secret answer"), scorer=FixedScorer(uncertainty))
            for name, uncertainty in zip(("small", "large"), uncertainties, strict=False)
        ]
        use(Guard(tiers=tiers, policy=Policy.load(policy), review=queue))
        asked = run("ask", QUESTION, "--json", *(f"--label={name}={value}" for name, value in labels.items()))
        made, ticket = tmp_path / "decision.json", tmp_path / "ticket.json"
        made.write_text(asked.out)
        if asked.json["ticket"] is not None:
            # `ask` closes the guard, and its queue with it.
            with InMemoryQueue() as again:
                guard = Guard(tiers=tiers, policy=Policy.load(policy), review=again)
                waiting = guard.decide(QUESTION, labels=labels).ticket
                assert waiting is not None
                ticket.write_text(json.dumps(again.get(waiting.id).to_dict()))
        return made, ticket

    return decide


def test_a_decision_is_gone_through_step_by_step(
    run: Callable[..., Any], policy: Path, decision: Callable[..., Any]
) -> None:
    made, _ = decision({}, 0.6, 0.1)
    told = run("policy", "explain", str(policy), "--decision", str(made), "--json").json
    assert [(step["attempt"], step["stage"], step["rule"], step["agrees"]) for step in told["steps"]] == [
        (1, "prompt", None, True),
        (1, "answer", "again", True),
        (2, "prompt", None, True),
        (2, "answer", "sure", True),
    ]
    # What was spent so far is counted over the attempts, as it was for the decision itself.
    assert [step["facts"]["attempt"] for step in told["steps"]] == [1, 1, 2, 2]
    assert [step["facts"]["tokens"] for step in told["steps"]] == [0, 2, 2, 4]
    assert [step["facts"]["last_tier"] for step in told["steps"]] == [False, False, True, True]
    assert (told["notes"], told["policy"]) == ([], told["decided_by"])
    shown = run("policy", "explain", str(policy), "--decision", str(made))
    assert shown.flat.startswith("The tier 'small' answered with an uncertainty of 0.6. By rule 'again' a larger tier")
    assert "attempt 2, tier 'large'" in shown.flat
    assert "secret" not in shown.out + json.dumps(told)
    assert "isn't what was decided" not in shown.out


def test_a_ticket_holds_its_labels_and_the_length_of_its_prompt(
    run: Callable[..., Any], policy: Path, decision: Callable[..., Any]
) -> None:
    _, ticket = decision({"topic": "legal"}, 0.1)
    told = run("policy", "explain", str(policy), "--decision", str(ticket), "--json").json
    assert [(step["rule"], step["agrees"]) for step in told["steps"]] == [(None, True), ("legal", True)]
    assert told["steps"][1]["facts"]["prompt_length"] == len(QUESTION)
    assert told["steps"][1]["facts"]["labels"] == {"topic": "legal"}
    assert told["paragraph"].endswith("It waits in the queue 'lawyers' for a person.")
    assert "geheimnis" not in json.dumps(told)


def test_a_record_without_rulings_is_explained_and_not_compared(
    run: Callable[..., Any], policy: Path, decision: Callable[..., Any]
) -> None:
    _, ticket = decision({"topic": "legal"}, 0.1)
    record = json.loads(ticket.read_text()) | {"rulings": []}
    ticket.write_text(json.dumps(record))
    told = run("policy", "explain", str(policy), "--decision", str(ticket), "--json").json
    assert [(step["rule"], step["agrees"]) for step in told["steps"]] == [(None, None), ("legal", None)]
    assert told["notes"] == ["the rulings on record aren't one an attempt, so they aren't compared"]


def test_another_policy_than_the_one_that_decided_is_named(
    run: Callable[..., Any], policy: Path, decision: Callable[..., Any]
) -> None:
    made, _ = decision({}, 0.1)
    before = Policy.load(policy).fingerprint
    policy.write_text(POLICY.replace("uncertainty < 0.25", "uncertainty < 0.05"))
    shown = run("policy", "explain", str(policy), "--decision", str(made))
    now = Policy.load(policy).fingerprint
    assert f"note: another policy decided, with the fingerprint {before}; this is {now}" in shown.flat
    assert "this isn't what was decided then" in shown.flat


def test_stage_option_is_refused_with_a_decision(
    run: Callable[..., Any], policy: Path, decision: Callable[..., Any]
) -> None:
    made, _ = decision({}, 0.1)
    for stage in ("prompt", "answer"):
        result = run("policy", "explain", str(policy), "--decision", str(made), "--stage", stage)
        assert (result.status, result.out) == (2, "")
        assert f"--stage {stage} doesn't go with --decision" in result.err


def test_guard_yaml_beside_facts_alone_is_refused_rather_than_ignored(
    run: Callable[..., Any], policy: Path, config: Path
) -> None:
    result = run("policy", "explain", str(policy), "--facts", "{uncertainty: 0.4}", "-c", str(config))
    assert (result.status, result.out) == (2, "")
    assert "--config goes with --decision only" in result.err


def test_facts_under_a_shadow_policy_are_explained_as_recorded_only(run: Callable[..., Any], policy: Path) -> None:
    asked = ("policy", "explain", str(policy), "--facts", "{uncertainty: 0.4}")
    assert "shadow" not in run(*asked).out
    assert run(*asked, "--json").json["mode"] == "enforce"
    policy.write_text(POLICY.replace("name: mine", "name: mine\nmode: shadow"))
    assert "SHADOW MODE: what the rules say is recorded, and not done" in run(*asked).flat
    assert run(*asked, "--json").json["mode"] == "shadow"


def test_prompt_cost_of_attempts_is_read_back(
    run: Callable[..., Any], policy: Path, decision: Callable[..., Any]
) -> None:
    made, _ = decision({}, 0.6, 0.1)
    record = json.loads(made.read_text())
    for attempt, prompt_cost, cost in zip(record["attempts"], (0.125, 0.25), (0.5, 1.0), strict=True):
        attempt |= {"prompt_cost": prompt_cost, "cost": cost}
    made.write_text(json.dumps(record))
    told = run("policy", "explain", str(policy), "--decision", str(made), "--json").json
    assert [step["facts"]["cost"] for step in told["steps"]] == [0.125, 0.5, 0.75, 1.5]


def test_cost_of_attempts_is_read_back(run: Callable[..., Any], policy: Path, decision: Callable[..., Any]) -> None:
    made, _ = decision({}, 0.6, 0.1)
    record = json.loads(made.read_text())
    for attempt, cost in zip(record["attempts"], (0.25, 0.5), strict=True):
        attempt["cost"] = cost
    made.write_text(json.dumps(record))
    told = run("policy", "explain", str(policy), "--decision", str(made), "--json").json
    assert [step["facts"]["cost"] for step in told["steps"] if step["stage"] == "answer"] == [0.25, 0.75]


def test_decision_of_a_shadow_policy_is_compared_with_its_ruling(
    run: Callable[..., Any], policy: Path, decision: Callable[..., Any]
) -> None:
    policy.write_text(POLICY.replace("name: mine", "name: mine\nmode: shadow"))
    made, _ = decision({"topic": "legal"}, 0.1)
    given = ("--decision", str(made), "--facts", "{labels: {topic: legal}}", "--json")
    told = run("policy", "explain", str(policy), *given).json
    assert told["paragraph"] == (
        "The tier 'small' answered with an uncertainty of 0.1. The answer is given, as it would be without a policy. "
        "The policy is in shadow mode: by rule 'legal' it would have escalated, because `has(labels.topic)` is true "
        "(labels.topic is 'legal') and `labels.topic == 'legal'` is true (labels.topic is 'legal'). Passed "
        "over before it: rule 'hard', as `tokens > 5` is false (tokens is 0)."
    )
    assert [(step["rule"], step["agrees"]) for step in told["steps"]] == [(None, True), ("legal", True)]
    assert told["notes"] == []


def test_the_larger_tiers_come_from_guard_yaml(
    run: Callable[..., Any], policy: Path, decision: Callable[..., Any], config: Path
) -> None:
    made, _ = decision({}, 0.5)
    assert "'person'" in run("policy", "explain", str(policy), "--decision", str(made)).flat
    config.write_text("version: 1\npolicy: default\ntiers: [{name: small, model: m}, {name: large, model: m}]\n")
    step = run("policy", "explain", str(policy), "--decision", str(made), "-c", str(config), "--json").json["steps"][1]
    assert (step["rule"], step["agrees"], step["facts"]["last_tier"]) == ("again", False, False)
    config.write_text("version: 1\npolicy: default\ntiers: [{name: huge, model: m}]\n")
    refused = run("policy", "explain", str(policy), "--decision", str(made), "-c", str(config))
    assert refused.status == 2
    assert "the decision's tier 'small' isn't one of its tiers, which are ['huge']" in refused.err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the top level: Invalid JSON"),
        ('{"id": "secret"', "the top level: Invalid JSON"),
        ('["secret"]', "the top level: should be an object"),
        ('{"id": "d", "attempts": []}', "action: Field required"),
        ('{"request": {"messages": [{"content": 7}]}}', "decision: Field required"),
    ],
)
def test_a_file_that_is_no_decision_is_refused_without_its_texts(
    run: Callable[..., Any], policy: Path, tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "decision.json"
    path.write_text(text)
    result = run("policy", "explain", str(policy), "--decision", str(path))
    assert (result.status, result.out) == (2, "")
    assert f"{path}: is neither a decision nor a ticket" in result.err
    assert problem in result.err
    assert "secret" not in result.err


def test_a_decision_that_is_not_there_is_refused(run: Callable[..., Any], policy: Path, tmp_path: Path) -> None:
    result = run("policy", "explain", str(policy), "--decision", str(tmp_path / "none.json"))
    assert result.status == 2
    assert "none.json: can't be read (No such file or directory)" in result.err


def _rows(table: str) -> list[list[str]]:
    return [line.strip("│\n").split("│") for line in table.splitlines() if line.startswith("│")]
