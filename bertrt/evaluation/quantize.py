"""Quantisation with its receipt: a bundle in int8 or bf16, and what that cost.

Each encoder step is tried alone in the lower precision, on calibration data: the error that it
brings into the logits orders the steps. All are lowered; while that breaks a bound, the steps with
the largest errors go back, to bf16 or, where that is not enough, to fp32. (This is the sensitivity
analysis and partial quantisation of Wu et al., "Integer Quantization for Deep Learning Inference",
arXiv:2004.09602, section 6.)
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.backends.base import load_backend
from bertrt.batch import PackedBatch
from bertrt.engine import Engine
from bertrt.errors import BertrtError, InvalidInputError, InvalidTypeError, ModelFormatError
from bertrt.evaluation.datasets import Examples, read_texts
from bertrt.evaluation.metrics import check_metrics, metrics_of
from bertrt.evaluation.run import Outcome, compare, read_data, run_examples
from bertrt.host.cores import usable_cores
from bertrt.host.machine import cpu_name
from bertrt.host.progress import progress
from bertrt.models.bundle import GOLDEN, write_plan, writing
from bertrt.models.model import Model
from bertrt.models.safetensors import write_safetensors
from bertrt.plan.plan import Plan
from bertrt.plan.quantized import product_steps, state_precisions, store_quantized
from bertrt.plan.smoothing import Pair, smooth, smoothing_pairs
from bertrt.tasks.settings import PRESETS

__all__ = ["BoundError", "Cost", "Report", "StepError", "quantize"]

WEIGHTS = "model.safetensors"

# Where a step goes that costs too much, nearest first.
_FALLBACKS = {"int8": ("bf16", "fp32"), "bf16": ("fp32",)}

# A step's own error orders the steps and is no bound: this many examples tell it well enough.
_SAMPLED = 256

# Sequences that run at once where activations are looked at.
_AT_ONCE = 32


class BoundError(BertrtError):
    """The bound cannot be held, whatever stays in a higher precision."""


@dataclass(frozen=True)
class StepError:
    """What a step brings into the logits when it alone is lowered.

    Attributes:
        name: the step's.
        rms, largest: of the differences from the logits in fp32.
        precision: what it has in the bundle.
        smoothed: whether its input was smoothed into the weights.
    """

    name: str
    rms: float
    largest: float
    precision: str
    smoothed: bool


@dataclass(frozen=True)
class Cost:
    """What lower precision changes on the calibration data, against fp32.

    Attributes:
        scores: points by metric; empty without labels.
        lost, gained: how many examples become wrong, and right; None without labels, and for
            regression.
        rms, largest: of the differences from the logits in fp32.
    """

    scores: dict[str, float]
    lost: int | None
    gained: int | None
    rms: float
    largest: float


@dataclass(frozen=True)
class Report:
    """What `quantize` did. ``str(report)`` is for people; the bundle holds `to_dict`.

    Attributes:
        precision: what was asked for.
        max_loss, max_error: the bounds, None where there is none.
        task: that the data were read for; None without data or labels.
        data: the file's name, None without one; `sha256` and `examples` are its.
        before: the scores in fp32.
        plain: what the precision costs in every step; None without data.
        cost: what the bundle costs; None without data.
        steps: in the plan's order, with their errors; those are NaN without data.
        weight_bytes: of the encoder's matrices, before and after.
        cpu: where it was measured.
    """

    precision: str
    max_loss: float | None
    max_error: float | None
    task: str | None
    data: str | None
    sha256: str | None
    examples: int
    before: dict[str, float]
    plain: Cost | None
    cost: Cost | None
    steps: tuple[StepError, ...]
    weight_bytes: tuple[int, int]
    cpu: str

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        from bertrt import __version__

        return {
            "precision": self.precision,
            "bounds": {"max_loss": self.max_loss, "max_error": self.max_error},
            "data": None
            if self.data is None
            else {
                "file": self.data,
                "sha256": self.sha256,
                "examples": self.examples,
                "task": self.task,
            },
            "before": self.before,
            "plain": None if self.plain is None else dataclasses.asdict(self.plain),
            "cost": None if self.cost is None else dataclasses.asdict(self.cost),
            "steps": [
                {
                    name: None if isinstance(value, float) and math.isnan(value) else value
                    for name, value in dataclasses.asdict(step).items()
                }
                for step in self.steps
            ],
            "weight_bytes": list(self.weight_bytes),
            "machine": {"cpu": self.cpu},
            "versions": {
                "bertrt": __version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }

    def __str__(self) -> str:
        return "\n".join(describe(self.to_dict()))


def describe(report: Mapping[str, Any]) -> list[str]:
    """Lines that tell a report, as a bundle holds it, to people."""
    before, after = report["weight_bytes"]
    steps = report["steps"]
    kept = [step for step in steps if step["precision"] != report["precision"]]
    lines = [
        f"{report['precision']}: {len(steps) - len(kept)} of {len(steps)} steps; the encoder's "
        f"matrices take {after / 2**20:.1f} MiB, in fp32 {before / 2**20:.1f} MiB"
    ]
    lines += [f"  {step['name']} stays in {step['precision']}" for step in kept]
    if smoothed := [step["name"] for step in steps if step["smoothed"]]:
        lines.append(f"  smoothed: {', '.join(smoothed)}")
    data = report["data"]
    if data is None:
        return [*lines, "nothing was measured: there were no calibration data"]
    bounds = {"max_loss": "loss at most {} points", "max_error": "logit error at most {}"}
    held = [text.format(report["bounds"][name]) for name, text in bounds.items()
            if report["bounds"][name] is not None]  # fmt: skip
    lines.append(
        f"measured on {data['examples']} examples of {data['file']}"
        + (f" ({data['task']})" if data["task"] else "")
        + f"; {', '.join(held) or 'without a bound'}"
    )
    table: list[tuple[str, ...]] = [("", "fp32", f"all {report['precision']}", "this bundle")]
    costs = (report["plain"], report["cost"])
    for name, score in report["before"].items():
        own = (f"{cost['scores'][name]:.2f}" for cost in costs)
        table.append((name.replace("_", " "), f"{score:.2f}", *own))
    for name in ("lost", "gained"):
        if costs[0][name] is not None:
            table.append((name, "", *(str(cost[name]) for cost in costs)))
    table.append(("logit error, rms", "", *(f"{cost['rms']:.2e}" for cost in costs)))
    table.append(("logit error, largest", "", *(f"{cost['largest']:.2e}" for cost in costs)))
    lines += ["  " + line for line in _columns(table)]
    lines.append(f"logit error of each step alone in {report['precision']}")
    ordered = sorted(steps, key=lambda step: -step["rms"])
    table = [("step", "rms", "largest", "runs in")]
    for step in ordered:
        table.append(
            (step["name"], f"{step['rms']:.2e}", f"{step['largest']:.2e}", step["precision"])
        )
    return [*lines, *("  " + line for line in _columns(table))]


def _columns(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in table
    ]


def quantize(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    precision: str = "int8",
    calibrate: str | os.PathLike[str] | None = None,
    task: str | None = None,
    columns: Sequence[str] | None = None,
    max_loss: float | None = None,
    max_error: float | None = None,
    smooth: bool = False,
    threads: int | None = None,
) -> Report:
    """Make a bundle whose encoder runs in a lower precision, its weights stored in it.

    Args:
        path: a bundle in fp32.
        out: the bundle to make; must not exist.
        precision: "int8" or "bf16".
        calibrate: a file to measure on. With `task`, `columns` or `max_loss` labelled data, as
            `bertrt.evaluation.datasets.read_examples` reads them; else texts, one a line, with a tab between
            those of a pair. None: every step is lowered, and nothing is measured.
        task, columns: of labelled data; see `bertrt.evaluation.run.read_data`.
        max_loss: points of the task's first metric that may be lost; steps that cost too much stay
            in a higher precision.
        max_error: the largest difference from fp32 that a logit may have; likewise.
        smooth: whether outliers of a matrix's input go into the weights, exactly, in the steps
            where that makes the error smaller. See `bertrt.plan.smoothing`.
        threads: as for `Engine.load`.

    Returns:
        The report, which the bundle holds too.

    Raises:
        BoundError: a bound cannot be held; nothing is written. The message names the worst steps.
        InvalidInputError: an argument, or the data; the message has file and line. A bundle that is
            quantised already, or holds weights that are not finite.
        OutputExistsError, MissingFileError, ModelFormatError, MissingDependencyError: as for
            `Engine.load`, `bertrt.evaluation.run.evaluate` and `bertrt.models.bundle.writing`.
    """
    _check_arguments(precision, calibrate, task, columns, max_loss, max_error, smooth)
    with writing(out) as draft:
        model = Model.open(path)
        if model.manifest is None:
            raise ModelFormatError(
                f"{model.path} is no bundle; make one with bertrt export or bertrt import"
            )
        plan = model.plan()
        if plan.precision is not None:
            raise InvalidInputError(
                f"{model.path} is quantised to {plan.precision} already; take the bundle that it "
                "was made from"
            )
        if calibrate is None:
            lowered = {step.name: precision for step in product_steps(plan)}
            stated = state_precisions(plan, lowered)
            errors = [
                StepError(name, math.nan, math.nan, precision, smoothed=False) for name in lowered
            ]
            report = _report(precision, stated, plan, errors)
        else:
            labelled = task is not None or columns is not None or max_loss is not None
            calibration = _Calibration(
                model, calibrate, task if labelled else None, columns, labelled, threads
            )
            search = _Search(model, calibration, precision, max_loss, max_error)
            stated, report = search.run(smooth)
        _write(model, stated, report, draft.directory)
        draft.seal(
            {
                name: value
                for name, value in model.manifest.items()
                if name not in ("format_version", "files", "manifest_sha256")
            }
            | {
                "quantization": report.to_dict()
                | {"source": {"manifest_sha256": model.manifest["manifest_sha256"]}}
            }
        )
        _check_bits(model, stated, draft.directory, threads)
    return report


def _check_arguments(
    precision: Any,
    calibrate: Any,
    task: Any,
    columns: Any,
    max_loss: Any,
    max_error: Any,
    smooth: Any,
) -> None:
    if precision not in _FALLBACKS:
        raise InvalidInputError(f"precision is {precision!r}; expected one of int8, bf16")
    for name, bound in (("max_loss", max_loss), ("max_error", max_error)):
        if bound is None:
            continue
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise InvalidTypeError(f"{name} is {bound!r}; expected a number")
        if not (math.isfinite(bound) and bound >= 0):
            raise InvalidInputError(f"{name} is {bound}; expected a number from 0")
    if calibrate is None:
        given = [
            name
            for name, value in (
                ("task", task),
                ("columns", columns),
                ("max_loss", max_loss),
                ("max_error", max_error),
                ("smooth", smooth or None),
            )
            if value is not None
        ]
        if given:
            raise InvalidInputError(f"{' and '.join(given)} can only go with calibration data")


class _Calibration:
    """The data, and what fp32 makes of them."""

    def __init__(
        self,
        model: Model,
        path: str | os.PathLike[str],
        task: str | None,
        columns: Sequence[str] | None,
        labelled: bool,
        threads: int | None,
    ) -> None:
        self.model = model
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
        return _engine(self.model.with_plan(plan), self.threads)

    def batches(self) -> Iterator[PackedBatch]:
        """The sample, as an engine takes it."""
        with self.engine(self.model.plan()) as engine:
            found = engine.tokenize(self.sample.texts)
        # Of question answering, a list of windows for each text.
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


class _Search:
    """Looks for what has to stay in a higher precision."""

    def __init__(
        self,
        model: Model,
        calibration: _Calibration,
        precision: str,
        max_loss: float | None,
        max_error: float | None,
    ) -> None:
        self._calibration = calibration
        self._precision = precision
        self._max_loss = max_loss
        self._max_error = max_error
        self._plan = self._source = model.plan()
        self._names = [step.name for step in product_steps(self._plan)]
        self._matrices = {step.name for step in product_steps(self._plan) if step.weights}
        if max_loss is not None and math.isnan(self._score(calibration.before)):
            raise InvalidInputError(
                f"{calibration.examples.path}: the {calibration.metrics[0]} of fp32 is not defined "
                "on these data, so that no loss of it can be bounded"
            )

    def run(self, smooth: bool) -> tuple[Plan, Report]:
        """The plan with its precisions stated, and the report.

        Raises:
            BoundError: a bound cannot be held.
        """
        calibration = self._calibration
        plain = calibration.cost(self._lowered({}))
        errors = self._errors()
        smoothed = self._smooth(errors) if smooth else set()
        order = sorted(self._names, key=lambda name: -errors[name][0])
        kept, cost = self._choose(order, errors, plain if not smoothed else None)
        chosen = self._lowered(kept)
        steps = [
            StepError(name, *errors[name], kept.get(name, self._precision), name in smoothed)
            for name in self._names
        ]
        report = dataclasses.replace(
            _report(self._precision, chosen, self._source, steps),
            max_loss=self._max_loss,
            max_error=self._max_error,
            task=calibration.task,
            data=calibration.examples.path.name,
            sha256=calibration.examples.sha256,
            examples=len(calibration.examples),
            before=calibration.before,
            plain=plain,
            cost=cost,
        )
        return chosen, report

    def _lowered(self, kept: Mapping[str, str]) -> Plan:
        """The plan with all steps lowered but those that keep another precision."""
        lowered = {name: kept.get(name, self._precision) for name in self._names}
        return state_precisions(self._plan, lowered)

    def _errors(self) -> dict[str, tuple[float, float]]:
        """Each step's own error."""
        errors = {}
        with progress(len(self._names), "steps", " steps") as advance:
            for name in self._names:
                errors[name] = self._own_error(self._plan, name)
                advance(1)
        return errors

    def _own_error(self, plan: Plan, name: str) -> tuple[float, float]:
        return self._calibration.error(state_precisions(plan, {name: self._precision}))

    def _smooth(self, errors: dict[str, tuple[float, float]]) -> set[str]:
        """Smooth the inputs of steps where that makes their error smaller; returns which."""
        calibration = self._calibration
        pairs = smoothing_pairs(self._plan)
        largest = _largest_inputs(self._plan, pairs, calibration)
        smoothed = set()
        with progress(len(pairs), "smoothing", " steps") as advance:
            for pair in pairs:
                plan = smooth(self._plan, pair, largest[pair.reader.name])
                error = self._own_error(plan, pair.reader.name)
                if error[0] < errors[pair.reader.name][0]:
                    self._plan, errors[pair.reader.name] = plan, error
                    smoothed.add(pair.reader.name)
                advance(1)
        return smoothed

    def _choose(
        self,
        order: Sequence[str],
        errors: Mapping[str, tuple[float, float]],
        plain: Cost | None,
    ) -> tuple[dict[str, str], Cost]:
        """What stays in which precision: as few steps as hold the bound, the worst first."""
        best = plain or self._calibration.cost(self._lowered({}))
        if self._holds(best):
            return {}, best
        # One matrix at least has to be lowered, or nothing has been quantised.
        most = max(i for i, name in enumerate(order) if name in self._matrices)
        for fallback in _FALLBACKS[self._precision]:
            # One by one: flips of examples make a score no steady function of the steps.
            with progress(most, f"steps in {fallback}", " steps") as advance:
                for count in range(1, most + 1):
                    kept = dict.fromkeys(order[:count], fallback)
                    best = self._calibration.cost(self._lowered(kept))
                    if self._holds(best):
                        return kept, best
                    advance(1)
        worst = ", ".join(f"{name} ({errors[name][0]:.1e})" for name in order[:3])
        raise BoundError(
            f"{self._precision} cannot hold {self._bounds()} on {self._calibration.examples.path}: "
            f"with all but one matrix in fp32 {self._describe(best)}; the worst steps are {worst} "
            "(logit error, root mean square); allow more, or serve the bundle in fp32 or bf16"
        )

    def _holds(self, cost: Cost) -> bool:
        # Written so that a NaN does not hold.
        if self._max_loss is not None and not self._loss(cost) <= self._max_loss:
            return False
        return self._max_error is None or cost.largest <= self._max_error

    def _score(self, scores: Mapping[str, float]) -> float:
        return scores[self._calibration.metrics[0]]

    def _loss(self, cost: Cost) -> float:
        # Scores are ratios of counts: what is left of the last digits is no loss.
        return round(self._score(self._calibration.before) - self._score(cost.scores), 9)

    def _bounds(self) -> str:
        texts = []
        if self._max_loss is not None:
            texts.append(f"a loss of {self._max_loss} points of {self._calibration.metrics[0]}")
        if self._max_error is not None:
            texts.append(f"a logit error of {self._max_error}")
        return " and ".join(texts)

    def _describe(self, cost: Cost) -> str:
        texts = []
        if self._max_loss is not None:
            texts.append(f"{self._loss(cost):.2f} points are lost")
        if self._max_error is not None:
            texts.append(f"the largest logit error is {cost.largest:.1e}")
        return " and ".join(texts)


def _largest_inputs(
    plan: Plan, pairs: Sequence[Pair], calibration: _Calibration
) -> dict[str, np.ndarray]:
    """The largest magnitude in each column of a pair's activation, on the sample, by the reader's
    name: float32, shape (width,)."""
    from bertrt import _native

    if not pairs:
        return {}
    values = [pair.activation for pair in pairs]
    described = plan.to_engine() | {"outputs": {value: value for value in values}}
    weights = {name: np.ascontiguousarray(own.array) for name, own in plan.weights.items()}
    engine = _native.Engine(
        _native.Model(described, weights, "fp32", calibration.threads), calibration.threads
    )
    largest: dict[str, Any] = dict.fromkeys(values, np.float32(0.0))
    for batch in calibration.batches():
        found = engine.run(batch.token_ids, batch.token_types, batch.cu_seqlens, None, values, None)
        for value in values:
            largest[value] = np.maximum(largest[value], np.abs(found[value]).max(axis=0))
    return {pair.reader.name: largest[pair.activation] for pair in pairs}


def _report(precision: str, stated: Plan, source: Plan, steps: Sequence[StepError]) -> Report:
    """A report of what was done, without measurements."""
    stored = store_quantized(stated)
    return Report(
        precision=precision,
        max_loss=None,
        max_error=None,
        task=None,
        data=None,
        sha256=None,
        examples=0,
        before={},
        plain=None,
        cost=None,
        steps=tuple(steps),
        weight_bytes=(_matrix_bytes(source), _matrix_bytes(stored)),
        cpu=cpu_name(),
    )


def _matrix_bytes(plan: Plan) -> int:
    names = {
        name
        for step in product_steps(plan)
        for role in ("weight", "scale")
        for name in step.weights.get(role, ())
    }
    return sum(plan.weights[name].array.nbytes for name in names)


def _write(model: Model, stated: Plan, report: Report, directory: Path) -> None:
    """Write all files of a bundle but its manifest."""
    stored = store_quantized(stated)
    arrays = {name: constant.array for name, constant in stored.weights.items()}
    placed = write_safetensors(directory / WEIGHTS, arrays)
    write_plan(dataclasses.replace(stored, weights=placed), directory)
    assert model.manifest is not None
    tokenizer = model.manifest["tokenizer"] or {}
    kept = [tokenizer[key] for key in ("file", "pieces") if key in tokenizer]
    for name in (*kept, GOLDEN):
        if name in model.manifest["files"]:
            shutil.copyfile(model.path / name, directory / name)


def _check_bits(model: Model, stated: Plan, directory: Path, threads: int | None) -> None:
    """Check that a finished bundle gives what was measured, bit for bit.

    Raises:
        BertrtError: it does not.
    """
    cases = model.golden()
    threads = usable_cores() if threads is None else threads
    answers = []
    for own in (model.with_plan(stated), Model.open(directory)):
        with _engine(own, threads) as engine:
            answers.append([engine.run(**case.inputs) for case in cases])
    for expected, found in zip(*answers, strict=True):
        for name, array in expected.items():
            if not np.array_equal(array, found[name], equal_nan=True):
                raise BertrtError(
                    f"the finished bundle gives another {name} than what was measured, and was not "
                    "kept"
                )


def _engine(model: Model, threads: int) -> Engine:
    """The native engine of a model as it is, in its own precision."""
    options: dict[str, Any] = {"device": "cpu", "precision": model.precision, "threads": threads}
    load = functools.partial(load_backend, model, "native", **options)
    return Engine(model, load, {"path": str(model.path), "backend": "native", **options})
