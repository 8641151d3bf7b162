"""The README's picture: the mean signature of right and of wrong answers, and their difference.

python -m benchmarks.picture work/smollm2-135m-instruct-nf4.parquet docs/signature.png
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib import pyplot as plt

from ilis_guard.lab.harvest import read_harvest


def main(rows: Annotated[Path, typer.Argument()], to: Annotated[Path, typer.Argument()]) -> None:
    """Draw three maps of harvested rows: what generating the answer added to the map of the prompt."""
    harvest = read_harvest(rows)
    added = np.asarray(harvest.signatures["mean"] - harvest.signatures["prompt"], dtype=np.float64)
    right, wrong = added[~harvest.wrong].mean(axis=0), added[harvest.wrong].mean(axis=0)
    panels = {
        f"{(~harvest.wrong).sum()} right answers": right,
        f"{harvest.wrong.sum()} wrong answers": wrong,
        "wrong - right": wrong - right,
    }
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        limit = float(np.percentile(np.abs(values), 98))
        image = axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_title(title)
        axis.set_xlabel("layer j")
        axis.set_ylabel("layer i")
        figure.colorbar(image, ax=axis, shrink=0.8, label="nats")
    figure.suptitle("KL(layer i || layer j), mean over the answer's tokens minus the prompt's last token")
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=110)


if __name__ == "__main__":
    typer.run(main)
