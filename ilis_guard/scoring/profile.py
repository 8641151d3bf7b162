"""Profiles: the traffic profile that a bundle was adapted to, as one file of JSON, read as untrusted input."""

from bisect import bisect_left
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, ConfigDict, FailFast, Field

from ilis_guard.errors import ProfileError
from ilis_guard.scoring.bundle import Bundle
from ilis_guard.scoring.data_files import DataFileError, describe_problem, parse_json, read_text
from ilis_guard.scoring.traffic import TrafficProfile
from ilis_guard.scoring.typicality import BundlePart
from ilis_guard.types import Wording

MAX_BYTES: Final = 8 * 2**20
"""Larger files are neither read nor written."""
LEAST_ANSWERS: Final = 20
"""Of a profile: with fewer, mean, spread and a share of the traffic are anybody's guess."""


def _ascending(uncertainties: tuple[float, ...]) -> tuple[float, ...]:
    if list(uncertainties) != sorted(uncertainties):
        raise ValueError("uncertainties aren't ascending")
    return uncertainties


class AdaptedProfile(BundlePart):
    """Traffic of a bundle's model that no row has a label of."""

    model_config = ConfigDict(strict=False)  # built from lists, too; files are read strictly

    version: Literal[1] = 1
    bundle: str
    """Digest of the bundle whose columns were measured."""
    model: str
    """The model's name in the bundle, for people."""
    wordings: Annotated[tuple[Wording, ...], FailFast()] = ()
    """The bundle's labelled wordings that requests of this traffic are in. In the others, requests are scored as the
    labelled rows were; those in no labelled wording are always of this traffic."""
    traffic: TrafficProfile
    uncertainties: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1)], ...], FailFast(), AfterValidator(_ascending)
    ] = Field(min_length=LEAST_ANSWERS)
    """Of its answers by the bundle with this profile, ascending."""

    def check_fits(self, bundle: Bundle) -> None:
        """Refuse a bundle that the profile wasn't made with.

        Raises:
            ProfileError: it is another one, or looks at other columns.
        """
        if self.bundle != bundle.digest:
            raise ProfileError(
                f"the profile was made with the bundle {self.bundle!r} of {self.model!r}, and this one is "
                f"{bundle.digest!r} of {bundle.metadata.model!r}: make a profile for it with `ilis-guard adapt`"
            )
        if self.traffic.widths != bundle.traffic.widths:
            raise ProfileError(
                f"the profile has the columns {self.traffic.widths!r}, and its bundle {bundle.digest!r} "
                f"{bundle.traffic.widths!r}: it is damaged; make it again with `ilis-guard adapt`"
            )

    def rank(self, uncertainty: float) -> float:
        """The share of the traffic's answers that are surer than one of this uncertainty, 0 to 1."""
        return bisect_left(self.uncertainties, uncertainty) / len(self.uncertainties)


def read_profile(path: Path) -> AdaptedProfile:
    """Read a profile.

    Raises:
        ProfileError: the file is missing, too large, or no profile. No content of it raises another error.
    """
    try:
        text = read_text(path, max_bytes=MAX_BYTES)
    except DataFileError as error:
        raise ProfileError(f"{error}; make a profile with `ilis-guard adapt`") from error
    try:
        parse_json(text)
        return AdaptedProfile.model_validate_json(text, strict=True)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"no traffic profile: {describe_problem(path, error)}") from None
