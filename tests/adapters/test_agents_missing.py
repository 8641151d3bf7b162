"""Without the extra `agents`, what needs no agents works, and what needs them says so."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Missing())
import ilis_guard_langchain
from ilis_guard_langchain import GuardRunnable
from ilis_guard.errors import MissingDependencyError
from ilis_guard.testing import fake_guard
assert GuardRunnable(fake_guard("default", {{"small": 0.1}})).invoke("Who?").action == "answer"
for name in ("IlisGuardMiddleware", "thread_of"):
    try:
        getattr(ilis_guard_langchain, name)
    except MissingDependencyError as error:
        print(error)
"""


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("module", ["langchain", "langgraph"])
def test_the_package_works_without_agents_and_names_the_extra(module: str) -> None:
    command = [sys.executable, "-c", WITHOUT.format(module=module)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(said) == 2
    for line, name in zip(said, ("IlisGuardMiddleware", "thread_of"), strict=True):
        assert line.startswith(f"{name} needs LangChain's agents and LangGraph (No module named '{module}")
        assert line.endswith("pip install 'ilis-guard[agents]'")


def test_an_unknown_name_is_no_attribute() -> None:
    import ilis_guard_langchain

    with pytest.raises(AttributeError, match="has no attribute 'IlisGuardMiddelware'"):
        _ = ilis_guard_langchain.IlisGuardMiddelware
