"""What a lowered plan is measured on: texts or labelled data, run by the model and its plan."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bertrt.backends.base import load_backend
from bertrt.batch import PackedBatch
from bertrt.engine import Engine
from bertrt.errors import InvalidInputError
from bertrt.evaluation.datasets import read_texts
from bertrt.evaluation.examples import Examples
from bertrt.evaluation.metrics import check_metrics, metrics_of
from bertrt.evaluation.receipt import Cost
from bertrt.evaluation.run import Outcome, compare, read_data, run_examples
from bertrt.host.cores import usable_cores
from bertrt.models.model import Model
from bertrt.plan.plan import Plan
from bertrt.tasks.settings import PRESETS

__all__ = ["Calibration", "engine_of"]

# A step's own error orders the steps and is no bound: this many examples tell it well enough.
_SAMPLED = 256
# Sequences that run at once where activations are looked at.
_AT_ONCE = 32


class Calibration:
    """The data, and what fp32 makes of them on the device."""

    def __init__(
        self,
        model: Model,
        path: str | os.PathLike[str],
        task: str | None,
        columns: Sequence[str] | None,
        labelled: bool,
        threads: int | None,
        device: str = "cpu",
    ) -> None:
        self.model = model
        self.device = device
        self.provider: str | None = None  # of another device than the CPU
        self.threads = usable_cores() if threads is None else threads
        self.task: str | None = None
        self.metrics: tuple[str, ...] = ()
        self.labels: Sequence[str] | None = model.labels
        self.examples: Examples
        if labelled:
            self.task = model.task if task is None else task
            self.examples = read_data(model, path, task=self.task, columns=columns)
            assert self.task is not None
            self.metrics = metrics_of(self.task)
            if self.task in PRESETS:
                self.labels = PRESETS[self.task].labels
            check_metrics(self.metrics, self.labels)
        else:
            if model.task is None or model.tokenizer is None:
                raise InvalidInputError(
                    f"{model.path} has no task or no tokenizer, so that texts cannot be run"
                )
            self.examples = read_texts(path, model.task)
        count = len(self.examples)
        chosen = np.unique(np.linspace(0, count - 1, min(count, _SAMPLED)).round().astype(int))
        self.sample = self.examples.take(chosen.tolist())
        self.reference, self.before = self.run(model.plan(), self.examples)
        self.sampled = dataclasses.replace(
            self.reference,
            predictions=[self.reference.predictions[i] for i in chosen],
            outputs=[self.reference.outputs[i] for i in chosen],
        )

    def engine(self, plan: Plan) -> Engine:
        """The model with another plan."""
        engine = engine_of(self.model.with_plan(plan), self.threads, self.device)
        if self.device != "cpu":
            self.provider = engine.provider
        return engine

    def batches(self) -> Iterator[PackedBatch]:
        """The sample, as an engine takes it."""
        with self.engine(self.model.plan()) as engine:
            found = engine.tokenize(self.sample.texts)
        # Of a text in windows, a list of them.
        encodings = [own for item in found for own in (item if isinstance(item, list) else [item])]
        typed = self.model.limits.type_vocab_size > 0
        for begin in range(0, len(encodings), _AT_ONCE):
            some = encodings[begin : begin + _AT_ONCE]
            yield PackedBatch.from_sequences(
                [own.ids for own in some],
                [own.types if typed else own.types * 0 for own in some],
                None,
            )

    def run(self, plan: Plan, examples: Examples) -> tuple[Outcome, dict[str, float]]:
        """What a plan makes of examples, and its scores."""
        with self.engine(plan) as engine:
            outcome = run_examples(engine, examples)
            if not self.metrics or examples is not self.examples:
                return outcome, {}
            row = compare(engine, examples, self.metrics, self.labels, outcome, outcome)
        return outcome, row.scores

    def cost(self, plan: Plan) -> Cost:
        """What a plan costs on all of the data."""
        with self.engine(plan) as engine:
            outcome = run_examples(engine, self.examples)
            rms, largest = _difference(outcome, self.reference)
            if not self.metrics:
                return Cost({}, None, None, rms, largest)
            row = compare(engine, self.examples, self.metrics, self.labels, outcome, self.reference)
        return Cost(row.scores, row.lost, row.gained, rms, largest)

    def error(self, plan: Plan) -> tuple[float, float]:
        """The error that a plan brings into the logits, on the sample."""
        return _difference(self.run(plan, self.sample)[0], self.sampled)


def _difference(found: Outcome, expected: Outcome) -> tuple[float, float]:
    """Root mean square and largest of the differences between all numbers; infinite where one is
    not finite."""
    squares, largest, count = 0.0, 0.0, 0
    for own, other in zip(found.outputs, expected.outputs, strict=True):
        for array, reference in zip(own, other, strict=True):
            difference = np.abs(array.astype(np.float64) - reference)
            if not np.isfinite(difference).all():
                return math.inf, math.inf
            squares += float(np.square(difference).sum())
            largest = max(largest, float(difference.max(initial=0.0)))
            count += difference.size
    return math.sqrt(squares / count), largest


def engine_of(model: Model, threads: int, device: str) -> Engine:
    """The native engine of a model as it is, in its own precision."""
    options: dict[str, Any] = {"device": device, "precision": model.precision, "threads": threads}
    load = functools.partial(load_backend, model, "native", **options)
    return Engine(model, load, {"path": str(model.path), "backend": "native", **options})
