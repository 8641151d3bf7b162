"""What an operator names by its import path, ``package.module:name``."""

from importlib import import_module
from typing import Any

from ilis_guard.errors import IlisGuardError


def imported(path: str, *, what: str, kind: str, error: type[IlisGuardError]) -> Any:
    """Whatever the path leads to.

    Args:
        path: ``package.module:name``.
        what: is looked for, for the messages: ``chat model``.
        kind: of Python's things that is: ``Class``.
        error: is raised where nothing is found.

    Raises:
        IlisGuardError: as `error`: the path isn't one, leads nowhere, or its module fails as it is imported.
    """
    module, _, name = path.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise error(f"the path of a {what} reads 'package.module:{kind}', got {path!r}")
    try:
        return getattr(import_module(module), name)
    # Whatever a module of somebody else's raises: the operator sees which one and why.
    except Exception as why:
        raise error(
            f"the {what} {path!r} can't be imported ({type(why).__name__}: {why}); is its package installed, or its "
            "module on the PYTHONPATH?"
        ) from why
