"""Import paths in the operator's settings, ``package.module:name``."""

from importlib import import_module
from typing import Any

from ilis_guard.errors import IlisGuardError, error_text


def import_string(path: str, *, what: str, kind: str, error: type[IlisGuardError]) -> Any:
    """Import what a path names.

    Args:
        path: ``package.module:name``.
        what: the object's role in messages: ``chat model``.
        kind: the kind of Python object in messages: ``Class``.
        error: the class of the error.

    Raises:
        IlisGuardError: as `error`: the path is malformed, names nothing, or its module fails to import.
    """
    module, _, name = path.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise error(f"the path of a {what} reads 'package.module:{kind}', got {path!r}")
    try:
        return getattr(import_module(module), name)
    # The operator's module may raise anything; the message says which module and why.
    except Exception as why:
        raise error(
            f"the {what} {path!r} can't be imported ({type(why).__name__}: {error_text(why)}); is its package "
            "installed, or its module on the PYTHONPATH?"
        ) from why
