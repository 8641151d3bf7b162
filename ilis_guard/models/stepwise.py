"""Stepwise: a call that reports as it goes, turned into an iterator that its consumer may leave at any step."""

from ilis_guard.types import Generation, Step


class Unfolding:
    """An answer that is shown bit by bit: what each step adds to the text."""

    def __init__(self) -> None:
        self._shown = ""

    def step(self, generation: Generation) -> Step:
        """The next step, at a generation as far as it has come."""
        # Half a character decodes to a replacement sign: it is shown once its other half has come.
        text = generation.text if generation.finish_reason else generation.text.rstrip("\ufffd")
        token = text[len(self._shown) :] if text.startswith(self._shown) else ""
        self._shown += token
        return Step(token=token, generation=generation)
