"""The JSON Schema for editors agrees with the loader."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from ilis_guard.config.strict_yaml import parse
from ilis_guard.errors import PolicyError
from ilis_guard.policy import Policy
from ilis_guard.policy.facts import VISIBLE
from ilis_guard.policy.schema import JSON_SCHEMA_FILE, json_schema_text, with_local_schema
from tests.policy.test_policy_errors import WRONG
from tests.policy.test_policy_language import RULES, WRONG_KEYS, WRONG_RULES

FOLDER = Path(__file__).parents[2] / "policies"
FIXTURES = Path(__file__).parent / "fixtures"
SCHEMA = json.loads(JSON_SCHEMA_FILE.read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def data(text: str) -> Any:
    """As an editor reads it; what isn't strict YAML is as it is."""
    return YAML(typ="safe", pure=True).load(text)


def test_the_shipped_json_schema_is_that_of_the_models() -> None:
    assert JSON_SCHEMA_FILE.read_text("utf-8") == json_schema_text(), (
        "run: ilis-guard policy schema > ilis_guard/policy/policy.schema.json"
    )


def test_json_schema_is_valid_for_its_draft() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("file", sorted([*FOLDER.glob("*.yaml"), *FIXTURES.glob("*.yaml")]), ids=lambda file: file.name)
def test_every_policy_here_validates(file: Path) -> None:
    VALIDATOR.validate(data(file.read_text("utf-8")))


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_policy_names_the_schema_in_its_first_line(file: Path) -> None:
    first, _, _ = file.read_text("utf-8").partition("\n")
    key, _, path = first.partition("$schema=")
    assert key == "# yaml-language-server: "
    assert (file.parent / path).resolve() == JSON_SCHEMA_FILE


def test_a_shipped_policy_can_be_put_beside_the_schema() -> None:
    first, _, rest = with_local_schema((FOLDER / "default.yaml").read_text("utf-8")).partition("\n")
    assert first == "# yaml-language-server: $schema=policy.schema.json"
    assert rest == (FOLDER / "default.yaml").read_text("utf-8").partition("\n")[2]


def sections() -> dict[str, dict[str, Any]]:
    return {"": SCHEMA["properties"]} | {
        name: SCHEMA["$defs"][name]["properties"] for name in ("Rule", "Guarantee", "Budget", "Audit")
    }


def test_every_key_is_described_and_has_an_example_or_all_its_values() -> None:
    for section, keys in sections().items():
        for key, said in keys.items():
            assert len(said["description"]) > 10, (section, key)
            values = (
                said.get("examples") or said.get("enum") or [said.get("const", said.get("$ref", said.get("items")))]
            )
            assert values != [None], (section, key)


def test_every_example_holds() -> None:
    for section, keys in sections().items():
        for key, said in keys.items():
            for example in said.get("examples", ()):
                VALIDATOR.evolve(schema={**said, "$defs": SCHEMA["$defs"]}).validate(example)
                if (section, key) == ("Rule", "when"):
                    Policy.parse(
                        "version: 1\nname: p\nguarantee: {max_error: 0.1}\n"
                        f"rules:\n  - id: a\n    do: abstain\n    when: |-\n      {example}\n"
                    )


def test_the_condition_is_described_with_every_fact() -> None:
    description = SCHEMA["$defs"]["Rule"]["properties"]["when"]["description"]
    assert [name for name in VISIBLE if name not in description] == []


BEYOND_A_SHAPE = (
    "duplicate",
    "anchor",
    "got a tab",
    "unknown name",
    "must look at the score",  # it may be mentioned in a string
    "can't be applied",
    "compare like with like",
    "write 1.0",
    "attempt and tokens go with whole numbers",
    "CEL writes",
    "did you mean `",
    "not a condition",
    "must be true or false",
    "cannot be the operand",
    "nested too deeply",
    "of the condition)",
    "did you mean 'labels.x'?",
    "did you mean 'tier'?",
    "did you mean 'statistics.margin_min'?",
    "did you mean 'certified'?",
    "did you mean 'text_length'?",
    "needs a guarantee",
    "isn't known at stage",
    "can never act",
    "longer than nothing",  # a number that is written as a text
)
"""What is wrong with a file in these words is no matter of its shape."""


def texts() -> list[str]:
    beside = [f"version: 1\nname: p\n{keys}\n{RULES}" for keys, _, _ in WRONG_KEYS]
    rules = [f"version: 1\nname: p\nrules:\n  - {{id: abc, {rule} }}\n" for rule, _, _ in WRONG_RULES]
    return [*(text for text, _, _ in WRONG), *beside, *rules]


@pytest.mark.parametrize("text", texts())
def test_the_json_schema_refuses_shapes_that_the_loader_refuses(text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.parse(text)
    complaints = str(caught.value).splitlines()
    if all(any(words in line for words in BEYOND_A_SHAPE) for line in complaints):
        return
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(data(text))


@pytest.mark.parametrize("key", ["mode", "guarantee", "budget", "audit", "description"])
def test_a_key_without_a_value_is_refused(key: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(data(f"version: 1\nname: p\n{key}:\n{RULES}"))


@pytest.mark.parametrize(
    "rule",
    [
        "{id: a, do: retry, to: large}",
        "{id: a, do: escalate, to: support, say: Soon., due: 1.5h, sample: 1}",
        "{id: a, stage: prompt, when: tokens < 5, do: abstain, say: No., sample: 0.5}",
        "{id: a, when: 'certified', do: answer, sample: 0.25}",
        "{id: a, stage: answer, when: typicality > 0.1, do: answer}",
    ],
)
@pytest.mark.parametrize(
    "keys",
    [
        "mode: enforce",
        "guarantee: {min_coverage: 1}",
        "guarantee: {max_reviews_per_hour: 20, requests_per_hour: 400.5, confidence: 0.9}",
        "guarantee: {max_error: 0.01}\nbudget: {max_attempts: 1}\naudit: {fraction: 1, queue: a b}",
    ],
)
def test_the_json_schema_takes_files_that_the_loader_takes(keys: str, rule: str) -> None:
    text = f"version: 1\nname: p\n{keys}\nrules: [{rule}]\n"
    VALIDATOR.validate(data(text))
    if "guarantee" in keys or "certified" not in rule:
        Policy.parse(text)
    assert parse(text, path="p", error=PolicyError).data == data(text)
