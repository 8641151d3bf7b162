"""YAML read strictly: what a file says is what it means, and every complaint names file, line and column.

Meant for files that decide something. Refused are duplicate keys (elsewhere the last one silently wins), anchors and
aliases (15 lines can expand to gigabytes), tags, directives, tabs, several documents, infinities and NaN, and
characters that make a line look like another. Plain scalars mean what the YAML 1.2 core schema says: ``no`` is a
string, ``1e-3`` is a number.

Values are built straight from the parser's events. So everything above is refused where it is met, before anything
could be expanded, and every value keeps the place where it stands.
"""

from ilis_guard.config.strict_yaml.reading import MAX_BYTES, Document, Keys, parse, read
from ilis_guard.config.strict_yaml.validating import validated
from ilis_guard.config.strict_yaml.wording import MAX_PROBLEMS, listed, nearest, short

__all__ = ["MAX_BYTES", "MAX_PROBLEMS", "Document", "Keys", "listed", "nearest", "parse", "read", "short", "validated"]
