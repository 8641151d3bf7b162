import importlib.util
import re

import pytest
import typer

from benchmarks.neighbours.__main__ import chosen, main
from benchmarks.neighbours.roster import NEIGHBOURS, ROOT, Environment, Neighbour

CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()


def requirements(environment: Environment) -> list[str]:
    return [line for line in environment.requirements.read_text().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("neighbour", NEIGHBOURS, ids=lambda neighbour: neighbour.name)
def test_an_environment_pins_all_packages_but_torch(neighbour: Neighbour) -> None:
    lines = requirements(neighbour.environment)
    if "-c ../../../constraints.txt" in lines:
        assert ROOT / "constraints.txt" in neighbour.environment.pinned_by
    else:
        assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+-]+", line)] == []
        assert [line for line in lines if line.startswith("torch==")] == []


@pytest.mark.parametrize("neighbour", NEIGHBOURS, ids=lambda neighbour: neighbour.name)
def test_every_worker_is_there(neighbour: Neighbour) -> None:
    dash_m, module, *_ = neighbour.worker
    assert dash_m == "-m"
    assert importlib.util.find_spec(module) is not None


def test_all_are_measured_on_the_transformers_and_torch_that_ci_tests_with() -> None:
    (transformers,) = [line for line in CONSTRAINTS if line.startswith("transformers==")]
    frozen = [neighbour for neighbour in NEIGHBOURS if not neighbour.environment.pinned_by]
    assert {neighbour.environment.name for neighbour in frozen} == {"lm_polygraph", "truthtorchlm"}
    assert all(transformers in requirements(neighbour.environment) for neighbour in frozen)
    assert main.__defaults__ is not None
    assert main.__defaults__[-1] in CONSTRAINTS


def test_neighbours_are_chosen_by_name() -> None:
    assert chosen([]) == list(NEIGHBOURS)
    assert [neighbour.name for neighbour in chosen(["truthtorchlm-inside", "ilis-guard"])] == [
        "ilis-guard",
        "truthtorchlm-inside",
    ]
    with pytest.raises(typer.BadParameter, match=r"no neighbour is called \['iliss'\]; there are \['ilis-guard'"):
        chosen(["iliss"])
