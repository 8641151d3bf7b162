"""An answer followed while it comes: shown as far as the policy would give it, and cut where it wouldn't."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from ilis_guard.cascade.stream import Showing
from ilis_guard.policy import PromptRuling
from ilis_guard.types import Attempt

CONVINCING: Final = 0.8
"""An unfinished answer's uncertainty below this says nothing against it: it isn't calibrated, and noisy. How often
answers are cut that hold would have given, `benchmarks.streaming` measures."""
PATIENCE: Final = 4
"""So many tokens in a row the policy must rule the answer out before it is cut."""

MayAnswer = Callable[[Attempt, PromptRuling], bool]
"""Whether the policy may still answer with the attempt, as far as it has come, after what it said at the prompt."""


class EarlyStopper:
    """Follows one attempt.

    Args:
        may_answer: None where the policy only looks on: then nothing is cut, and everything is shown.
        showing: where it is shown; None where it isn't.
        convincing: the least uncertainty of an unfinished answer that counts.
        patience: so many tokens in a row must rule the answer out before it is cut.
    """

    def __init__(
        self,
        *,
        may_answer: MayAnswer | None,
        showing: Showing | None,
        convincing: float = CONVINCING,
        patience: int = PATIENCE,
    ) -> None:
        self._convincing = convincing
        self._patience = patience
        self._may_answer = may_answer
        self._showing = showing
        self._ruled_out = 0

    @property
    def wants_scores(self) -> bool:
        """Whether it goes by the score so far."""
        return self._may_answer is not None

    @contextmanager
    def following(self) -> Iterator[None]:
        """Around a call of the model: what was shown of one that fails is taken back."""
        self._ruled_out = 0
        try:
            yield
        except Exception:
            if self._showing is not None:
                self._showing.failed()
            raise

    def goes_on(self, so_far: Attempt, prompt: PromptRuling) -> bool:
        """Take note of a token; whether the answer is worth going on with.

        Where there is no score so far, nothing is shown and nothing is cut.
        """
        if self._may_answer is not None:
            if so_far.uncertainty is None:
                return True
            read = so_far if so_far.uncertainty >= self._convincing else replace(so_far, uncertainty=0.0)
            if not self._may_answer(read, prompt):
                self._ruled_out += 1
                return self._ruled_out < self._patience
            self._ruled_out = 0
        if self._showing is not None:
            self._showing.so_far(so_far.text)
        return True
