"""Choose the rows of unlabelled traffic to label next: a random sample of the answers that a bundle can score."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ilis_guard.errors import AttemptsError, FitError
from ilis_guard.lab.adapt import Traffic, scorable
from ilis_guard.lab.attempts import read_attempts
from ilis_guard.lab.files import replacing
from ilis_guard.lab.sampling import draw_rows
from ilis_guard.policy.records import numbered_lines
from ilis_guard.scoring.bundle import Bundle

PROBABILITY: Final = "probability"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenRows:
    """What to label next."""

    places: Sequence[int]
    """Of the chosen decisions, rows or requests in their source, from 0, in the order in which they were drawn: each
    beginning is such a choice, too."""
    probability: float
    """With which each that could be scored was chosen."""
    scored: int
    """How many there were to choose from."""


def choose_rows(bundle: Bundle, traffic: Traffic, count: int) -> ChosenRows:
    """Choose answers to label, each with the same chance: a sample for learning, calibration and certificates alike.

    Args:
        bundle: what scores them.
        traffic: answers of the bundle's model. Those that can't be scored are left out.
        count: so many.

    Raises:
        FitError: there aren't so many, or `count` is no number of rows.
    """
    if count < 1:
        raise FitError(f"rows to label are counted from 1, got {count!r}")
    # A cascade may have asked two tiers of one bundle: a request is chosen once.
    places = sorted({_place(traffic, answer) for answer in scorable(bundle, traffic)})
    if len(places) < count:
        raise FitError(
            f"{count} rows to label were asked for, and {len(places)} of {len(traffic.answers)} answers can be scored: "
            "ask for fewer, or give more traffic"
        )
    drawn = draw_rows(len(places), count)
    return ChosenRows(
        places=[places[row] for row in drawn.tolist()], probability=count / len(places), scored=len(places)
    )


def _place(traffic: Traffic, answer: int) -> int:
    return answer if traffic.places is None else traffic.places[answer]


def write_chosen(chosen: ChosenRows, source: Path, path: Path) -> None:
    """Write the chosen lines as they are in their source, each with its `probability`, in the order of the draw.

    Of a harvest each row's id, dataset and answer are written. A line that was chosen from more before, and has a
    `probability`, gets the product.

    Raises:
        AttemptsError: the source can't be read, or a line's `probability` is none.
        FitError: the file is the source itself, whose other lines would be lost.
        OSError: the file can't be written; an older one stays as it was.
    """
    if path.resolve() == source.resolve():
        raise FitError(
            f"{path}: is the file that rows are chosen from, and its other lines would be lost: name another"
        )
    lines = _rows_of_harvest(source) if source.suffix == ".parquet" else _lines(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        for place in chosen.places:
            line = lines[place]
            weighed = line | {PROBABILITY: line.get(PROBABILITY, 1.0) * chosen.probability}
            file.write(f"{json.dumps(weighed, ensure_ascii=False)}\n".encode())


def _rows_of_harvest(path: Path) -> list[dict[str, Any]]:
    columns = read_attempts(path).table.select(["id", "dataset", "text"])
    rows: list[dict[str, Any]] = columns.to_pylist()
    return rows


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for number, content in numbered_lines(path):
        line: dict[str, Any] = json.loads(content)
        known = line.get(PROBABILITY, 1.0)
        if isinstance(known, bool) or not isinstance(known, (int, float)) or not 0 < known <= 1:
            raise AttemptsError(
                f"{path}:{number}: `{PROBABILITY}` is the chance with which a line was chosen before, above 0 and up "
                f"to 1, got {known!r:.60}; correct it, or take it out"
            )
        lines.append(line)
    return lines
