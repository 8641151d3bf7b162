"""Stop sequences: where an answer ends before one, and what of it may still become one."""

from collections.abc import Sequence


def before_stop(text: str, stop: Sequence[str]) -> str | None:
    """A text up to the first stop sequence in it; None where there is none."""
    places = [place for sequence in stop if (place := text.find(sequence)) >= 0]
    return text[: min(places)] if places else None


def held_back(text: str, stop: Sequence[str]) -> str:
    """A text as far as it may be shown: without an end with which a stop sequence begins."""
    begun = [
        length
        for sequence in stop
        for length in range(1, min(len(sequence), len(text) + 1))
        if text.endswith(sequence[:length])
    ]
    return text[: len(text) - max(begun, default=0)]
