"""Draw pictures as SVG elements of an HTML page: in its colours, without anything that must be loaded."""

import io
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

TEXT: Final = "#010203"
"""The placeholder of the page's own text colour."""
SETTINGS: Final[Mapping[Any, Any]] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ilis_guard",  # the same data gives the same page
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
_NAMES: Final = re.compile(r'(?<=\bid=")|(?<=url\(#)|(?<=href="#)')


class SvgRenderer:
    """Renders the pictures of one page, with names that differ between its SVG elements."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def render(self, size: tuple[float, float], alternative: str, draw: Callable[[Figure], None]) -> Markup:
        """Render an ``<svg>`` element; texts in it are escaped.

        Args:
            size: width and height, inches.
            alternative: describes the picture to readers who can't see it.
            draw: draws on the figure.
        """
        with mpl.rc_context(dict(SETTINGS)):
            figure = Figure(figsize=size, layout="constrained")
            draw(figure)
            output = io.StringIO()
            figure.savefig(output, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        svg = output.getvalue()
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
        svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)  # HTML knows them
        svg = _NAMES.sub(f"p{next(self._numbers)}-", svg)
        svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(alternative)}"', 1)
        return Markup(svg.replace(TEXT, "currentColor"))  # noqa: S704 - drawn here; matplotlib escapes texts


def escape_math(text: str) -> str:
    """Escape dollars, between which matplotlib typesets mathematics."""
    return text.replace("$", r"\$")
