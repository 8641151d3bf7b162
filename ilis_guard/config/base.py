"""The strict base model, and the types that several sections of guard.yaml share."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from ilis_guard.types.requests import nfc


class StrictModel(BaseModel):
    """A frozen pydantic model that forbids unknown keys and converts no types: a number in quotes is no number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Name = Annotated[str, Field(pattern=r"^\S(?:.*\S)?$", max_length=100), AfterValidator(nfc)]
"""One line of text without spaces around it, as policies name the queues that they escalate to."""


def relative_to_file(resolve: Callable[[str, Path], str]) -> AfterValidator:
    """Make a validator that resolves a value against the folder of the file that is read.

    Args:
        resolve: takes the value and the folder. Models that code builds without a file keep their values.
    """

    def validator(value: str, info: ValidationInfo) -> str:
        return value if info.context is None else resolve(value, info.context)

    return AfterValidator(validator)


def absolute_path(name: str, folder: Path) -> str:
    """Resolve a path against a folder; ``~/`` is the user's home."""
    return str(Path.home() / name[2:] if name.startswith("~/") else folder / name)
