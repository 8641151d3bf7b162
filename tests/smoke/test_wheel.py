"""What an installed wheel must do. Also run alone, with `python -Im pytest`: so `tests/conftest.py` marks it."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from ilis_guard import Guard, Policy, ReviewQueue
from ilis_guard.review import migrate
from ilis_guard.scoring import LightGBMScorer, read_bundle

GUARD_YAML = """
version: 1
policy: default
tiers:
  - name: small
    model: packaged:smollm2-135m-instruct
    precision: nf4
    prompt: "{question} Answer in a few words only."
    max_new_tokens: 16
    bundle: packaged:smollm2-135m-instruct-nf4
review:
  storage: sqlite:///tickets.db
"""
SHIPPED_POLICIES = (
    "clinical",
    "code-assistant",
    "cold-start",
    "cost-first",
    "customer-support",
    "default",
    "rag-with-context",
    "shadow-roll-out",
)
SHIPPED_BUNDLES = ("smollm2-135m-instruct-nf4", "smollm2-135m-instruct-full", "gemma-3-270m-full")


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, ilis_guard; ilis_guard.Policy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0


def test_wheel_is_typed() -> None:
    assert (resources.files("ilis_guard") / "py.typed").is_file()


@pytest.mark.parametrize("name", SHIPPED_POLICIES)
def test_the_policies_come_along(name: str) -> None:
    assert Policy.load(name).name == name


@pytest.mark.parametrize("name", SHIPPED_BUNDLES)
def test_the_bundles_come_along(name: str) -> None:
    bundle = read_bundle(f"packaged:{name}")
    assert LightGBMScorer(bundle).bundle.metadata.held_out.auroc.value > 0.75


def test_the_queues_migrations_come_along(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tickets.db"
    before, after = migrate(url)
    assert (before, migrate(url)) == (None, (after, after))
    with ReviewQueue(url) as queue:
        assert queue.list() == []


def test_the_page_comes_along_with_its_templates_and_scripts() -> None:
    # Without importing it: the libraries that it needs are an extra.
    found = importlib.util.find_spec("ilis_guard_server")
    assert found is not None
    assert found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0])
    for name in ("templates/ticket.html", "static/page.css", "static/page.js", "static/htmx.min.js"):
        assert (folder / name).is_file(), name


def test_a_guard_from_a_config_decides_on_a_real_4_bit_model(tmp_path: Path) -> None:
    (tmp_path / "guard.yaml").write_text(GUARD_YAML)
    with Guard.from_config(tmp_path / "guard.yaml") as guard:
        decision = guard.decide("What is the capital of Norway?")
    (attempt,) = decision.attempts
    assert "Oslo" in attempt.text
    assert attempt.signature is not None
    assert attempt.signature.shape == (30, 30)
    assert attempt.uncertainty is not None
    assert attempt.error is None
    json.dumps(decision.to_dict(), allow_nan=False)


def test_the_command_line_is_there_and_answers_in_json(tmp_path: Path) -> None:
    (tmp_path / "guard.yaml").write_text(GUARD_YAML)
    program = Path(sys.executable).parent / "ilis-guard"
    completed = subprocess.run(
        [program, "ask", "What is the capital of Norway?", "--json", "--config", tmp_path / "guard.yaml"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert json.loads(completed.stdout)["attempts"][0]["tier"] == "small"
