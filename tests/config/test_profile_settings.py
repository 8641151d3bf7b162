"""guard.yaml, `profile` of a tier: a file that doesn't change, or the last answers."""

from pathlib import Path

import pytest

from ilis_guard.config.guard_yaml import read_config
from ilis_guard.config.tiers import RollingProfileConfig
from ilis_guard.errors import ConfigError

REMOTE = "remote: {chat_model: langchain_openai:ChatOpenAI, arguments: {model: m}}"


def guard_yaml(tmp_path: Path, *tiers: str) -> Path:
    path = tmp_path / "guard.yaml"
    path.write_text("version: 1\npolicy: cold-start\ntiers:\n" + "".join(f"  - {tier}\n" for tier in tiers))
    return path


def tier(profile: str, name: str = "chat", more: str = REMOTE) -> str:
    return f"{{name: {name}, {more}, profile: {profile}}}"


@pytest.mark.parametrize("more", [REMOTE, "model: packaged:smollm2-135m-instruct", f"{REMOTE}, bundle: bundles/chat"])
def test_any_tier_may_have_a_rolling_profile_beside_the_file(more: str, tmp_path: Path) -> None:
    path = guard_yaml(tmp_path, tier("{rolling: 500, file: profiles/chat.db}", more=more))
    profile = read_config(path).tiers[0].profile
    assert profile == RollingProfileConfig(rolling=500, file=str(tmp_path / "profiles" / "chat.db"))


def test_a_bundles_profile_is_a_file_beside_the_file(tmp_path: Path) -> None:
    path = guard_yaml(tmp_path, tier("mine.json", more=f"{REMOTE}, bundle: bundles/chat"))
    assert read_config(path).tiers[0].profile == str(tmp_path / "mine.json")


@pytest.mark.parametrize(
    ("profile", "complaint"),
    [
        ("{rolling: 49, file: a.db}", "greater than or equal to 50, got 49"),
        ("{rolling: 100001, file: a.db}", "less than or equal to 100000"),
        ("{rolling: 5e2, file: a.db}", "valid integer"),
        ("{rolling: true, file: a.db}", "valid integer"),
        ("{rolling: 500}", "the key 'file' is missing"),
        ("{file: a.db}", "the key 'rolling' is missing"),
        ("{rolling: 500, file: ''}", "at least 1 character"),
        ("{rolling: 500, path: a.db}", "unknown key 'path'"),
        ("500", "valid string, got 500"),
        ("[a.json]", "valid string"),
        ("mine.json", "goes with the `bundle`.*write `profile: {rolling: 500, file: profiles/NAME.db}`"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(profile: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"guard\.yaml:4:\d+: .*{complaint}"):
        read_config(guard_yaml(tmp_path, tier(profile)))


def test_two_tiers_dont_share_a_file(tmp_path: Path) -> None:
    rolling = "{rolling: 500, file: a.db}"
    with pytest.raises(
        ConfigError,
        match=r"guard\.yaml:5:\d+: tiers\[1\]\.profile\.file: the tier 'small' has its answers in this file",
    ):
        read_config(guard_yaml(tmp_path, tier(rolling, "small"), tier(rolling, "large")))


def test_a_profile_of_prompts_doesnt_roll(tmp_path: Path) -> None:
    more = "model: packaged:smollm2-135m-instruct, prompt_bundle: packaged:smollm2-135m-instruct-full-prompt"
    given = f"{{name: small, {more}, prompt_profile: {{rolling: 500, file: a.db}}}}"
    with pytest.raises(ConfigError, match="valid string"):
        read_config(guard_yaml(tmp_path, given))
