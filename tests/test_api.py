"""What is public: the names, the errors, and what importing the package costs."""

import copy
import importlib
import inspect
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ilis_guard
from ilis_guard import errors

ROOT = Path(__file__).parents[1]
PUBLIC = set(re.findall(r"\b\w+ as (\w+)", (ROOT / "ilis_guard" / "__init__.pyi").read_text())) | {"__version__"}
"""The one list."""
USED = {
    *(
        "Action",
        "Attempt",
        "BreakerSettings",
        "Decision",
        "ErrorInfo",
        "Facts",
        "Generation",
        "Guard",
        "Message",
        "Model",
    ),
    *("Policy", "Request", "Retraction", "ReviewQueue", "RuleOutcome", "Ruling", "Score", "Scorer", "Statistics"),
    *("StreamEvent", "StreamMode", "TextDelta", "Ticket", "Tier", "TierCost", "Verdict", "explain_decision"),
}
ALIASES = {"StreamEvent", "StreamMode"}
"""Of several types: Python gives them no name and no docstring of their own."""
HEAVY = ("torch", "transformers", "langchain_core", "lightgbm", "pyarrow", "sklearn", "sqlalchemy", "pydantic")
ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


def imported_by(statement: str, *watched: str) -> set[str]:
    """Which of the watched modules a fresh interpreter has after a statement."""
    script = f"import sys\n{statement}\nprint(*(name for name in {watched!r} if name in sys.modules))"
    child = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )
    return set(child.stdout.split())


def test_public_names_are_those_of_the_stub_and_each_resolves() -> None:
    assert set(vars(ilis_guard)["__all__"]) == PUBLIC
    assert {*USED, *(kind.__name__ for kind in ERRORS)} == PUBLIC - {"__version__"}
    for name in PUBLIC - ALIASES - {"__version__"}:
        assert getattr(ilis_guard, name).__name__ == name
    assert ilis_guard.__version__.count(".") == 2


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Gard"):
        vars(ilis_guard)["__getattr__"]("Gard")
    assert not hasattr(ilis_guard, "Fingerprint")


def test_a_star_import_brings_exactly_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from ilis_guard import *", names)
    assert set(names) - {"__builtins__"} == PUBLIC


@pytest.mark.usefixtures("process")
def test_importing_the_package_imports_nothing_heavy() -> None:
    assert imported_by("import ilis_guard", *HEAVY) == set()
    assert imported_by("from ilis_guard import Message", "torch", "transformers", "langchain_core", "lightgbm") == set()


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    "statement", ["from ilis_guard import Guard", "import ilis_guard.testing", "import ilis_guard.cli"]
)
def test_guards_fakes_and_the_command_line_start_without_models(statement: str) -> None:
    assert imported_by(statement, "torch", "transformers", "langchain_core", "pytest") == set()


@pytest.mark.usefixtures("process")
def test_deciding_modules_import_no_torch() -> None:
    rooms = "ilis_guard.policy, ilis_guard.scoring, ilis_guard.review, ilis_guard.types, ilis_guard.events"
    assert imported_by(f"import {rooms}", "torch", "transformers", "bitsandbytes") == set()


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_keep_message_and_class_through_pickling_and_copying(kind: type[Exception]) -> None:
    error = kind("guard.yaml:1:2: what, got 'x'; what to do")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == "guard.yaml:1:2: what, got 'x'; what to do"
        assert again.args == error.args


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_is_ours_and_has_a_docstring(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.IlisGuardError)
    # A class without a docstring shows its parent's.
    assert (kind.__dict__.get("__doc__") or "").strip().endswith(".")


def test_only_a_transient_error_may_be_retried() -> None:
    retryable = {kind.__name__ for kind in ERRORS if issubclass(kind, errors.IlisGuardError) and kind.is_retryable}
    assert retryable == {"TransientModelError"}


@pytest.mark.parametrize(
    "module",
    [
        "ilis_guard",
        "ilis_guard.models",
        "ilis_guard.policy",
        "ilis_guard.review",
        "ilis_guard.scoring",
        "ilis_guard.testing",
    ],
)
def test_every_exported_thing_has_a_docstring(module: str) -> None:
    room = importlib.import_module(module)
    for name in room.__all__:
        if name != "__version__" and name not in ALIASES:
            assert inspect.getdoc(getattr(room, name)), f"{module}.{name}"
