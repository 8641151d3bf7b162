"""Draw the README's picture: the mean signatures of right and of wrong answers, and their difference.

python -m benchmarks.picture harvests/smollm2-135m-instruct-nf4.parquet docs/signature.png
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib import pyplot as plt

from ilis_guard.lab.attempts import read_attempts


def main(rows: Annotated[Path, typer.Argument()], to: Annotated[Path, typer.Argument()]) -> None:
    """Draw the mean maps of right and of wrong answers, and their difference in standard deviations (Cohen's d)."""
    harvest = read_attempts(rows).answers()
    maps = np.log1p(harvest.signatures["mean"], dtype=np.float64)
    right, wrong = maps[~harvest.wrong], maps[harvest.wrong]
    spread = np.sqrt((right.var(axis=0) + wrong.var(axis=0)) / 2)
    np.fill_diagonal(spread, 1.0)
    effect = (wrong.mean(axis=0) - right.mean(axis=0)) / spread
    top, strongest = float(np.percentile(maps, 99)), float(np.abs(effect).max())
    panels = (
        (f"{len(right)} right answers", right.mean(axis=0), "viridis", (0.0, top), "log(1 + nats)"),
        (f"{len(wrong)} wrong answers", wrong.mean(axis=0), "viridis", (0.0, top), "log(1 + nats)"),
        ("wrong against right", effect, "RdBu_r", (-strongest, strongest), "standard deviations"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, (title, values, colours, (low, high), unit) in zip(axes, panels, strict=True):
        image = axis.imshow(values, cmap=colours, vmin=low, vmax=high)
        axis.set_title(title)
        axis.set_xlabel("layer j")
        axis.set_ylabel("layer i")
        figure.colorbar(image, ax=axis, shrink=0.85, label=unit)
    figure.suptitle("KL(layer i || layer j), mean over an answer's tokens")
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=110)


if __name__ == "__main__":
    typer.run(main)
