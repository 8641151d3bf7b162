"""The documentation: examples and commands work, names exist, links lead to files, figures are the committed ones."""

import ast
import csv
import importlib
import pkgutil
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from ilis_guard import Policy, events
from ilis_guard.cli import main
from ilis_guard.cli.app import app
from ilis_guard.config.guard_yaml import read_config
from ilis_guard.policy import Facts
from ilis_guard.policy.facts import UNKNOWN_AT_PROMPT, VISIBLE
from ilis_guard.policy.facts_input import given_facts
from ilis_guard.policy.schema import Audit, Budget, ColdStart, Guarantee, PolicyFile, Rule

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]
TEMPLATES = ROOT / "adapters" / "ilis_guard_server" / "templates"


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A row of a table of examples, with the policy above the table."""

    policy: str
    facts: str
    is_at_prompt: bool
    action: str
    rule: str


def completed(block: str) -> str:
    """Add the required keys to a block that has only some keys of a policy."""
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
def test_documented_policies_load(block: str) -> None:
    assert Policy.parse(completed(block)).rules


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: f"{example.rule}-{example.facts}")
def test_documented_facts_lead_to_the_documented_ruling(example: Example) -> None:
    policy, facts = Policy.parse(example.policy), Facts(**given_facts(example.facts))
    ruling = policy.evaluate_prompt(facts).ruling if example.is_at_prompt else policy.evaluate(facts)
    decided = ("goes on", None) if ruling is None else (ruling.action.value, ruling.rule)
    assert decided == (example.action, None if example.rule == "none" else example.rule)


def test_all_tables_of_examples_are_parsed() -> None:
    rows = re.findall(r"^\| `\{", (ROOT / "docs/policy.md").read_text(), flags=re.MULTILINE)
    assert len(list(examples())) == len(rows) > 20


def rows_of(heading: str) -> dict[str, list[str]]:
    """Read the tables with this heading: the cells of each row, by the names in its first column."""
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
        ("key of `cold_start`", ColdStart),
    ],
)
def test_every_key_of_the_language_is_documented(heading: str, section: type[BaseModel]) -> None:
    wanted = set(section.model_fields) | (set(Rule.model_fields) if section is PolicyFile else set())
    assert set(rows_of(heading)) == wanted


def test_every_key_of_the_language_has_an_example() -> None:
    shown = "\n".join(blocks("docs/policy.md", "yaml"))
    for section in (PolicyFile, Rule, Guarantee, Budget, Audit, ColdStart):
        assert [key for key in section.model_fields if not re.search(rf"\b{key}: ?|\b{key}:$", shown)] == []


def test_every_fact_is_documented_with_its_type() -> None:
    types = {"double": "fraction", "int": "whole number", "string": "text", "bool": "true or false"}
    documented = rows_of("fact")
    assert set(documented) == {*VISIBLE, "labels.NAME"}
    for name, kind in VISIBLE.items():
        assert documented[name][0] == types[kind.cel], name
        assert (len(documented[name]) == 3 and documented[name][2] not in ("", "|")) is kind.may_be_missing, name
        for value in kind.values:
            assert f"`{value!r}`" in documented[name][1], name


def test_facts_unknown_at_the_prompt_are_documented() -> None:
    listed = re.search(r"Not known there: (.*?)\.", (ROOT / "docs/policy.md").read_text(), flags=re.DOTALL)
    assert listed is not None
    assert set(re.findall("`([^`]+)`", listed[1])) == {name.partition(".")[0] for name in UNKNOWN_AT_PROMPT}


def test_every_ready_made_policy_is_documented() -> None:
    named = set(re.findall(r"\(\.\./policies/(.*?)\.yaml\)", (ROOT / "docs/policy.md").read_text()))
    shipped = {path.stem for path in ROOT.glob("policies/*.yaml")}
    assert named == shipped
    assert shipped <= set(re.findall(r"[a-z-]+", blocks("docs/guard-yaml.md", "yaml")[0].partition("policy: ")[0]))


def test_documented_policy_commands_print_the_documented_output(
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


def test_the_rules_in_the_readme_are_valid() -> None:
    block, _ = blocks("README.md", "yaml")
    policy = Policy.parse("version: 1\nname: readme\n" + block)
    assert policy.evaluate(Facts(uncertainty=0.1, typicality=0.5, threshold=0.2)).rule == "covered"
    assert policy.evaluate(Facts(uncertainty=0.5, typicality=0.5, threshold=0.2)).to == "support"
    assert policy.evaluate(Facts(uncertainty=0.1, typicality=0.5, last_tier=False)).rule == "try-larger"


def test_the_review_settings_in_the_readme_are_valid(tmp_path: Path) -> None:
    _, block = blocks("README.md", "yaml")
    (tmp_path / "guard.yaml").write_text("version: 1\npolicy: default\ntiers: [{name: a, model: a/b}]\n" + block)
    review = read_config(tmp_path / "guard.yaml").review
    assert review is not None
    assert review.page is not None
    assert [endpoint.name for endpoint in review.endpoints] == ["crm"]


def test_the_documented_guard_yaml_is_valid(tmp_path: Path) -> None:
    (block,) = blocks("docs/guard-yaml.md", "yaml")
    (tmp_path / "guard.yaml").write_text(block)
    config = read_config(tmp_path / "guard.yaml")
    assert [tier.name for tier in config.tiers] == ["small", "remote"]
    (tmp_path / "no-breaker.yaml").write_text(block.replace("{failures: 5, seconds: 30}", "{}"))
    assert read_config(tmp_path / "no-breaker.yaml").tiers[1].breaker == config.tiers[1].breaker


def test_the_documented_remote_tier_is_valid(tmp_path: Path) -> None:
    (block,) = blocks("docs/remote-tiers.md", "yaml")
    (tmp_path / "guard.yaml").write_text(block)
    tier = read_config(tmp_path / "guard.yaml").tier("large")
    assert (tier.bundle, tier.max_concurrent) == (f"{tmp_path}/bundles/large", 8)
    assert tier.remote is not None
    assert {"logprobs", "top_logprobs"} <= set(tier.remote.arguments)


def test_the_documented_shadow_policy_is_valid() -> None:
    (block,) = blocks("docs/rollout.md", "yaml")
    policy = Policy.parse(block)
    assert policy.mode == "shadow"
    assert policy.queues == {"support"}
    assert policy.unhandled_uncertified("small") == ""


def test_the_documented_reviewers_page_is_valid(tmp_path: Path) -> None:
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


def test_the_documented_keys_are_those_of_the_page() -> None:
    rows = re.findall(r"^\| ((?:`[^`]+` ?)+)\|", (ROOT / "docs/reviewers-page.md").read_text(), flags=re.MULTILINE)
    documented = {key for row in rows for key in re.findall("`([^`]+)`", row)}
    listed = re.search("<dl class=.keys.>(.*?)</dl>", (TEMPLATES / "base.html").read_text(), flags=re.DOTALL)
    assert listed is not None
    assert documented == set(re.findall("<kbd>(.*?)</kbd>", listed[1]))
    bound = "".join((TEMPLATES / name).read_text() for name in ("base.html", "ticket.html", "ticket_state.html"))
    assert documented == {*re.findall('data-key="(.)"', bound), "j", "k", "Esc"}


def prose(document: str) -> str:
    """The document without its code blocks, in which a `#` starts a comment."""
    return re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(document: str) -> set[str]:
    """The anchors that GitHub makes of the document's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_lead_to_files_and_headings(document: str) -> None:
    broken = []
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", prose(document)):
        path, _, anchor = link.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        if not file.exists() or (anchor and anchor not in anchors(str(file.resolve().relative_to(ROOT)))):
            broken.append(link)
    assert broken == []


def test_the_index_lists_every_page() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs/index.md").read_text()))
    assert listed == {path.name for path in ROOT.glob("docs/*.md")} - {"index.md"}


def promises() -> list[tuple[str, str]]:
    """Read the rows of the page of promises: the fault, and the tests named for it."""
    rows = re.findall(
        r"^\| (?!fault|---)(.+?) \|.*\| (.+?) \|$", (ROOT / "docs/promises.md").read_text(), flags=re.MULTILINE
    )
    return [(fault, tests) for fault, tests in rows]


@pytest.mark.parametrize(("fault", "tests"), promises())
def test_every_promise_names_tests_that_exist(fault: str, tests: str) -> None:
    """A test is named `tests/ROOM/test_FILE.py::test_name`, or by its file where the whole file shows the promise."""
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`", tests)
    assert named, fault
    for file, test in named:
        text = (ROOT / file).read_text()
        assert not test or re.search(rf"^(?:async )?def {test}\(", text, flags=re.MULTILINE), f"{file}::{test}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documented_imports_exist(document: str) -> None:
    for block in blocks(document, "python"):
        for statement in ast.walk(ast.parse(textwrap.dedent(block))):
            if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("ilis_guard"):
                module = importlib.import_module(statement.module or "")
                assert [name.name for name in statement.names if not hasattr(module, name.name)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documented_names_of_the_package_exist(document: str) -> None:
    """A name of the package is an event or can be imported; `ilis_guard.NAME` alone may be a JSON member."""
    known = {value for name, value in vars(events).items() if name.isupper()}
    names = set(re.findall(r"`(ilis_guard_\w+\.[\w.]+|ilis_guard\.\w+\.[\w.]+)", prose(document)))
    assert [name for name in sorted(names - known) if not is_importable(name)] == []


def is_importable(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documented_commands_and_their_options_exist(document: str) -> None:
    for block in (*blocks(document, "console"), *blocks(document, "sh")):
        for line in block.splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if "ilis-guard " in line else [""]
            if words[0] == "ilis-guard":
                command, arguments = typer.main.get_command(app), words[1:]
                while hasattr(command, "commands"):
                    command, arguments = command.commands[arguments[0]], arguments[1:]
                command.make_context(words[-1], arguments, resilient_parsing=True)


def test_the_documented_figures_of_bundles_are_those_in_the_bundles() -> None:
    from ilis_guard.scoring import read_bundle

    text = (ROOT / "docs/benchmarks.md").read_text()
    for name in ("smollm2-135m-instruct-nf4", "smollm2-135m-instruct-full", "gemma-3-270m-full"):
        metadata = read_bundle(f"packaged:{name}").metadata
        of_prompts = read_bundle(f"packaged:{name}-prompt").metadata.held_out
        for figures in (metadata.held_out, metadata.baseline, of_prompts):
            for figure in (figures.auroc, figures.auroc_within, figures.auprc_wrong, figures.brier):
                assert f"{figure.value:.3f} ({figure.low:.3f}-{figure.high:.3f})" in text


def test_all_columns_of_the_attempts_table_are_documented() -> None:
    from ilis_guard.lab.attempt_schema import COLUMNS

    table = (ROOT / "docs" / "simulation.md").read_text().partition("| --- | --- | --- |\n")[2].partition("\n\n")[0]
    documented = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert documented == COLUMNS.names


def test_the_figures_of_streams_are_those_of_the_benchmark() -> None:
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
    ("document", "output"),
    [
        ("docs/risk-control.md", "answer where uncertainty <= 0.36"),
        ("docs/scoring.md", "None 1 "),
        ("docs/streaming.md", "answer| of| small|\ndecided: answer"),
    ],
)
def test_documented_code_runs(document: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(document, "python")
    exec(block, {})
    assert output in capsys.readouterr().out


def test_the_servers_documented_guard_yaml_is_valid(tmp_path: Path) -> None:
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
    """Read the names in the first column of the table with this heading."""
    table = (ROOT / document).read_text().partition(f"| {heading} |")[2].partition("|\n\n")[0]
    return [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]


def test_every_unsupported_parameter_of_the_server_is_documented() -> None:
    from ilis_guard_server.schemas.requests import UNSUPPORTED, ChatRequest

    documented = set(first_column("docs/openai-server.md", "parameter"))
    assert set(UNSUPPORTED) <= documented
    assert documented - set(UNSUPPORTED) <= set(ChatRequest.model_fields)


def test_every_metric_is_documented() -> None:
    from ilis_guard_server.metrics import Metrics

    metrics = Metrics(in_flight=lambda: 0, waiting=lambda: 0)
    known = set(re.findall(r"^# TYPE (\w+) (?:counter|gauge|histogram)$", metrics.text().decode(), flags=re.MULTILINE))
    # The library adds a `_created` series to each counter.
    known = {name for name in known if not name.endswith("_created")}
    assert set(first_column("docs/openai-server.md", "metric")) == known


def test_every_key_of_the_server_is_documented() -> None:
    from ilis_guard.config.server import KeySettings, ServerSettings

    (block,) = blocks("docs/guard-yaml.md", "yaml")
    shown = block.partition("server:")[2]
    for section in (ServerSettings, KeySettings):
        assert [key for key in section.model_fields if not re.search(rf"\b{key}:", shown)] == []
