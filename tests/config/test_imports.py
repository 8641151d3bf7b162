"""Import paths in configuration."""

import sys
from collections import OrderedDict
from pathlib import Path

import pytest

from ilis_guard.config.imports import import_string
from ilis_guard.errors import ModelError


def test_import_path_resolves_to_its_object() -> None:
    assert import_string("collections:OrderedDict", what="mapping", kind="Class", error=ModelError) is OrderedDict


@pytest.mark.parametrize(
    "path", ["", ":", "collections", "collections:", ":OrderedDict", ".abc:Mapping", "collections:abc.Mapping", "a b:c"]
)
def test_malformed_path_is_refused_with_the_expected_form(path: str) -> None:
    with pytest.raises(ModelError, match=r"the path of a mapping reads 'package\.module:Class', got"):
        import_string(path, what="mapping", kind="Class", error=ModelError)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("def judge(:", "SyntaxError"),
        ("raise LookupError('set KEY')", "LookupError: set KEY"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("", "AttributeError: .* has no attribute 'judge'"),
    ],
)
def test_a_module_that_fails_is_named_with_its_reason(
    module: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_the_operator.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "of_the_operator", raising=False)
    with pytest.raises(ModelError, match=rf"the judge 'of_the_operator:judge' can't be imported \({said}"):
        import_string("of_the_operator:judge", what="judge", kind="function", error=ModelError)
