"""Draw the architecture: the layers of the import contract, and in each its packages with their modules.

    python -m benchmarks.architecture     # writes docs/architecture.svg

The layers come from pyproject.toml, where import-linter enforces them, so the picture shows what is held.
"""

import ast
import tomllib
from pathlib import Path
from typing import Final

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch

ROOT: Final = Path(__file__).parents[1]
PICTURE: Final = ROOT / "docs" / "architecture.svg"
ADAPTERS: Final = ("ilis_guard_langchain", "ilis_guard_server")
WIDTH: Final = 10.0
HEIGHT: Final = 0.8


def layers() -> list[list[str]]:
    """Packages by layer, the highest first: what a layer imports lies below it."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (found,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [list(ADAPTERS), *([name.strip() for name in layer.split("|")] for layer in found)]


def summary(package: str) -> tuple[int, str]:
    """A package's number of modules, and the first line of its docstring."""
    base = ROOT / "adapters" if package in ADAPTERS else ROOT
    path = base / package.replace(".", "/")
    init = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    modules = len(list(path.rglob("*.py"))) if path.is_dir() else 1
    docstring = ast.get_docstring(ast.parse(init.read_text())) or ""
    return modules, docstring.partition("\n")[0]


def draw() -> None:
    """Write the picture."""
    mpl.rcParams |= {"svg.hashsalt": "architecture", "svg.fonttype": "none"}  # equal input, equal file, and a small one
    found = layers()
    figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT * len(found)))
    for row, packages in enumerate(found):
        width = WIDTH / len(packages)
        for column, package in enumerate(packages):
            modules, text = summary(package)
            left, bottom = column * width, (len(found) - row - 1) * HEIGHT
            box = FancyBboxPatch(
                (left + 0.06, bottom + 0.06),
                width - 0.12,
                HEIGHT - 0.12,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor="#eef3fb" if row else "#fdf3e4",
                edgecolor="#4a6fa5",
            )
            axes.add_patch(box)
            name = package.removeprefix("ilis_guard.")
            count = "1 module" if modules == 1 else f"{modules} modules"
            head = f"{name}  ({count})"
            axes.text(left + 0.18, bottom + HEIGHT * 0.64, head, fontsize=10, weight="bold", va="center")
            room = int((width - 0.3) * 13)
            brief = text if len(text) <= room else f"{text[: room - 1].rstrip()}…"
            axes.text(left + 0.18, bottom + HEIGHT * 0.3, brief, fontsize=7.5, va="center", color="#333333")
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(0, HEIGHT * len(found))
    axes.axis("off")
    figure.savefig(PICTURE, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    draw()
