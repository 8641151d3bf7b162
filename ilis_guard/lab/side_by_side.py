"""Harvesting a model behind a network: several questions at once, each as a guard would ask it."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ilis_guard.cascade.caller import ModelCaller
from ilis_guard.config.tiers import QUESTION
from ilis_guard.errors import ModelError
from ilis_guard.models.remote import RemoteModel
from ilis_guard.types import Generation, Message, RemoteFingerprint


class SideBySide:
    """A remote model that is asked a batch of questions at once.

    Args:
        model: asked each question as it is.
        caller: of its tier: repeats what failed in passing.
        max_concurrent: so many calls are under way at once, and no other is begun; None for a whole batch.
    """

    prompt = QUESTION
    max_new_tokens = None

    def __init__(self, model: RemoteModel, caller: ModelCaller, *, max_concurrent: int | None) -> None:
        self._model = model
        self._caller = caller
        self._max_concurrent = max_concurrent

    @property
    def fingerprint(self) -> RemoteFingerprint:
        """The model's."""
        return self._model.fingerprint

    def generate_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Generation | ModelError]:
        """Ask them all; what one fails with keeps none of the others from being asked."""
        most = min(len(conversations), self._max_concurrent or len(conversations))
        # Whoever interrupts this waits for what is under way, and pays for no more than that.
        with ThreadPoolExecutor(max_workers=most) as pool:
            return list(pool.map(self._answer, conversations))

    def _answer(self, turns: Sequence[Message]) -> Generation | ModelError:
        try:
            return self._caller.call(partial(self._model.generate, turns))
        except ModelError as error:
            return error
