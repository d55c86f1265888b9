"""A plot of a run: losses, learning rate and scores."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from bertrt.host.writing import write_bytes

__all__ = ["write_plot"]

# The mean loss of this many parts of the run is drawn over the losses of the steps.
_PARTS = 50


def write_plot(log: Path, out: Path) -> bool:
    """Draw what a log tells; returns whether matplotlib is there to do it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "step" in line]
    epochs = [line for line in lines if "scores" in line]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = np.array([line["step"] for line in steps])
    losses = np.array([line["loss"] for line in steps])
    left.plot(numbers, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    parts = np.array_split(np.arange(len(steps)), min(_PARTS, len(steps)))
    left.plot(
        [numbers[part].mean() for part in parts],
        [losses[part].mean() for part in parts],
        color="tab:blue",
    )
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    rate = left.twinx()
    rate.plot(numbers, [line["learning_rate"] for line in steps], color="tab:gray", linestyle=":")
    rate.set(ylabel="learning rate (dotted)", ylim=(0, None))
    for index, part in enumerate(epochs[0]["scores"]):
        for metric in (name for name in part if name not in ("file", "rows")):
            values = [line["scores"][index][metric] for line in epochs]
            right.plot(
                [line["epoch"] for line in epochs],
                values,
                marker="o",
                label=f"{metric}, {part['file']} ({part['rows']} rows)",
            )
    right.set(xlabel="epoch", xticks=[line["epoch"] for line in epochs])
    right.legend(fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    write_bytes(out, picture.getvalue())
    return True
