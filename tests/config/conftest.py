from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes guard.yaml."""

    def write_one(text: str) -> Path:
        path = tmp_path / "guard.yaml"
        path.write_text(text, "utf-8")
        return path

    return write_one
