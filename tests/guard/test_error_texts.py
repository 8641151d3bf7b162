"""Errors' texts of many megabytes are cut before anything is done with them."""

import pytest

from ilis_guard.errors import MAX_ERROR_TEXT, ModelError, error_text, log_detail
from ilis_guard.types import ErrorInfo

HUGE = 50_000_000


class Counted(str):
    """A text that counts how often it is written out whole."""

    written = 0

    def __repr__(self) -> str:
        type(self).written += 1
        return super().__repr__()


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (ValueError("x" * HUGE), "xxx"),
        (ModelError("x" * HUGE), "xxx"),
        (ValueError("no", "x" * HUGE), "no, xxx"),
        (ValueError({"body": "x" * HUGE}), "{'body': 'xxx"),
        (ValueError([b"x" * HUGE]), "[b'xxx"),
        (KeyError("x" * HUGE), "xxx"),
        (OSError(5, "x" * HUGE), "5, xxx"),
        (ValueError("\ud800" * HUGE), "\N{REPLACEMENT CHARACTER}"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_huge_text_is_cut(error: Exception, start: str) -> None:
    for text in (error_text(error), ErrorInfo.of(error).detail.removeprefix(f"{type(error).__name__}: ")):
        assert text.startswith(start)
        assert len(text) <= MAX_ERROR_TEXT + len("...")
    assert len(log_detail(error)) < MAX_ERROR_TEXT + 100


def test_a_huge_argument_is_never_written_out() -> None:
    huge = Counted("x" * 10_000)
    for error in (KeyError(huge), ValueError("no", huge), OSError(5, huge)):
        assert "xxx" in error_text(error)
    assert Counted.written == 0


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError(), ""),
        (ValueError("no"), "no"),
        (ValueError("no", 7), "('no', 7)"),
        (KeyError("a"), "'a'"),
        (OSError(2, "No such file", "a.txt"), "[Errno 2] No such file: 'a.txt'"),
        (ValueError({"a": 1}), "{'a': 1}"),
    ],
)
def test_an_everyday_text_stays_as_it_is(error: Exception, text: str) -> None:
    assert error_text(error) == text == str(error)
