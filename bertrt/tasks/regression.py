"""Regression: a number for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bertrt.batch import PackedBatch
from bertrt.errors import ModelFormatError
from bertrt.results import Regression
from bertrt.tasks.activations import activate
from bertrt.tasks.base import Request, Task

__all__ = ["Regressor"]


class Regressor(Task):
    """See `bertrt.tasks.base.Task`."""

    outputs = ("logits",)
    what = "this model"

    def __init__(self, pair: bool | None, activation: str) -> None:
        self.pair = pair
        self._activation = activation

    def read(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, requests: Sequence[Request]
    ) -> list[Regression]:
        """See `Task.read`."""
        logits = values["logits"]
        if logits.shape[1] != 1:
            raise ModelFormatError(
                f"a regression model has one output number for each text, not {logits.shape[1]}"
            )
        return [
            Regression(float(activate(self._activation, row)[0]), own.truncated)
            for row, own in zip(logits, requests, strict=True)
        ]
