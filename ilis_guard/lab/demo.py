"""The demonstration: ten questions, easy to impossible, through a small 4-bit model and a larger one."""

import shutil
from importlib import resources
from pathlib import Path
from typing import Final

from ilis_guard.policy.loader import locate
from ilis_guard.policy.schema import JSON_SCHEMA_FILE, with_local_schema

QUESTIONS: Final = (
    "What is the capital of France?",
    "What is the capital of Norway?",
    "Which chemical element has the symbol He?",
    "In which country is the city of Hamburg?",
    "What is the capital of Kyrgyzstan?",
    "On which continent is Mongolia?",
    "What is 7 times 8?",
    "Who wrote Don Quixote?",
    "What is 48 times 67?",
    "Who will win the football World Cup in 2042?",
)


def prepare(folder: Path) -> Path:
    """Put ``guard.yaml`` and its policy into a folder, for reading and changing; files already there are kept.

    Returns:
        The path of ``guard.yaml``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, policy = folder / "guard.yaml", folder / "policy.yaml"
    if not config.exists():
        with resources.as_file(resources.files("ilis_guard.lab") / "demo.yaml") as shipped:
            shutil.copyfile(shipped, config)
    if not policy.exists():
        # With what an editor completes it by beside it.
        shutil.copyfile(JSON_SCHEMA_FILE, folder / JSON_SCHEMA_FILE.name)
        policy.write_text(with_local_schema(locate("default").read_text("utf-8")), "utf-8")
    return config
