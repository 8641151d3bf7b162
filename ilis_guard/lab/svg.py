"""Pictures as SVG elements that stand in a page: in its colours, without anything that must be fetched."""

import io
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

TEXT: Final = "#010203"
"""Drawn in this colour, shown in the page's own."""
SETTINGS: Final[Mapping[Any, Any]] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ilis_guard",  # the same figures give the same page
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "axes.titlecolor": TEXT,
    "axes.titlesize": 10,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
}
_NAMED: Final = re.compile(r'(?<=\bid=")|(?<=url\(#)|(?<=href="#)')


class Drawer:
    """Draws the pictures of one page: names in one SVG mustn't be those in another."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def draw(self, size: tuple[float, float], alternative: str, paint: Callable[[Figure], None]) -> Markup:
        """An ``<svg>`` element; texts in it are escaped.

        Args:
            size: width and height, inches.
            alternative: what it shows, for those who don't see it.
            paint: paints the figure.
        """
        with mpl.rc_context(dict(SETTINGS)):
            figure = Figure(figsize=size, layout="constrained")
            paint(figure)
            drawn = io.StringIO()
            figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        svg = drawn.getvalue()
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
        svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)  # an HTML page knows them
        svg = _NAMED.sub(f"p{next(self._numbers)}-", svg)
        svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(alternative)}"', 1)
        return Markup(svg.replace(TEXT, "currentColor"))  # noqa: S704 - drawn here; matplotlib escapes texts


def plain(text: str) -> str:
    """As matplotlib shows it: between dollars it sees mathematics."""
    return text.replace("$", r"\$")
