"""Evaluation: what a model scores on labelled data, and what each backend and precision changes.

Every backend and precision is held against Gluon in fp32, which is the mxnet backend on the
bundle's own symbolic graph; where that cannot be had, against the native engine in fp32. A bundle
that is quantised has neither; it is held against itself, or the bundle that it was made from.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.backends.base import BACKENDS, has_graph
from bertrt.engine import Engine
from bertrt.errors import DeviceError, InvalidInputError, MissingDependencyError
from bertrt.evaluation.datasets import read_examples
from bertrt.evaluation.examples import Examples
from bertrt.evaluation.metrics import check_metrics, is_right, metrics_of, score
from bertrt.evaluation.verify import bound
from bertrt.host.cores import usable_cores
from bertrt.host.machine import cpu_name
from bertrt.host.progress import progress
from bertrt.models.model import Model
from bertrt.tasks.settings import PRESETS
from bertrt.version import __version__

__all__ = [
    "PRECISIONS",
    "Outcome",
    "Report",
    "Row",
    "compare",
    "evaluate",
    "read_data",
    "run_examples",
]

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8")

# Examples given to an engine at once. Outputs over tokens are large, and only what is compared is
# kept of them; a backend that pads sorts those that it is given by length.
_AT_ONCE = 256


@dataclass(frozen=True)
class Outcome:
    """What an engine made of examples.

    Attributes:
        predictions: for each example a label, a number, the text of an answer, or a list of tags.
        outputs: for each the rows of the output that the task reads, as
            `Engine.predict_with_outputs` gives them.
        seconds: what predicting took, tokenization included.
    """

    predictions: list[Any]
    outputs: list[list[np.ndarray]]
    seconds: float

    @property
    def seqs_per_second(self) -> float:
        """Sequences per second; a long context is several."""
        return sum(map(len, self.outputs)) / self.seconds


@dataclass(frozen=True)
class Row:
    """A backend in a precision.

    Attributes:
        backend, provider, device, precision, threads: what it is.
        scores: points by metric, 100 for perfect; NaN where a metric is not defined.
        right: how many examples are right, as `bertrt.evaluation.metrics.is_right` has it; None for
            regression.
        differ: in how many examples the prediction is not the reference's. Numbers of a regression
            differ where they do so by more than the bound of `bertrt verify` in fp32.
        lost: how many the reference has right and this one wrong; None for regression.
        gained: how many the reference has wrong and this one right; None for regression.
        largest, mean: of the absolute differences between all logits and the reference's; infinite
            where a logit is not finite.
        seqs_per_second: measured in passing; `bertrt bench` measures with care.
    """

    backend: str
    provider: str
    device: str
    precision: str
    threads: int
    scores: dict[str, float]
    right: int | None
    differ: int
    lost: int | None
    gained: int | None
    largest: float
    mean: float
    seqs_per_second: float


@dataclass(frozen=True)
class Report:
    """What `evaluate` found. ``str(report)`` is a table for people.

    Attributes:
        path: the model.
        task: as it was asked for.
        data: the file.
        sha256: of the file.
        examples: how many there are.
        left_out: rows of the file that the task's rules leave out.
        reference: the model that the first row is of, with which the others are compared; `path`
            unless another was named.
        rows: the reference, then the others as asked for.
        missing: why a backend or precision has no row, by its name.
        cpu: the machine's.
    """

    path: Path
    task: str
    data: Path
    sha256: str
    examples: int
    left_out: int
    reference: Path
    rows: tuple[Row, ...]
    missing: Mapping[str, str]
    cpu: str

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON; a number that is not finite is None. Model and data
        have their names without the directories, in which another machine has something else."""
        return {
            "model": self.path.name,
            "task": self.task,
            "data": {
                "file": self.data.name,
                "sha256": self.sha256,
                "examples": self.examples,
                "left_out": self.left_out,
            },
            "reference": self.reference.name,
            "rows": [_finite(vars(row)) for row in self.rows],
            "missing": dict(self.missing),
            "machine": {"cpu": self.cpu},
            "bertrt": __version__,
        }

    def __str__(self) -> str:
        metrics = list(self.rows[0].scores)
        table = [
            (
                *("backend", "precision", *(name.replace("_", " ") for name in metrics)),
                *("differ", "lost", "gained", "logits: largest", "mean", "seqs/s"),
            )
        ]
        for row in self.rows:
            table.append(
                (
                    row.backend,
                    row.precision,
                    *(f"{row.scores[name]:.2f}" for name in metrics),
                    *("-" if n is None else str(n) for n in (row.differ, row.lost, row.gained)),
                    f"{row.largest:.1e}",
                    f"{row.mean:.1e}",
                    f"{row.seqs_per_second:,.{0 if row.seqs_per_second >= 10 else 1}f}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        left = f" ({self.left_out} rows left out)" if self.left_out else ""
        lines = [f"{self.task}: {self.examples} examples of {self.data.name}{left}"]
        for cells in table:
            texts = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
            numbers = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
            lines.append("  ".join([*texts, *numbers]))
        first = self.rows[0]
        name = "Gluon" if first.backend == "mxnet" else first.backend
        other = "" if self.reference == self.path else f" on {self.reference.name}"
        lines.append(
            f"differ, lost, gained and logits: against the first row, {name} in {first.precision}"
            f"{other}"
        )
        lines += [f"{name}: left out: {why}" for name, why in self.missing.items()]
        return "\n".join(lines)


def evaluate(
    path: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    task: str | None = None,
    columns: Sequence[str] | None = None,
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    reference: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> Report:
    """Score a model on labelled data, by backend and precision.

    Args:
        path: a bundle, or a Hugging Face directory.
        data, task, columns: as for `read_data`.
        backends: which; None: all that are installed and can run the model.
        precisions: which; None: all that each backend has. What a backend does not have is left
            out, and named in the report.
        reference: a model to compare with, as a quantised bundle is with the one it was made from;
            None: `path` itself.
        device: as for `Engine.load`. The reference always runs on the CPU.
        threads: as for `Engine.load`.

    Raises:
        InvalidInputError: there is no such backend or precision; `reference` is for another task or
            has other labels; what `read_data` raises; or an example that a model cannot take, such
            as a sentence that is too long to be tagged; the message has its place in the file.
        MissingDependencyError: a metric's library, or a backend that was asked for by its name, is
            not installed.
        DeviceError: nothing that was asked for can run on the device.
        MissingFileError, ModelFormatError: the model is missing or broken.
    """
    for what, names, known in (
        ("backend", backends, tuple(BACKENDS)),
        ("precision", precisions, PRECISIONS),
    ):
        for name in names or ():
            if name not in known:
                raise InvalidInputError(
                    f"{what} {name!r} does not exist; expected one of {', '.join(known)}"
                )
    model = Model.open(path)
    compared = model if reference is None else Model.open(reference)
    if (compared.task, compared.labels) != (model.task, model.labels):
        raise InvalidInputError(
            f"{compared.path} is for {compared.task}, labels {compared.labels}; {model.path} is "
            f"for {model.task}, labels {model.labels}: they cannot be compared"
        )
    task = model.task if task is None else task
    examples = read_data(model, data, task=task, columns=columns)
    assert task is not None
    metrics = metrics_of(task)
    labels = PRESETS[task].labels if task in PRESETS else model.labels
    check_metrics(metrics, labels)
    threads = usable_cores() if threads is None else threads

    def row(
        model: Model, backend: str, device: str, precision: str, expected: Outcome | None
    ) -> tuple[Row, Outcome]:
        with Engine.load(model.path, backend, device, precision, threads) as engine:
            found = run_examples(engine, examples, f"{backend} {precision}")
            other = found if expected is None else expected
            return compare(engine, examples, metrics, labels, found, other), found

    asked = [
        (backend, precision)
        for backend in backends or [name for name in BACKENDS if has_graph(model, name)]
        for precision in precisions or PRECISIONS
    ]
    # What cannot run is known before anything does.
    missing: dict[str, str] = {}
    chosen = []
    for backend, precision in dict.fromkeys(asked):
        try:
            Engine.load(model.path, backend, device, precision, threads).close()
            chosen.append((backend, precision))
        except MissingDependencyError as error:
            if backends is not None:
                raise
            missing[backend] = str(error)
        except DeviceError as error:
            missing[f"{backend} {precision}"] = str(error)
    if not chosen:
        raise DeviceError("; ".join(missing.values()))
    if precisions is None:
        # Of what was not asked for by name nobody expects a row.
        missing = {name: why for name, why in missing.items() if name in BACKENDS}
    backend, precision = _reference(compared, threads, missing)
    where = device if precision == "fp8" else "cpu"  # which has none
    first, expected = row(compared, backend, where, precision, None)
    rows = [first]
    if compared is model and device == where:
        chosen = [own for own in chosen if own != (backend, precision)]
    rows += [row(model, own[0], device, own[1], expected)[0] for own in chosen]
    return Report(
        path=model.path,
        task=task,
        data=examples.path,
        sha256=examples.sha256,
        examples=len(examples),
        left_out=examples.left_out,
        reference=compared.path,
        rows=tuple(rows),
        missing=missing,
        cpu=cpu_name(),
    )


def _reference(model: Model, threads: int, missing: dict[str, str]) -> tuple[str, str]:
    """The backend and precision that the others are compared with."""
    if model.symbol_path is not None:
        try:
            Engine.load(model.path, "mxnet", "cpu", "fp32", threads).close()
            return "mxnet", "fp32"
        except MissingDependencyError as error:
            missing["mxnet"] = str(error)
    return "native", model.precision


def read_data(
    model: Model,
    data: str | os.PathLike[str],
    *,
    task: str | None = None,
    columns: Sequence[str] | None = None,
) -> Examples:
    """Read labelled data for a model: its labels are those that there are.

    Args:
        model: what it is for.
        data, columns: as for `bertrt.evaluation.datasets.read_examples`.
        task: a preset of the model's task ("MRPC", ...), or its task; None: the latter.

    Raises:
        InvalidInputError: the model has no task, one that labelled data are not read for, or
            another one than `task`. And what `read_examples` raises.
    """
    if model.task is None or model.tokenizer is None:
        raise InvalidInputError(
            f"{model.path} has no {'task' if model.task is None else 'tokenizer'}; evaluation "
            "needs a bundle that can predict"
        )
    task = model.task if task is None else task
    kind = PRESETS[task].task if task in PRESETS else task
    # What is unknown read_examples says better.
    if kind != model.task:
        raise InvalidInputError(f"{model.path} is a model for {model.task}; {task} is {kind}")
    return read_examples(data, task, labels=model.labels, columns=columns)


def run_examples(engine: Engine, examples: Examples, what: str = "predict") -> Outcome:
    """Predict examples, a part of them at a time.

    Args:
        engine: one that has the examples' task.
        examples: what to predict.
        what: the name of the progress bar.

    Raises:
        InvalidInputError: an example that the model cannot take; the message has its place.
    """
    predictions: list[Any] = []
    outputs: list[list[np.ndarray]] = []
    _predict(engine, examples, 0, 1)  # what only the first run does is no part of the time
    seconds = 0.0
    with progress(len(examples), what, " examples") as advance:
        for begin in range(0, len(examples), _AT_ONCE):
            end = min(begin + _AT_ONCE, len(examples))
            started = time.perf_counter()
            results, found = _predict(engine, examples, begin, end)
            seconds += time.perf_counter() - started
            predicted = _PREDICTION.get(examples.task, lambda result: result)
            predictions += [predicted(result) for result in results]
            outputs += found
            advance(end - begin)
    return Outcome(predictions, outputs, seconds)


# What of a result is scored; of other tasks nothing is
_PREDICTION: dict[str, Callable[[Any], Any]] = {
    "classification": lambda result: result.label,
    "regression": lambda result: result.score,
    "question-answering": lambda result: result.text,
    "tagging": lambda result: list(result.tags),
}


def _predict(engine: Engine, examples: Examples, begin: int, end: int) -> Any:
    try:
        return engine.predict_with_outputs(examples.texts[begin:end])
    except InvalidInputError as error:
        # It counts from the first of those that it was given.
        found = re.match(r"batch\[(\d+)\]", str(error))
        if found is None:
            message = re.sub(
                r"\bbatch\[(\d+)\]",
                lambda place: examples.where(begin + int(place[1])),
                str(error),
            )
            raise InvalidInputError(f"{examples.path}: {message}") from None
        place = examples.where(begin + int(found[1]))
        raise InvalidInputError(f"{place}: {str(error)[found.end() :].lstrip(': ')}") from None


def compare(
    engine: Engine,
    examples: Examples,
    metrics: Sequence[str],
    labels: Sequence[str] | None,
    outcome: Outcome,
    reference: Outcome,
) -> Row:
    """Score what an engine made of examples, and compare it with what a reference made of them.

    Args:
        engine: whose outcome it is.
        examples: what was predicted.
        metrics, labels: as for `bertrt.evaluation.metrics.score`.
        outcome, reference: both of `examples`.
    """
    kind = examples.task
    rights = [
        (bool(is_right(kind, gold, found)), bool(is_right(kind, gold, expected)))
        for gold, found, expected in zip(
            examples.labels, outcome.predictions, reference.predictions, strict=True
        )
    ]
    numbers = kind == "regression"
    largest = total = 0.0
    count = 0
    for own, other in zip(outcome.outputs, reference.outputs, strict=True):
        for found, expected in zip(own, other, strict=True):
            difference = np.abs(found.astype(np.float64) - expected)
            if not np.isfinite(difference).all():
                largest = total = math.inf
            else:
                largest = max(largest, float(difference.max()))
                total += float(difference.sum())
            count += difference.size
    return Row(
        backend=engine.backend,
        provider=engine.provider,
        device=engine.device,
        precision=engine.precision,
        threads=engine.threads,
        scores=score(metrics, examples.labels, outcome.predictions, labels),
        right=None if numbers else sum(right for right, _ in rights),
        differ=_differ(kind, outcome.predictions, reference.predictions),
        lost=None if numbers else sum(before and not right for right, before in rights),
        gained=None if numbers else sum(right and not before for right, before in rights),
        largest=largest,
        mean=total / count,
        seqs_per_second=outcome.seqs_per_second,
    )


def _differ(task: str, found: Sequence[Any], expected: Sequence[Any]) -> int:
    if task != "regression":
        return sum(own != other for own, other in zip(found, expected, strict=True))
    least = bound("logits", 1) * max(1.0, *map(abs, expected))
    return sum(not abs(own - other) <= least for own, other in zip(found, expected, strict=True))


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _finite(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for name, value in values.items()
    }
