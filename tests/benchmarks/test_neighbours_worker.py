from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks.neighbours.roster import NeighbourError
from benchmarks.neighbours.worker import Worker

pytestmark = pytest.mark.usefixtures("process")

Start = Callable[[str], Worker]
SLEPT = 0.2
"""Seconds, by the fake worker."""


def test_a_worker_reports_its_versions(start: Start, tmp_path: Path) -> None:
    about = start("good").load(tmp_path, 4)
    assert about.version == metadata.version("pytest")
    assert (about.transformers, about.torch) == (metadata.version("transformers"), metadata.version("torch"))
    assert about.runs == ["scored", "bare"]
    installed = {distribution.name.lower() for distribution in metadata.distributions()}
    assert about.packages == len(installed - {"pip", "setuptools"})


def test_a_worker_runs_requests_whatever_its_library_prints(start: Start, tmp_path: Path, log: Path) -> None:
    worker = start("good")
    worker.load(tmp_path, 4)
    for run in ("scored", "bare", "scored"):
        measured = worker.run(run, "ab")
        assert measured.token_ids == [97, 98, 97, 98]
        assert measured.wall_seconds > 0
    worker.__exit__(None, None, None)
    assert "a library that prints" in log.read_text()


def test_wall_clock_and_processor_time_are_two_things(start: Start, tmp_path: Path) -> None:
    worker = start("sleeps")
    worker.load(tmp_path, 4)
    measured = worker.run("scored", "ab")
    assert measured.wall_seconds >= SLEPT
    assert measured.processor_seconds < measured.wall_seconds


def test_an_error_comes_with_its_first_line_and_the_rest_is_in_the_log(start: Start, tmp_path: Path, log: Path) -> None:
    worker = start("cannot-load")
    with pytest.raises(NeighbourError) as caught:
        worker.load(tmp_path, 4)
    assert str(caught.value) == f"OSError: no weights in {tmp_path.name} (all of it: worker.log)"
    assert worker._process.wait() == 1
    assert "and a second line" in log.read_text()


def test_a_worker_that_dies_is_an_error(start: Start, tmp_path: Path) -> None:
    worker = start("dies")
    worker.load(tmp_path, 4)
    for _ in range(2):  # the second request goes into a closed pipe
        with pytest.raises(NeighbourError, match=r"ended with status 3 \(what it printed: worker.log\)"):
            worker.run("scored", "ab")


@pytest.mark.parametrize("line", ['{"version": 1}', "Segmentation fault"])
def test_an_answer_that_isnt_one_is_an_error(line: str, tmp_path: Path, log: Path) -> None:
    with (
        Worker(["sh", "-c", f"read order; echo '{line}'"], log) as worker,
        pytest.raises(NeighbourError, match=f"its worker's answer isn't one: .*{line}"),
    ):
        worker.load(tmp_path, 4)


def test_leaving_ends_the_process(start: Start, tmp_path: Path) -> None:
    worker = start("good")
    worker.load(tmp_path, 4)
    with worker:
        assert worker._process.poll() is None
    assert worker._process.poll() is not None
