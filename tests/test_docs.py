"""What the documents show must work as it stands there."""

import csv
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import BaseModel

from ilis_guard import Policy
from ilis_guard.cli import main
from ilis_guard.config.guard_yaml import read_config
from ilis_guard.policy import Facts
from ilis_guard.policy.facts import UNKNOWN_AT_PROMPT, VISIBLE
from ilis_guard.policy.facts_input import given_facts
from ilis_guard.policy.schema import Audit, Budget, Guarantee, PolicyFile, Rule

ROOT = Path(__file__).parents[1]
TEMPLATES = ROOT / "adapters" / "ilis_guard_server" / "templates"


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A YAML block of the language's document, and a row of a table below it."""

    policy: str
    facts: str
    is_at_prompt: bool
    action: str
    rule: str


def completed(block: str) -> str:
    """A block that shows some keys of a policy, with the others that it needs."""
    head = "" if "version:" in block else "version: 1\nname: example\n"
    return head + block + ("" if "rules:" in block else "rules:\n  - {id: rest, do: abstain}\n")


def examples() -> Iterator[Example]:
    policy, is_at_prompt, text = "", False, (ROOT / "docs/policy.md").read_text()
    for found in re.finditer(
        r"```yaml\n(?P<block>.*?)```|^\| (?P<heading>facts(?: at the prompt)?) \| action \| rule \|$"
        r"|^\| `(?P<facts>\{[^`\n]*\})` \| (?P<action>[a-z ]+) \| (?P<rule>[a-z-]+) \|$",
        text,
        flags=re.DOTALL | re.MULTILINE,
    ):
        if found["block"]:
            policy = completed(found["block"])
        elif found["heading"]:
            is_at_prompt = found["heading"] == "facts at the prompt"
        else:
            yield Example(policy, found["facts"], is_at_prompt, found["action"], found["rule"])


@pytest.mark.parametrize("block", blocks("docs/policy.md", "yaml"))
def test_every_policy_in_the_documentation_can_be_loaded(block: str) -> None:
    assert Policy.parse(completed(block)).rules


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: f"{example.rule}-{example.facts}")
def test_every_example_in_the_documentation_is_decided_as_it_says(example: Example) -> None:
    policy, facts = Policy.parse(example.policy), Facts(**given_facts(example.facts))
    ruling = policy.evaluate_prompt(facts).ruling if example.is_at_prompt else policy.evaluate(facts)
    decided = ("goes on", None) if ruling is None else (ruling.action.value, ruling.rule)
    assert decided == (example.action, None if example.rule == "none" else example.rule)


def test_no_table_of_examples_is_overlooked() -> None:
    rows = re.findall(r"^\| `\{", (ROOT / "docs/policy.md").read_text(), flags=re.MULTILINE)
    assert len(list(examples())) == len(rows) > 20


def rows_of(heading: str) -> dict[str, list[str]]:
    """By what stands in the first column: the other cells of the documentation's tables with this heading."""
    text = (ROOT / "docs/policy.md").read_text()
    tables = re.findall(rf"^\| {heading} \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for table in tables for row in table.splitlines()]
    return {name: rest for first, *rest in rows for name in re.findall("`([^`]+)`", first)}


@pytest.mark.parametrize(
    ("heading", "section"),
    [
        ("key", PolicyFile),
        ("key of `guarantee`", Guarantee),
        ("key of `budget`", Budget),
        ("key of `audit`", Audit),
    ],
)
def test_every_key_of_the_language_is_documented(heading: str, section: type[BaseModel]) -> None:
    wanted = set(section.model_fields) | (set(Rule.model_fields) if section is PolicyFile else set())
    assert set(rows_of(heading)) == wanted


def test_every_key_of_the_language_stands_in_an_example() -> None:
    shown = "\n".join(blocks("docs/policy.md", "yaml"))
    for section in (PolicyFile, Rule, Guarantee, Budget, Audit):
        assert [key for key in section.model_fields if not re.search(rf"\b{key}: ?|\b{key}:$", shown)] == []


def test_every_fact_is_documented_with_its_type_and_whether_it_can_be_missing() -> None:
    types = {"double": "fraction", "int": "whole number", "string": "text", "bool": "true or false"}
    told = rows_of("fact")
    assert set(told) == {*VISIBLE, "labels.NAME"}
    for name, kind in VISIBLE.items():
        assert told[name][0] == types[kind.cel], name
        assert (len(told[name]) == 3 and told[name][2] not in ("", "|")) is kind.may_be_missing, name
        for value in kind.values:
            assert f"`{value!r}`" in told[name][1], name


def test_the_facts_that_the_prompt_lacks_are_documented() -> None:
    said = re.search(r"Not known there: (.*?)\.", (ROOT / "docs/policy.md").read_text(), flags=re.DOTALL)
    assert said is not None
    assert set(re.findall("`([^`]+)`", said[1])) == {name.partition(".")[0] for name in UNKNOWN_AT_PROMPT}


def test_every_ready_made_policy_is_named_in_the_documentation() -> None:
    named = set(re.findall(r"\(\.\./policies/(.*?)\.yaml\)", (ROOT / "docs/policy.md").read_text()))
    shipped = {path.stem for path in ROOT.glob("policies/*.yaml")}
    assert named == shipped
    assert shipped <= set(re.findall(r"[a-z-]+", blocks("docs/guard-yaml.md", "yaml")[0].partition("policy: ")[0]))


def test_the_commands_in_the_documentation_print_what_it_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(blocks("docs/policy.md", "yaml")[0])
    (tmp_path / "guard.yaml").write_text(
        "version: 1\npolicy: mine.yaml\ntiers: [{name: small, model: a/b}, {name: large, model: a/c}]\nreview:\n"
        "  storage: sqlite:///tickets.db\n"
        "  endpoints: [{name: all, url: 'https://example.com/hooks', secret: '${SECRET}'}]\n"
    )
    statuses: list[str | int] = []
    for block in blocks("docs/policy.md", "console"):
        command, *lines = block.splitlines()
        monkeypatch.setattr("sys.argv", shlex.split(command.removeprefix("$ ")))
        try:
            main()
            statuses.append(0)
        except SystemExit as end:
            statuses.append(end.code or 0)
        printed = capsys.readouterr().out
        assert lines
        for line in lines:
            assert line in printed
    assert statuses == [0, 0]


def test_the_rules_in_the_readme_are_a_policys() -> None:
    block, _ = blocks("README.md", "yaml")
    policy = Policy.parse("version: 1\nname: readme\n" + block)
    assert policy.evaluate(Facts(uncertainty=0.1, typicality=0.5, threshold=0.2)).rule == "covered"
    assert policy.evaluate(Facts(uncertainty=0.5, typicality=0.5, threshold=0.2)).to == "support"
    assert policy.evaluate(Facts(uncertainty=0.1, typicality=0.5, last_tier=False)).rule == "try-larger"


def test_the_review_settings_in_the_readme_are_ones(tmp_path: Path) -> None:
    _, block = blocks("README.md", "yaml")
    (tmp_path / "guard.yaml").write_text("version: 1\npolicy: default\ntiers: [{name: a, model: a/b}]\n" + block)
    review = read_config(tmp_path / "guard.yaml").review
    assert review is not None
    assert review.page is not None
    assert [endpoint.name for endpoint in review.endpoints] == ["crm"]


def test_the_guard_yaml_in_the_documentation_is_one(tmp_path: Path) -> None:
    (block,) = blocks("docs/guard-yaml.md", "yaml")
    (tmp_path / "guard.yaml").write_text(block)
    config = read_config(tmp_path / "guard.yaml")
    assert [tier.name for tier in config.tiers] == ["small", "remote"]
    (tmp_path / "no-breaker.yaml").write_text(block.replace("{failures: 5, seconds: 30}", "{}"))
    assert read_config(tmp_path / "no-breaker.yaml").tiers[1].breaker == config.tiers[1].breaker


def test_the_remote_tier_in_the_documentation_is_one(tmp_path: Path) -> None:
    (block,) = blocks("docs/remote-tiers.md", "yaml")
    (tmp_path / "guard.yaml").write_text(block)
    tier = read_config(tmp_path / "guard.yaml").tier("large")
    assert (tier.bundle, tier.max_concurrent) == (f"{tmp_path}/bundles/large", 8)
    assert tier.remote is not None
    assert {"logprobs", "top_logprobs"} <= set(tier.remote.arguments)


def test_the_policy_that_is_rolled_out_in_the_documentation_is_one() -> None:
    (block,) = blocks("docs/rollout.md", "yaml")
    policy = Policy.parse(block)
    assert policy.mode == "shadow"
    assert policy.queues == {"support"}
    assert policy.unhandled_uncertified("small") == ""


def test_the_reviewers_page_in_the_documentation_is_one(tmp_path: Path) -> None:
    (block,) = blocks("docs/reviewers-page.md", "yaml")
    (tmp_path / "guard.yaml").write_text(block)
    review = read_config(tmp_path / "guard.yaml").review
    assert review is not None
    assert review.page is not None
    assert [(one.name, one.role) for one in review.page.reviewers] == [
        ("ana", "reviewer"),
        ("ben", "reviewer"),
        ("vera", "viewer"),
    ]


def test_the_keys_in_the_documentation_are_those_of_the_page() -> None:
    rows = re.findall(r"^\| ((?:`[^`]+` ?)+)\|", (ROOT / "docs/reviewers-page.md").read_text(), flags=re.MULTILINE)
    documented = {key for row in rows for key in re.findall("`([^`]+)`", row)}
    listed = re.search("<dl class=.keys.>(.*?)</dl>", (TEMPLATES / "base.html").read_text(), flags=re.DOTALL)
    assert listed is not None
    assert documented == set(re.findall("<kbd>(.*?)</kbd>", listed[1]))
    heard = "".join((TEMPLATES / name).read_text() for name in ("base.html", "ticket.html", "ticket_state.html"))
    assert documented == {*re.findall('data-key="(.)"', heard), "j", "k", "Esc"}


def test_the_readme_has_no_gap_left_to_fill() -> None:
    assert re.findall(r"^[A-Z]+_[A-Z]+$", (ROOT / "README.md").read_text(), flags=re.MULTILINE) == []


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))])
def test_links_to_files_lead_somewhere(document: str) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / document).read_text())
    missing = [link for link in links if not ((ROOT / document).parent / link).exists()]
    assert missing == []


def test_every_figure_of_the_bundles_in_the_readme_is_that_of_the_bundle() -> None:
    from ilis_guard.scoring import read_bundle

    readme = (ROOT / "README.md").read_text()
    for name in ("smollm2-135m-instruct-nf4", "smollm2-135m-instruct-full", "gemma-3-270m-full"):
        metadata = read_bundle(f"packaged:{name}").metadata
        of_prompts = read_bundle(f"packaged:{name}-prompt").metadata.held_out
        for figures in (metadata.held_out, metadata.baseline, of_prompts):
            for figure in (figures.auroc, figures.auroc_within, figures.auprc_wrong, figures.brier):
                assert f"{figure.value:.3f} ({figure.low:.3f}-{figure.high:.3f})" in readme


def test_all_columns_of_the_table_of_attempts_are_documented() -> None:
    from ilis_guard.lab.attempt_schema import COLUMNS

    table = (ROOT / "docs" / "simulation.md").read_text().partition("| --- | --- | --- |\n")[2].partition("\n\n")[0]
    documented = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert documented == COLUMNS.names


def test_the_figures_of_streams_in_the_documentation_are_the_benchmarks() -> None:
    from ilis_guard.cascade.early_stop import CONVINCING, PATIENCE

    text = (ROOT / "docs/streaming.md").read_text()
    assert f"no for {PATIENCE} tokens in a row" in text
    assert f"from {CONVINCING:g} on" in text
    with (ROOT / "benchmarks/results/streaming.csv").open() as file:
        measured = [row for row in csv.DictReader(file) if row["half"] == "report"]
    ours = [row for row in measured if (float(row["convincing"]), int(row["patience"])) == (CONVINCING, PATIENCE)]
    assert len(ours) == 4
    for row in ours:
        saved = int(row["saved"]) / int(row["tokens"])
        answered = f"{row['answered']} of {row['questions']} | {row['falsely_cut']}"
        shown = f"{row['retracted']} of {row['shown']}"
        assert f"| {row['limit']} | {answered} | {100 * saved:.1f} % | {shown} |" in text
    (naive,) = [row for row in measured if (row["convincing"], row["patience"], row["limit"]) == ("0.0", "4", "0.25")]
    assert f"cut {naive['falsely_cut']} of the {naive['answered']} answers" in text
    assert f"save {100 * int(naive['saved']) / int(naive['tokens']):.0f} % of the tokens" in text


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("docs/risk-control.md", "answer where uncertainty <= 0.33"),
        ("docs/scoring.md", "None 1 "),
        ("docs/streaming.md", "answer| of| small|\ndecided: answer"),
    ],
)
def test_the_code_in_the_documentation_runs(document: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(document, "python")
    exec(block, {})
    assert said in capsys.readouterr().out


def test_the_servers_guard_yaml_in_the_documentation_is_one(tmp_path: Path) -> None:
    block, tier = blocks("docs/openai-server.md", "yaml")
    (tmp_path / "guard.yaml").write_text(block)
    server = read_config(tmp_path / "guard.yaml").server
    assert server is not None
    assert [one.name for one in server.api_keys] == ["shop", "prometheus"]
    assert server.api_keys[1].key == f"file:{tmp_path}/secrets/prometheus.hash"
    (tmp_path / "upstream.yaml").write_text("version: 1\npolicy: default\n" + tier)
    remote = read_config(tmp_path / "upstream.yaml").tiers[0].remote
    assert remote is not None
    assert remote.chat_model == "langchain_openai:ChatOpenAI"


def first_column(document: str, heading: str) -> list[str]:
    """What is named in the first column of the table with this heading."""
    table = (ROOT / document).read_text().partition(f"| {heading} |")[2].partition("|\n\n")[0]
    return [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]


def test_every_parameter_that_the_server_refuses_is_documented() -> None:
    from ilis_guard_server.schemas.requests import UNSUPPORTED, ChatRequest

    documented = set(first_column("docs/openai-server.md", "parameter"))
    assert set(UNSUPPORTED) <= documented
    assert documented - set(UNSUPPORTED) <= set(ChatRequest.model_fields)


def test_every_metric_and_its_labels_are_documented() -> None:
    from ilis_guard_server.metrics import Metrics

    metrics = Metrics(in_flight=lambda: 0, waiting=lambda: 0)
    known = set(re.findall(r"^# TYPE (\w+) (?:counter|gauge|histogram)$", metrics.text().decode(), flags=re.MULTILINE))
    # When a counter was made is the library's own.
    known = {name for name in known if not name.endswith("_created")}
    assert set(first_column("docs/openai-server.md", "metric")) == known


def test_every_key_of_the_server_is_in_guard_yamls_documentation() -> None:
    from ilis_guard.config.server import KeySettings, ServerSettings

    (block,) = blocks("docs/guard-yaml.md", "yaml")
    shown = block.partition("server:")[2]
    for section in (ServerSettings, KeySettings):
        assert [key for key in section.model_fields if not re.search(rf"\b{key}:", shown)] == []
