"""Early stopping: follow an answer token by token, and stop it where the policy wouldn't give it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from ilis_guard.cascade.stream import AttemptWriter
from ilis_guard.types import Attempt, PromptRuling

CONVINCING: Final = 0.8
"""An unfinished answer's uncertainty counts only from here on, since it is noisy and not calibrated.
`benchmarks.streaming` measures how often answers are stopped that `hold` would have given."""
PATIENCE: Final = 4
"""Tokens in a row at which the policy must rule the answer out before it is stopped."""

MayAnswer = Callable[[Attempt, PromptRuling], bool]
"""Whether the policy may still answer with the attempt so far, after its ruling on the prompt."""


class EarlyStopper:
    """Follows one attempt.

    Args:
        may_answer: None where the policy is in shadow: then nothing is stopped, and everything is written.
        writer: writes the attempt's text; None where it isn't shown.
        convincing: the least uncertainty of an unfinished answer that counts.
        patience: tokens in a row that must rule the answer out before it is stopped.
    """

    def __init__(
        self,
        *,
        may_answer: MayAnswer | None,
        writer: AttemptWriter | None,
        convincing: float = CONVINCING,
        patience: int = PATIENCE,
    ) -> None:
        self._convincing = convincing
        self._patience = patience
        self._may_answer = may_answer
        self._writer = writer
        self._ruled_out = 0

    @property
    def needs_scores(self) -> bool:
        """Whether it needs the score so far."""
        return self._may_answer is not None

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Enclose a call of the model: the text of one that fails is retracted."""
        self._ruled_out = 0
        try:
            yield
        except BaseException:
            if self._writer is not None:
                self._writer.fail()
            raise

    def goes_on(self, so_far: Attempt, prompt: PromptRuling) -> bool:
        """Process a token, and return whether to generate more.

        Without a score so far, nothing is written and nothing is stopped.
        """
        if self._may_answer is not None:
            if so_far.uncertainty is None and so_far.rank is None:
                return True
            if not self._may_answer(self._judged(so_far), prompt):
                self._ruled_out += 1
                return self._ruled_out < self._patience
            self._ruled_out = 0
        if self._writer is not None:
            self._writer.write(so_far.text)
        return True

    def _judged(self, so_far: Attempt) -> Attempt:
        """The attempt with the least uncertainty and rank that it may yet come to, by what its score tells so far."""
        uncertainty, rank = so_far.uncertainty, so_far.rank
        if all(known >= self._convincing for known in (uncertainty, rank) if known is not None):
            return so_far
        return replace(so_far, uncertainty=None if uncertainty is None else 0.0, rank=None if rank is None else 0.0)
