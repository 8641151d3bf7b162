"""Policy errors name the place, the value and the remedy."""

from pathlib import Path

import pytest

from ilis_guard.config import strict_yaml
from ilis_guard.errors import PolicyError
from ilis_guard.policy import Policy

HEAD = "version: 1\nname: p\nrules:\n"


def refusal(text: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        Policy.parse(text, path="p.yaml")
    return str(caught.value).splitlines()


def rule(*lines: str) -> str:
    """A rule whose first key stands at 4:5, the next at 5:5, and so on."""
    return HEAD + "  - " + "\n    ".join(lines) + "\n"


PLAIN = f"{HEAD}  - {{id: a, do: abstain}}\n"
ANSWER = ("id: a", "when: uncertainty < 0.2", "do: answer")


WRONG: list[tuple[str, str, str]] = [
    # YAML
    ("version: 1\nversion: 1\n", "2:1", "duplicate key 'version'"),
    ("a: &x [1]\nb: [*x, *x]\n", "1:4", "anchor"),
    (HEAD + "\t- id: a\n", "4:1", "tab"),
    ("", "1:1", "empty"),
    ("- id: a\n", "1:1", "mapping"),
    # shape
    ("name: p\nrules: []\n", "1:1", "the key 'version' is missing"),
    ("version: 2\nnonsense: 1\n", "1:10", "reads version 1 of the policy language, got 2"),
    ("version: '1'\n", "1:10", "got '1'"),
    ("version: true\n", "1:10", "got True"),
    ("version: 1\nname: p\nrules: []\n", "3:8", "rules: "),
    ("version: 1\nname: p\nrules:\n", "3:1", "rules: should be a list, each item of which"),
    ("version: 1\nname: ''\nrules: [{id: a, do: abstain}]\n", "2:7", "name: "),
    ("version: 1\nrules: [{id: a, do: abstain}]\n", "1:1", "the key 'name' is missing"),
    (rule("id: a", "wen: uncertainty < 0.2", "do: abstain"), "5:5", "unknown key 'wen'; did you mean 'when'?"),
    (
        rule("id: a", "colour: red", "do: abstain"),
        "5:5",
        "unknown key 'colour'; take it out, or write one of id, stage, when,",
    ),
    (rule("id: a", "do: awnser"), "5:9", "rules[0].do: should be 'answer', 'abstain', 'retry' or 'escalate', got"),
    (rule("do: abstain"), "4:5", "rules[0]: the key 'id' is missing"),
    (rule("id: a"), "4:5", "rules[0]: the key 'do' is missing"),
    (rule("id: a b", "do: abstain"), "4:9", "rules[0].id: "),
    (rule("id: 7", "do: abstain"), "4:9", "rules[0].id: should be a valid string, got 7"),
    (rule("id: a", "when: true", "do: abstain"), "5:11", "leave `when` out for a rule that always holds, got True"),
    (rule("id: a", "when: false", "do: abstain"), "5:11", "delete a rule that never holds, got False"),
    (rule("id: a", "when:", "do: abstain"), "5:5", "has no value; leave `when` out"),
    (rule("id: a", "when: ''", "do: abstain"), "5:11", "is empty"),
    (rule("id: a b", "do: abstain"), "4:9", "rules[0].id: must be a letter, and then only letters, digits, - and _"),
    ("version: 1\nname: p\nrules:\n  id: a\n  do: abstain\n", "4:3", "rules: should be a list, each item of which"),
    (rule("id: a", "when: 3", "do: abstain"), "5:11", "must be a condition in CEL, `uncertainty < 0.2` say, got 3"),
    (rule("id: a", "do: escalate", "to:"), "6:5", "has no value"),
    (rule("id: a", "do: escalate", "to: ' x'"), "6:9", "rules[0].to: "),
    (rule("id: a", "do: abstain", "say: ' '"), "6:10", "is empty"),
    # Keys whose values were commented out, and that would count as left out.
    (f"guarantee:\n  # max_error: 0.05\n{PLAIN}", "1:1", "guarantee: has no value; give it one, or take it out"),
    (f"guarantee: {{max_error: 0.1, min_coverage: null}}\n{PLAIN}", "1:43", "guarantee.min_coverage: has no value"),
    (f"budget:\n  max_seconds:\n  max_attempts: 2\n{PLAIN}", "2:3", "budget.max_seconds: has no value"),
    (f"audit: ~\n{PLAIN}", "1:8", "audit: has no value"),
    (f"mode:\n{PLAIN}", "1:1", "mode: should be 'enforce' or 'shadow', got None"),
    (rule("id: a", "do: escalate", "sample:"), "6:5", "has no value"),
    (rule("id: a", "do: escalate", "due:"), "6:5", "has no value"),
    # meaning
    (rule("id: a", "do: abstain", "to: x"), "6:9", "`to` is not allowed with `do: abstain`"),
    (rule(*ANSWER, "to: x"), "7:9", "`to` is not allowed with `do: answer`"),
    (rule(*ANSWER, "say: x"), "7:10", "`say` is not allowed with `do: answer`: the caller gets the answer itself"),
    (rule("id: a", "do: retry", "say: x"), "6:10", "`say` is not allowed with `do: retry`"),
    (rule("id: a", "do: answer"), "5:9", "rule 'a': an answer rule must look at the score"),
    (rule("id: a", "when: 'true'", "do: answer"), "5:11", "an answer rule must look at the score"),
    (rule("id: a", "when: tokens < 5", "do: answer"), "5:11", "an answer rule must look at the score"),
    (rule("id: a", "when: tier == 'typicality'", "do: answer"), "5:11", "an answer rule must look at the score"),
    (
        HEAD + "  - {id: a, do: retry}\n  - {id: a, do: abstain}\n",
        "5:10",
        "duplicate rule id 'a', which already stands at p.yaml:4:10",
    ),
    # conditions; `when: ` ends at column 10
    (rule("id: a", "when: uncertanty < 0.2", "do: abstain"), "5:11", "unknown name 'uncertanty'; did you mean"),
    (rule("id: a", "when: typicality < 0.2 && lables.x", "do: abstain"), "5:31", "did you mean 'labels.x'?"),
    (rule("id: a", "when: \"typicality < 0.2 && tyer != 'x'\"", "do: abstain"), "5:32", "did you mean 'tier'?"),
    (
        rule("id: a", "when: statistics.margin < 0.2", "do: abstain"),
        "5:11",
        "did you mean 'statistics.margin_min'?",
    ),
    (rule("id: a", "when: colour == 1", "do: abstain"), "5:11", "; facts are uncertainty, typicality, "),
    (
        rule("id: a", "when: colour == 1", "do: abstain"),
        "5:11",
        "unknown name 'colour'; a text stands in quotes ('colour'), a label after its first name (labels.colour); ",
    ),
    (rule("id: a", "when: certified == False", "do: abstain"), "5:24", "unknown name 'False'; write false"),
    (rule("id: a", "when: uncertainty < 0,25", "do: abstain"), "5:26", "can't read on at `,`; a fraction has a point"),
    (
        rule("id: a", "when: 0.1 < uncertainty < 0.25", "do: abstain"),
        "5:29",
        "write each comparison by itself: 0.1 < uncertainty && uncertainty < 0.2",
    ),
    (rule("id: a", "when: colour(tier)", "do: abstain"), "5:11", "unknown name 'colour'"),
    (rule("id: a", "when: uncertainty < 1", "do: abstain"), "5:23", "`<` can't be applied to (double, int)"),
    (rule("id: a", "when: uncertainty < 1", "do: abstain"), "5:23", "write 1.0"),
    (rule("id: a", "when: attempt < 2.0", "do: abstain"), "5:19", "attempt and tokens go with whole numbers"),
    (rule("id: a", "when: tier == 3", "do: abstain"), "5:16", "compare like with like"),
    (rule("id: a", "when: uncertainty = 0.1", "do: abstain"), "5:23", "got `=`: did you mean `==`?"),
    (rule("id: a", "when: last_tier and error", "do: abstain"), "5:21", "got `and`, which CEL writes as `&&`"),
    (rule("id: a", "when: uncertainty", "do: abstain"), "5:11", "must be true or false, got DOUBLE"),
    (rule("id: a", "when: labels.x", "do: abstain"), "5:11", "must be true or false, got DYN"),
    (rule("id: a", "when: uncertainty.x < 0.1", "do: abstain"), "5:22", "cannot be the operand"),
    (rule("id: a", "when: " + "(" * 99 + "last_tier" + ")" * 99, "do: abstain"), "5:11", "nested too deeply"),
    (rule("id: a", f"when: {'x' * 2001}", "do: abstain"), "5:11", "at most 2000 characters, got 2001"),
    (
        rule("id: a", "when: |-", "  last_tier &&", "  nope", "do: abstain"),
        "5:11",
        "(line 2, column 1 of the condition)",
    ),
    (
        rule("id: a", "when: >-", "  last_tier &&", "  attempt < 1.0", "do: abstain"),
        "5:11",
        "(line 1, column 22 of the condition)",
    ),
]


@pytest.mark.parametrize(("text", "place", "words"), WRONG)
def test_an_error_names_its_place_and_cause(text: str, place: str, words: str) -> None:
    lines = refusal(text)
    assert any(line.startswith(f"p.yaml:{place}: ") and words in line for line in lines), lines


def test_all_problems_are_listed() -> None:
    text = HEAD + (
        "  - {id: a, when: fo < 1.0 || ba < 1.0, do: abstain}\n"
        "  - {id: a, do: answer, say: x}\n"
        "  - {id: b, do: abstain, to: x}\n"
    )
    assert sorted(line.split(": ")[0] for line in refusal(text)) == [
        "p.yaml:4:19",
        "p.yaml:4:31",
        "p.yaml:5:10",
        "p.yaml:5:17",
        "p.yaml:5:30",
        "p.yaml:6:30",
    ]


def test_a_missing_file_and_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="there is no such file"):
        Policy.load(tmp_path / "none.yaml")
    with pytest.raises(PolicyError, match="no policy named 'defualt' is shipped; did you mean 'default'"):
        Policy.load("defualt")


def test_places_fingerprints_targets_and_queues() -> None:
    text = HEAD + (
        "  - {id: a, when: tokens < 1, do: retry, to: large}\n"
        "  - {id: b, when: tokens < 2, do: escalate, to: legal}\n"
        "  - {id: c, do: escalate}\n"
    )
    policy = Policy.parse(text, path="p.yaml")
    assert policy.retry_targets == {"a": "large"}
    assert policy.queues == {"legal", "default"}
    assert policy.place("a", "to") == "p.yaml:4:46"
    assert policy.place("c", "to") == "p.yaml:6:5"
    with pytest.raises(KeyError):
        policy.place("z", "to")
    spaced = text.replace("name: p\n", "# a comment\nname:   'p'\n")
    assert Policy.parse(spaced).fingerprint == policy.fingerprint
    assert Policy.parse(text.replace("tokens < 1", "tokens < 3").replace("tokens < 2", "tokens < 4")).fingerprint != (
        policy.fingerprint
    )
    assert len(policy.fingerprint) == 16


@pytest.mark.parametrize("piece", ["# x", "# a.", "\n", "# \u4e16", "eyJ-"])
def test_a_text_of_30_megabytes_is_refused_unread(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_yaml, "YAML", None)
    text = f"version: 1\nname: p\n{piece * (30_000_000 // len(piece))}\nrules: [{{id: a, do: abstain}}]\n"
    with pytest.raises(PolicyError, match=r"^p\.yaml:1:1: the file has more than 100000 bytes; split it"):
        Policy.parse(text, path="p.yaml")


def test_a_files_limit_is_one_of_bytes() -> None:
    with pytest.raises(PolicyError, match="more than 100000 bytes"):
        Policy.parse("# " + "\u4e16" * 40_000)
