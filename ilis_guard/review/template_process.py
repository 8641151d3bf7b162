"""Renders one Jinja template, as the script of a process of its own: `rendering` starts it, and may kill it.

It reads one JSON object from its standard input and writes one to its standard output. It imports nothing of
ilis_guard, so that it starts in a tenth of a second and can do little with what it finds.
"""

import json
import resource
import sys
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment


def render(task: dict[str, Any]) -> dict[str, Any]:
    """Compile the task's template, and render it where there are values; what came of it, as JSON values."""
    # A user's template sees only what it is given, and can't change it.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    try:
        template = environment.from_string(task["source"])
    except TemplateError as error:
        return {"syntax": error.message, "line": getattr(error, "lineno", 1)}
    if task["values"] is None:
        return {}
    parts, size = [], 0
    try:
        for part in template.generate(task["values"]):
            size += len(part.encode(errors="replace"))
            # Nested loops could run for hours.
            if size > 2 * task["max_bytes"]:
                return {"size": size}
            parts.append(part)
    except Exception as error:  # noqa: BLE001 - a template can fail in any way that Python knows
        return {"error": type(error).__name__, "text": str(error)[:1000]}
    return {"body": "".join(parts), "size": size}


def main() -> None:
    """Do one task within the limits that it sets."""
    task = json.load(sys.stdin)
    for kind, limit in ((resource.RLIMIT_AS, task["memory_bytes"]), (resource.RLIMIT_CPU, task["seconds"])):
        resource.setrlimit(kind, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    json.dump(render(task), sys.stdout)


if __name__ == "__main__":
    main()
