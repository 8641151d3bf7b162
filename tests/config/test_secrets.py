"""Secrets are read from the place that guard.yaml names, at each use, and are never shown."""

from pathlib import Path

import pytest

from ilis_guard.config.secrets import is_reference, resolve_secret, with_absolute_path
from ilis_guard.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("${SECRET}", True),
        ("${_a1}", True),
        ("file:/run/secrets/ops", True),
        ("file:ops", True),
        ("whsec_abc", False),
        ("$SECRET", False),
        ("${SECRET}x", False),
        ("${1}", False),
        ("${}", False),
        ("file:", False),
        ("", False),
        ("https://example.org", False),
    ],
)
def test_a_reference_names_the_environment_or_a_file(text: str, is_one: bool) -> None:
    assert is_reference(text) is is_one


def test_the_environment_is_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPS", " first\n")
    assert resolve_secret("${OPS}") == "first"
    monkeypatch.setenv("OPS", "second first")
    assert resolve_secret("${OPS}") == "second first"


def test_a_file_is_read_each_time(tmp_path: Path) -> None:
    file = tmp_path / "ops"
    file.write_text("first\n")
    assert resolve_secret(f"file:{file}") == "first"
    file.write_text("second\nfirst\n")
    assert resolve_secret(f"file:{file}") == "second\nfirst"


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_secret_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    monkeypatch.setenv("OPS", content)
    (tmp_path / "ops").write_text(content)
    for reference in ("${OPS}", "${MISSING}", f"file:{tmp_path}/ops"):
        with pytest.raises(ConfigError, match="is empty or isn't there; set it"):
            resolve_secret(reference)


def test_a_file_that_cannot_be_read_is_named_and_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"s3cret\xff")
    for name, why in (("nowhere", "FileNotFoundError"), ("binary", "UnicodeDecodeError"), (".", "IsADirectoryError")):
        with pytest.raises(ConfigError, match=why) as caught:
            resolve_secret(f"file:{tmp_path}/{name}")
        assert "s3cret" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_a_relative_file_starts_at_a_folder(tmp_path: Path) -> None:
    assert with_absolute_path("file:ops", tmp_path) == f"file:{tmp_path}/ops"
    assert with_absolute_path("file:/ops", tmp_path) == "file:/ops"
    assert with_absolute_path("file:~/ops", tmp_path) == f"file:{Path.home()}/ops"
    assert with_absolute_path("${OPS}", tmp_path) == "${OPS}"
    assert with_absolute_path("https://example.org", tmp_path) == "https://example.org"
