"""Templates: everything in them is escaped, whatever a prompt or an answer contains."""

from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

import jinja2
from fastapi import Request
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse, Response

from ilis_guard import __version__

_STEPS: Final = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def page(
    request: Request, template: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> Response:
    """Render a template into a response."""
    html = _ENVIRONMENT.get_template(template).render(path=request.scope["path"], version=__version__, **values)
    # Lone surrogates have no UTF-8: one prompt with one would end the page for everybody.
    return HTMLResponse(html.encode(errors="backslashreplace"), status_code=status, headers=headers)


def error_page(request: Request, status: int, *, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Render an error for a person."""
    return page(
        request,
        "error.html",
        status=status,
        headers=headers,
        title=HTTPStatus(status).phrase,
        detail=detail or HTTPStatus(status).description,
        request_id=request.state.request_id,
    )


def span(seconds: float) -> str:
    """A length of time in its largest unit: ``3 h``."""
    for size, unit in _STEPS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def relative(at: float, now: float) -> str:
    """A time as seen from now: ``in 3 h`` or ``3 h ago``."""
    return f"in {span(at - now)}" if at > now else f"{span(now - at)} ago"


def date_and_time(at: float) -> str:
    """A time in words: ``3 Jan 2026, 14:05 UTC``."""
    return datetime.fromtimestamp(at, UTC).strftime("%-d %b %Y, %H:%M UTC")


def iso(at: float) -> str:
    """A time in ISO 8601."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def number(value: float, digits: int = 2) -> str:
    """A number with so many digits."""
    return f"{value:.{digits}f}"


def with_code(text: str) -> Markup:
    """A text in which parts between backticks are code; all of it escaped."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part) for index, part in enumerate(parts)
    )


_ENVIRONMENT: Final = jinja2.Environment(
    loader=jinja2.PackageLoader("ilis_guard_server"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "relative": relative,
    "date_and_time": date_and_time,
    "iso": iso,
    "number": number,
    "with_code": with_code,
}
