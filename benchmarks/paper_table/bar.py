"""One progress bar for all of it, measured in questions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ilis_guard.cli.console import err


class WholeBar:
    """A bar over all steps; enter it while they run.

    Args:
        total: the amount of all steps.
    """

    def __init__(self, total: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=err,
        )
        self._task = self._progress.add_task("reading questions", total=total)
        self._done = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def say(self, step: str) -> None:
        """Say what is being done."""
        self._progress.update(self._task, description=step)

    def reach(self, amount: float) -> None:
        """Move to an amount: what came before is done, or wasn't needed."""
        self._done = amount
        self._progress.update(self._task, completed=amount)

    @contextmanager
    def part(self, step: str, amount: int) -> Iterator[Callable[[int, int], None]]:
        """Show a step of an amount. Call the result with how much of it is done, and how much there is."""
        self.say(step)
        start = self._done

        def update(done: int, total: int) -> None:
            self.reach(start + amount * (done / total if total else 1))

        yield update
        self.reach(start + amount)
