"""Conversations for base models, which have no chat template: earlier turns become further worked examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from ilis_guard.config.tiers import QUESTION
from ilis_guard.types import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnPattern:
    """The text around a question and its answer."""

    opening: str
    """Before a question."""
    closing: str
    """Between a question and its answer."""
    separator: str
    """After an answer."""

    @classmethod
    def of(cls, prompt: str) -> Self | None:
        """Find how a tier's prompt puts a question: the beginning of its line (or the heading above it), and the end.

        Args:
            prompt: holds `QUESTION` once.

        Returns:
            None where nothing stands before or after the question that could mark another one.
        """
        before, closing = prompt.split(QUESTION)
        start = before.rstrip().rfind("\n") + 1
        opening, examples = before[start:], before[:start]
        mark = closing.strip()
        if not opening.strip() or not mark or mark in opening:
            return None
        # A line of its own above the question is a heading if it stands above the examples' questions too. Without
        # examples it can't be the end of one, unless an empty line follows it.
        is_repeated = examples.startswith(opening) or f"\n{opening}" in examples
        if "\n" in opening and not is_repeated and (mark in examples or "\n\n" in opening):
            return None
        gap = examples[len(examples.rstrip()) :]
        return cls(opening=opening, closing=closing, separator=gap if examples.strip() else PLAIN.separator)

    def render(self, turns: Sequence[Message]) -> str:
        """Render turns of user and assistant as worked examples."""
        pieces: list[str] = []
        is_open = False
        for turn in turns:
            if turn.role == "user":
                pieces += [self.separator if is_open else "", self.opening, turn.content]
            else:
                closing = self.closing if is_open else self.closing.lstrip()
                gap = "" if closing[-1:].isspace() or turn.content[:1].isspace() else " "
                pieces += [closing, gap, turn.content, self.separator]
            is_open = turn.role == "user"
        return "".join([*pieces, self.separator if is_open else ""])


PLAIN: Final = TurnPattern(opening="User: ", closing="\nAssistant:", separator="\n\n")
"""How earlier turns read where a prompt shows no pattern of its own."""


def render_few_shot(prompt: str, messages: Sequence[Message]) -> str:
    """Render the text that a base model continues.

    System messages come first, a paragraph each; then the prompt, with the turns before the last between its examples
    and its question, in the pattern of these. Where it has no `TurnPattern`, they stand before all of it, as `PLAIN`.

    Args:
        prompt: the tier's.
        messages: the last turn is the user's.
    """
    *earlier, last = messages
    instructions = "".join(f"{turn.content}\n\n" for turn in earlier if turn.role == "system")
    turns = [turn for turn in earlier if turn.role != "system"]
    before, after = prompt.split(QUESTION)
    pattern = TurnPattern.of(prompt)
    if pattern is None:
        examples, history, opening = "", PLAIN.render(turns), before
    else:
        examples, history, opening = before.removesuffix(pattern.opening), pattern.render(turns), pattern.opening
    return "".join([instructions, examples, history, opening, last.content, after])
