"""What the documents show must work as it stands there."""

import re
from pathlib import Path

import pytest

from ilis_guard import Policy
from ilis_guard.config import read_config
from ilis_guard.policy import Facts

ROOT = Path(__file__).parents[1]
TEMPLATES = ROOT / "adapters" / "ilis_guard_server" / "templates"


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


def test_the_policy_in_the_documentation_is_a_policy() -> None:
    block, _ = blocks("docs/policy.md", "yaml")
    policy = Policy.parse(block)
    assert policy.evaluate(Facts(uncertainty=0.1, shift=0.5)).rule == "sure"
    assert policy.evaluate(Facts(uncertainty=0.9, shift=0.5)).rule == "decline"


def test_the_prompt_rules_in_the_documentation_are_rules() -> None:
    _, block = blocks("docs/policy.md", "yaml")
    policy = Policy.parse("version: 1\nname: routed\n" + block)
    early = policy.evaluate_prompt(Facts(uncertainty=0.95, shift=0.5, last_tier=False)).ruling
    assert early is not None
    assert (early.action.value, early.rule) == ("retry", "too-hard")
    assert policy.evaluate_prompt(Facts(uncertainty=0.5, shift=0.5)).ruling is None
    assert policy.evaluate(Facts(uncertainty=0.1, shift=0.5)).rule == "sure"


def test_the_rules_in_the_readme_are_a_policys() -> None:
    block, _ = blocks("README.md", "yaml")
    policy = Policy.parse("version: 1\nname: readme\n" + block)
    assert policy.evaluate(Facts(uncertainty=0.5, shift=0.5)).to == "support"
    assert policy.evaluate(Facts(uncertainty=0.5, shift=0.5, last_tier=False)).rule == "unsure-so-try-larger"


def test_the_review_settings_in_the_readme_are_ones(tmp_path: Path) -> None:
    _, block = blocks("README.md", "yaml")
    (tmp_path / "guard.yaml").write_text("version: 1\npolicy: default\ntiers: [{name: a, model: a/b}]\n" + block)
    review = read_config(tmp_path / "guard.yaml").review
    assert review is not None
    assert review.page is not None
    assert [receiver.name for receiver in review.receivers] == ["crm"]


def test_the_guard_yaml_in_the_documentation_is_one(tmp_path: Path) -> None:
    (block,) = blocks("docs/guard-yaml.md", "yaml")
    (tmp_path / "guard.yaml").write_text(block)
    config = read_config(tmp_path / "guard.yaml")
    assert [tier.name for tier in config.tiers] == ["small", "remote"]
    (tmp_path / "no-breaker.yaml").write_text(block.replace("{failures: 5, seconds: 30}", "{}"))
    assert read_config(tmp_path / "no-breaker.yaml").tiers[1].breaker == config.tiers[1].breaker


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
    heard = "".join((TEMPLATES / name).read_text() for name in ("base.html", "ticket.html", "standing.html"))
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


def test_the_scored_tables_columns_in_the_documentation_are_all_there_are() -> None:
    from ilis_guard.lab.scored import SCHEMA

    table = (ROOT / "docs" / "simulation.md").read_text().partition("| --- | --- | --- |\n")[2].partition("\n\n")[0]
    documented = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert documented == SCHEMA.names


@pytest.mark.parametrize(
    ("document", "said"), [("docs/risk-control.md", "answer where uncertainty <= 0.40"), ("docs/scoring.md", "None 1 ")]
)
def test_the_code_in_the_documentation_runs(document: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(document, "python")
    exec(block, {})
    assert said in capsys.readouterr().out
