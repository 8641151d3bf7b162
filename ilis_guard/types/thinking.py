"""Thinking in a model's text: where it ends, and the answer begins.

Thinking leads: it stands at a text's start between a pair of markers, once or several times, or before a closing
marker whose opening one stood in the prompt. Where thinking isn't closed, there is no answer. Markers further on that
an answer only speaks of (in code, in quotes, in the middle of a sentence, within other markup) are part of the answer;
any others leave it in doubt what is thinking and what is answer, and then there is no answer either.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

Problem = Literal["", "unfinished", "doubtful"]
"""Why a text holds no answer: its thinking isn't closed, or stands where none belongs. Empty where it holds one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPart:
    """Where the answer lies in a model's text, without spaces around it."""

    start: int
    end: int
    problem: Problem = ""
    has_thinking: bool = False
    """Whether any thinking, or a marker of it, was left out."""

    def of(self, text: str) -> str:
        """The answer in that text; empty where there is none."""
        return "" if self.problem else text[self.start : self.end]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Style:
    """How a family of models marks thinking."""

    opening: str
    closing: str
    nests: bool = True
    """Whether an opening marker within thinking wants a closing one of its own."""
    may_open_in_prompt: bool = True
    """Whether a closing marker alone ends thinking."""
    is_prose: bool = False
    """The opening marker is made of plain words: it is one only at a text's start, and where `sure_before` follows or
    the closing one comes."""
    sure_before: re.Pattern[str] = field(default_factory=lambda: re.compile(r"(?!)"))


_TAG_NAMES: Final = (
    "think",
    "thinking",
    "think_fast",
    "think_faster",
    "thought",
    "thoughts",
    "reasoning",
    "scratchpad",
)
_NAMED: Final = rf"(?:[a-z]\w*:)?(?:{'|'.join(_TAG_NAMES)})"
_TAG_NAME: Final = re.compile(rf"{_NAMED}\b")
_STYLES: Final = {
    "tag": _Style(opening=rf"(?i:<\s*{_NAMED}(?:\s[^<>/\n]*)?>)", closing=rf"(?i:<\s*/\s*{_NAMED}\s*>)"),
    "magistral": _Style(opening=r"\[THINK\]", closing=r"\[/THINK\]"),
    "kimi": _Style(opening=r"◁think▷", closing=r"◁/think▷"),
    "cohere": _Style(
        opening=r"(?i:<\|(?:start_|begin_|begin_of_)?(?:think|thinking|thought)\|>)",
        closing=r"(?i:<\|(?:/|end_|end_of_)(?:think|thinking|thought)\|>)",
    ),
    "apertus": _Style(opening=r"<\|inner_prefix\|>", closing=r"<\|inner_suffix\|>"),
    "gemma": _Style(opening=r"<\|channel>\s*thought\b", closing=r"<channel\|>"),
    # Every channel but the final one is thinking, or calls tools.
    "harmony": _Style(
        opening=(
            r"(?:<\|start\|>(?:assistant)?\s*)?<\|channel\|>(?!\s*final\b)[^<]*"
            r"(?:<\|constrain\|>[^<]*)?(?:<\|message\|>)?"
        ),
        closing=(
            r"(?:<\|end\|>\s*)?(?:<\|start\|>(?:assistant)?\s*)?"
            r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
        ),
        nests=False,
    ),
    # Harmony without its special tokens: "analysisThe user asks ...assistantfinalParis".
    "stripped_harmony": _Style(
        opening=r"(?:assistant)?(?:analysis|commentary)",
        closing=r"assistantfinal",
        nests=False,
        is_prose=True,
        sure_before=re.compile(r"[A-Z][\w']*,? +\w"),
    ),
    "granite": _Style(
        opening=r"Here(?:'s| is) my thought process:",
        closing=r"Here(?:'s| is) my response:",
        nests=False,
        may_open_in_prompt=False,
        is_prose=True,
    ),
}
_MARKER: Final = re.compile(
    "|".join(f"(?P<open_{name}>{style.opening})|(?P<close_{name}>{style.closing})" for name, style in _STYLES.items())
)
_CANDIDATE: Final = re.compile(r"[<\[◁]|assistant|analysis|commentary|Here(?=.{2,3} my )")
"""The beginning of every marker."""
_CLOSING: Final = {name: re.compile(style.closing) for name, style in _STYLES.items()}
_OPENED_AT_END: Final = re.compile(
    rf"(?:{'|'.join(style.opening for style in _STYLES.values() if not style.is_prose)})\s*\Z"
)
_UNCLOSED: Final = re.compile(r"<[^>\n]*|\[[^\]\n]*|◁[^▷\n]*")
_OPENINGS: Final = (
    "<|START_RESPONSE|>",
    "<|channel>thought",
    "<|start|>assistant<|channel|>",
    "<|channel|>final<|message|>",
    "assistantanalysis",
    "analysis",
    "commentary",
    "Here is my thought process:",
    "Here's my thought process:",
)
"""Markers of several parts, or of plain words, as models write them: an unfinished text may be the beginning of one."""
_HEADERS: Final = ("<|START_RESPONSE|>", "<|START_TEXT|>", "<|message|>")
_TRAILERS: Final = ("<|END_RESPONSE|>", "<|END_TEXT|>", "<|return|>", "<|end|>")
"""Cohere and Harmony mark answers, too."""
_PARTS: Final = ("<|start|>", "<|channel|>", "<|constrain|>", "<|channel>", *_HEADERS)
"""Special tokens that are part of a marker."""
_BLANK: Final = re.compile(r"[\s\ufeff\u200b-\u200d\u2060\x00]*")
_FENCE: Final = re.compile(r"```|~~~")
_BACKTICKS: Final = re.compile(r"(?<!`)`{1,2}(?!`)")
_OTHER_TAG: Final = re.compile(r"<[A-Za-z!?][^<>]*>")
_WORD_BEFORE: Final = re.compile(r"[\w,;)] +\Z")
_WORD_AFTER: Final = re.compile(r" +[a-z]|[.,;:!?)]")
_NEAR: Final = 40
"""Characters around a marker that may make a sentence of it."""
_QUOTES: Final = frozenset("\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb")


def find_answer(text: str, *, opened_by: str = "", is_partial: bool = False) -> AnswerPart:
    """Find the answer in a model's text.

    Args:
        text: all that the model wrote.
        opened_by: the marker with which the prompt opened the thinking, from `opened_thinking`.
        is_partial: the text goes on: its end may be the beginning of a marker.
    """
    reader = _Reader(opened_by + text)
    problem = reader.read()
    if not problem and is_partial and reader.may_become_thinking():
        problem = "unfinished"
    start, end, has_marks = reader.trimmed()
    if problem:
        end = len(reader.text)
    return AnswerPart(
        start=max(0, (end if problem == "unfinished" else start) - len(opened_by)),
        end=max(0, end - len(opened_by)),
        problem=problem,
        has_thinking=bool(problem) or has_marks or reader.position > 0,
    )


def without_thinking(text: str) -> str:
    """An earlier answer without its thinking, as far as that can be told; a text without thinking stays as it is."""
    part = find_answer(text)
    return text[part.start : part.end] if part.has_thinking else text


def opened_thinking(prompt: str) -> str:
    """The marker at the end of a prompt that opens thinking; empty where there is none."""
    found = _OPENED_AT_END.search(prompt)
    return "" if found is None else found.group()


def may_hold_marker(text: str) -> bool:
    """Whether a marker of thinking stands in a piece of a text."""
    return _MARKER.search(text) is not None


def is_marker(token: str) -> bool:
    """Whether a special token is, or is part of, a marker of thinking, so that decoding mustn't leave it out."""
    return token in _PARTS or _MARKER.fullmatch(token) is not None


@dataclass(frozen=True, slots=True)
class _Marker:
    start: int
    end: int
    name: str
    """Of what it opens or closes: of a tag, the tag's."""
    style: _Style
    opens: bool


class _Reader:
    """Reads a text from marker to marker."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        """Where what follows the thinking so far begins."""
        self._lead = self._after_blanks()
        """As `position`, after blanks."""
        self._depth = 0
        """Of the thinking that is being read; 0 for none."""
        self._thinking = ""
        """What its marker is named."""
        self._spoken_of: Counter[str] = Counter()
        """By name, the opening markers that the answer speaks of and hasn't closed."""

    def read(self) -> Problem:
        """Read all thinking."""
        for marker in self._markers():
            if self._depth:
                self._read_in_thinking(marker)
            elif not marker.opens:
                if self._ends_thinking(marker):
                    self._leave(marker)
            elif marker.start <= self._lead:
                self._depth, self._thinking = 1, marker.name
            elif self._is_spoken_of(marker) or self._is_in_markup(marker):
                self._spoken_of[marker.name] += 1
            else:
                return "doubtful"
        return "unfinished" if self._depth else ""

    def _read_in_thinking(self, marker: _Marker) -> None:
        if marker.name != self._thinking or self._is_quoted(marker):
            return
        if not marker.opens:
            self._depth -= 1
            if not self._depth:
                self._leave(marker)
        elif marker.style.nests and not self._is_in_sentence(marker):
            self._depth += 1

    def _ends_thinking(self, marker: _Marker) -> bool:
        """Whether a closing marker without an opening one ends thinking that the prompt began."""
        if self._spoken_of[marker.name]:
            self._spoken_of[marker.name] -= 1
            return False
        is_leading = marker.start <= self._lead
        return marker.style.may_open_in_prompt and (is_leading or not self._is_spoken_of(marker))

    def _leave(self, marker: _Marker) -> None:
        self.position = marker.end
        self._lead = self._after_blanks()
        self._spoken_of.clear()

    def may_become_thinking(self) -> bool:
        """Whether what follows the thinking so far may be the beginning of an opening marker."""
        rest = self.text[self._lead : self._lead + _NEAR]
        if not rest:
            return bool(self.text.strip())
        if len(rest) < _NEAR and _UNCLOSED.fullmatch(rest):
            return True
        found = _MARKER.match(rest)
        # Plain words open thinking where a closing marker comes.
        is_prose = found is not None and (found.lastgroup or "").startswith("open_")
        return is_prose or any(opening.startswith(rest) for opening in _OPENINGS)

    def trimmed(self) -> tuple[int, int, bool]:
        """Where the answer starts and ends without spaces and marks of its own, and whether it had such marks."""
        text, start, end = self.text, self._after_spaces(self.position), len(self.text)
        while mark := next((each for each in _HEADERS if text.startswith(each, start)), ""):
            start = self._after_spaces(start + len(mark))
        has_marks = start > self._after_spaces(self.position)
        end = max(start, len(text.rstrip()))
        while (has_marks or self.position) and (
            mark := next((each for each in _TRAILERS if text.endswith(each, start, end)), "")
        ):
            end = start + len(text[start : end - len(mark)].rstrip())
        return start, end, has_marks

    def _markers(self) -> Iterator[_Marker]:
        """The markers after `position`, which may move on between two of them."""
        for candidate in _CANDIDATE.finditer(self.text):
            if candidate.start() < self.position or (found := _MARKER.match(self.text, candidate.start())) is None:
                continue
            kind, _, name = (found.lastgroup or "").partition("_")
            style, opens = _STYLES[name], kind == "open"
            if opens and style.is_prose and not self._is_prose_marker(found, name):
                continue
            tag = _TAG_NAME.search(found.group().lower()) if name == "tag" else None
            yield _Marker(found.start(), found.end(), name if tag is None else tag.group(), style, opens)

    def _is_prose_marker(self, found: re.Match[str], name: str) -> bool:
        if found.start() > self._lead:
            return False
        is_sure = _STYLES[name].sure_before.match(self.text, found.end()) is not None
        return is_sure or _CLOSING[name].search(self.text, found.end()) is not None

    def _after_blanks(self) -> int:
        found = _BLANK.match(self.text, self.position)
        assert found is not None, "it matches an empty text too"
        return found.end()

    def _after_spaces(self, start: int) -> int:
        return len(self.text) - len(self.text[start:].lstrip())

    def _is_spoken_of(self, marker: _Marker) -> bool:
        return self._is_in_code(marker) or self._is_quoted(marker) or self._is_in_sentence(marker)

    def _is_in_code(self, marker: _Marker) -> bool:
        """Whether it stands in a fenced block of what follows the thinking."""
        return _count(self._fences, self.position, marker.start) % 2 == 1

    def _is_quoted(self, marker: _Marker) -> bool:
        line = bisect_left(self._line_ends, marker.start)
        start = max(self.position, self._line_ends[line - 1] if line else 0)
        if _count(self._backticks, start, marker.start) % 2 == 1:
            return True
        before = self.text[max(self.position, marker.start - 1) : marker.start]
        after = self.text[marker.end : marker.end + 1]
        # A pair is quoted as a whole.
        return before in _QUOTES and (marker.opens or after in _QUOTES)

    def _is_in_sentence(self, marker: _Marker) -> bool:
        if not _WORD_BEFORE.search(self.text[max(self.position, marker.start - _NEAR) : marker.start]):
            return False
        after = self.text[marker.end : marker.end + _NEAR]
        # An answer may end with the name of a tag; thinking that is closed and followed by nothing is no answer.
        return _WORD_AFTER.match(after) is not None or (marker.opens and not after.strip())

    def _is_in_markup(self, marker: _Marker) -> bool:
        """Whether other tags come before it in what follows the thinking."""
        first = bisect_left(self._tags, self.position)
        return first < len(self._tags) and self._tags[first] < marker.start

    @cached_property
    def _fences(self) -> list[int]:
        return [found.start() for found in _FENCE.finditer(self.text)]

    @cached_property
    def _backticks(self) -> list[int]:
        return [found.start() for found in _BACKTICKS.finditer(self.text)]

    @cached_property
    def _line_ends(self) -> list[int]:
        return [at for at, character in enumerate(self.text) if character == "\n"]

    @cached_property
    def _tags(self) -> list[int]:
        tags = (found for found in _OTHER_TAG.finditer(self.text) if _MARKER.match(found.group()) is None)
        return [found.start() for found in tags]


def _count(places: list[int], start: int, end: int) -> int:
    return bisect_left(places, end) - bisect_left(places, start)
