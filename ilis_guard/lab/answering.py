"""What a harvest needs of a model, and of what comes back from it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from ilis_guard.errors import FitError, ModelError
from ilis_guard.types import Fingerprint, Generation, Message, RemoteFingerprint


class HarvestedModel(Protocol):
    """A model that answers in batches: a local one, which shows its signatures, or `side_by_side.SideBySide`."""

    @property
    def fingerprint(self) -> Fingerprint | RemoteFingerprint:
        """What its signatures, or the statistics of its answers, are comparable with."""

    @property
    def prompt(self) -> str:
        """The wording around a question."""

    @property
    def max_new_tokens(self) -> int | None:
        """None where its own arguments bound its answers."""

    def generate_batch(self, conversations: Sequence[Sequence[Message]]) -> Sequence[Generation | ModelError]:
        """Answer several conversations; in place of an answer that can't be had stands why."""


def check_told(fingerprint: Fingerprint | RemoteFingerprint, said: Iterable[Generation | ModelError]) -> None:
    """See that a model that can't be tapped tells what is left to score its answers by.

    Args:
        fingerprint: the model's.
        said: a batch of its answers.

    Raises:
        FitError: it told nothing of any.
    """
    answers = [answer for answer in said if not isinstance(answer, ModelError) and answer.text]
    if isinstance(fingerprint, Fingerprint) or not answers:
        return
    if all(answer.statistics is None or math.isnan(answer.statistics.logprob_sum) for answer in answers):
        raise FitError(
            "the model's replies hold no logprobs, and nothing else could score them: set `logprobs: true` among the "
            "tier's `remote.arguments`, or what else the chat model calls it, and `top_logprobs: 2` for the margin"
        )


def check_whole(missing: Mapping[str, ModelError]) -> None:
    """See that all answers came.

    Args:
        missing: by row id, why an answer can't be had.

    Raises:
        ModelError: one can't.
    """
    for first, error in missing.items():
        answers = "1 answer" if len(missing) == 1 else f"{len(missing)} answers"
        raise ModelError(
            f"{answers} couldn't be had, such as that to {first!r:.60} ({type(error).__name__}: {error}). What was "
            "harvested is kept: run it again, and only what is missing is asked for"
        ) from error
