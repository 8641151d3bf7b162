"""Figures of a comparison in words, the same in the terminal and on a page."""

from ilis_guard.lab.comparison import Change, Estimate, Row


def shown(row: Row, value: Estimate | None) -> str:
    """``61.2 % (59.8 to 62.7)``; a dash where there is none."""
    if value is None:
        return "-"
    scale, unit = (100, " %") if row.is_share else (1, "")
    return f"{_short(scale * value.value)}{unit} ({_short(scale * value.low)} to {_short(scale * value.high)})"


def difference(row: Row) -> str:
    """As `shown`, with signs; of shares in percentage points."""
    value, scale = row.difference, 100 if row.is_share else 1
    if value is None:
        return "-"
    return f"{_signed(scale * value.value)} ({_signed(scale * value.low)} to {_signed(scale * value.high)})"


def wrong(change: Change) -> str:
    """Whether what was answered is wrong, under whichever policy answers."""
    known = [value for value in (change.old_wrong, change.new_wrong) if value is not None]
    return "" if not known else "yes" if any(known) else "no"


def _short(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _signed(value: float) -> str:
    return f"{value:+.1f}" if abs(value) >= 10 else f"{value:+.3g}"
