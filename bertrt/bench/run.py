"""The benchmark: engines in processes of their own, turn by turn, on the same inputs."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.bench.arithmetic import operations, weight_bytes
from bertrt.bench.engines import DEFAULT_ENGINES, Name, engine_module
from bertrt.bench.engines.base import Inputs
from bertrt.bench.report import Agreement, EngineReport, Report, Timing, WorkloadReport
from bertrt.bench.worker import Worker, convert, wait_until_idle
from bertrt.bench.workloads import GROUPS, Workload, full, make_workloads
from bertrt.errors import BertrtError, InvalidInputError, MissingDependencyError
from bertrt.host.cores import usable_cores
from bertrt.host.machine import cpu_name
from bertrt.host.progress import progress
from bertrt.host.writing import naming, temporary_directory
from bertrt.models.model import Model

__all__ = ["REFERENCE", "agreement", "bench"]

REFERENCE: Name = ("native", "fp32")

_FIRST_LENGTH = 16

# The machine is whole when it gives this much of the fp32 peak.
_WHOLE = 0.9
_PATIENCE = 300.0


def bench(
    path: str | os.PathLike[str],
    engines: Sequence[Name] | None = None,
    *,
    groups: Sequence[str] = GROUPS,
    texts: Sequence[str | tuple[str, str]] | None = None,
    threads: int | None = None,
    repeats: int = 10,
    patience: float | None = None,
) -> Report:
    """Time engines on a model.

    Each engine has a process of its own. They take turns, workload by workload, so that a machine
    that slows down slows all of them; before a turn the others have stopped computing, and the
    workload runs once untimed. No engine is timed on a workload before its outputs were compared
    with those of the native engine in fp32. The machine's peaks are measured after each workload,
    and the best is reported.

    Args:
        path: what `Engine.load` takes; peers want a bundle.
        engines: names and precisions; None: `DEFAULT_ENGINES`. The native engine in fp32 always
            runs.
        groups: which workloads, out of `GROUPS`.
        texts: texts or pairs to run, beside the made-up inputs.
        threads: for every engine; None: the cores usable here.
        repeats: turns of each engine on each workload.
        patience: seconds to spend, in all, on waiting for the machine to give nine tenths of its
            fp32 peak, and on turns after which it does not; 0: time it as it is; None: 300.

    Returns:
        The report. An engine that is not installed, that fails or that disagrees is in it, with the
        reason and without times.

    Raises:
        BertrtError: the model, or an argument, cannot be used; the native engine in fp32 fails.
    """
    threads = usable_cores() if threads is None else threads
    model = Model.open(path)
    workloads = make_workloads(model, groups, texts)
    if not workloads:
        raise InvalidInputError("there is nothing to run: texts are asked for and none are given")
    wanted = DEFAULT_ENGINES if engines is None else engines
    names = list(dict.fromkeys((REFERENCE, *wanted)))
    plan = model.plan()
    first = full(model, 1, min(_FIRST_LENGTH, model.limits.max_length)).batches[0]
    report = Report(
        name=model.path.resolve().name,
        architecture=dict(plan.architecture),
        cpu=cpu_name(),
        threads=threads,
        peaks={},
        versions={"python": platform.python_version(), "numpy": np.__version__},
        engines={name: EngineReport(*name, method=_method(name)) for name in names},
        workloads=[
            WorkloadReport(
                workload.name,
                workload.groups,
                workload.seqs,
                workload.tokens,
                workload.padded_tokens,
                sum(operations(plan, batch.valid_length) for batch in workload.batches),
                {
                    precision: len(workload.batches) * weight_bytes(plan, precision)
                    for precision in ("fp32", "bf16", "int8")
                },
            )
            for workload in workloads
        ],
    )
    with ExitStack() as stack:
        directory = stack.enter_context(temporary_directory())
        total = len(names) + len(workloads) * repeats
        advance = stack.enter_context(progress(total, "bench", " turns"))
        workers: dict[Name, Worker] = {}
        for name in names:
            worker = _start(model, name, threads, directory, first, report.engines[name])
            if worker is not None:
                stack.callback(worker.close)
                workers[name] = worker
            advance(1)
        _measure_peaks(report.peaks, threads)
        watch = _Watch(report, _PATIENCE if patience is None else patience)
        for workload, found in zip(workloads, report.workloads, strict=True):
            _run(workload, found, workers, report, repeats, watch, advance)
            _measure_peaks(report.peaks, threads)
        for name, worker in workers.items():
            report.engines[name].peak_memory = worker.memory()
    return report


def _method(name: Name) -> str:
    # MXNet shares its module with the native engine, and has no precision to tell of.
    return "" if name[0] == "mxnet" else engine_module(name[0]).METHODS.get(name[1], "")


def _start(
    model: Model, name: Name, threads: int, directory: Path, first: Inputs, report: EngineReport
) -> Worker | None:
    """Convert the model for an engine, and start it; None where that fails, with the reason in the
    report."""
    own = directory / "-".join(name)
    try:
        with naming(own):
            own.mkdir()
        if hasattr(engine_module(name[0]), "convert"):
            report.convert_seconds = convert(model.path, name, own)
        worker = Worker(model.path, name, threads, own, first)
    except BertrtError as error:
        if name == REFERENCE:
            raise
        missing = isinstance(error, MissingDependencyError)
        report.problem = f"not installed ({error})" if missing else f"failed: {error}"
        return None
    report.provider = worker.started.provider
    report.start_seconds = worker.started.seconds
    report.first_memory = worker.started.memory
    report.interpreter_memory = worker.started.interpreter
    return worker


def _run(
    workload: Workload,
    found: WorkloadReport,
    workers: dict[Name, Worker],
    report: Report,
    repeats: int,
    watch: _Watch,
    advance: Callable[[int], Any],
) -> None:
    """The turns of one workload. An engine that fails leaves `workers`."""
    seconds: dict[Name, list[float]] = {name: [] for name in workers}
    expected: list[dict[str, np.ndarray]] = []
    for _ in range(repeats):
        for name in list(seconds):
            try:
                times, outputs = watch.turn(workers[name], workload, list(workers.values()))
            except BertrtError as error:
                if name == REFERENCE:
                    raise
                report.engines[name].problem = f"failed on {workload.name}: {error}"
                workers.pop(name).close()
                del seconds[name]
                continue
            if name == REFERENCE:
                expected = outputs
            found.agreements[name] = worse(
                found.agreements.get(name), agreement(workload.batches, outputs, expected)
            )
            if found.agreements[name].ok(name[1]):
                seconds[name] += times
            else:
                del seconds[name]
        advance(1)
    found.timings = {name: Timing(tuple(times)) for name, times in seconds.items()}


class _Watch:
    """Keeps turns to the times in which the machine is whole, while its patience lasts: at times
    two cores of a virtual machine are one core of the machine below it, for seconds."""

    def __init__(self, report: Report, patience: float) -> None:
        self._report = report
        self._patience = patience  # seconds

    def is_whole(self) -> bool:
        from bertrt import _native

        present: float = _native.present_fp32_peak(self._report.threads)
        return present > _WHOLE * self._report.peaks["fp32"]

    def turn(
        self, worker: Worker, workload: Workload, others: Sequence[Worker]
    ) -> tuple[list[float], list[dict[str, np.ndarray]]]:
        """`Worker.run`, again if the machine was not whole before and after it."""
        while True:
            begin = time.monotonic()
            wait_until_idle(list(others))
            if self._patience > 0 and not self.is_whole():
                self._patience -= time.monotonic() - begin
                continue
            found = worker.run(workload.batches)
            if self._patience <= 0 or self.is_whole():
                return found
            self._patience -= time.monotonic() - begin


def agreement(
    batches: Sequence[Inputs],
    outputs: Sequence[Mapping[str, np.ndarray]],
    expected: Sequence[Mapping[str, np.ndarray]],
) -> Agreement:
    """Compare outputs with those expected, batch by batch; what stands at padding is ignored."""
    largest = 0.0
    cosines = []
    for batch, ours, theirs in zip(batches, outputs, expected, strict=True):
        for key, wanted in theirs.items():
            got = ours.get(key)
            if got is None or got.shape != wanted.shape:
                return Agreement(np.inf, -1.0, -1.0)
            # Rows of tokens have an axis more than rows of sequences.
            if wanted.ndim == 3:
                got, wanted = got[batch.valid], wanted[batch.valid]
            if not np.isfinite(got).all():
                return Agreement(np.inf, -1.0, -1.0)
            scale = max(1.0, float(np.abs(wanted).max(initial=0)))
            largest = max(largest, float(np.abs(got - wanted).max(initial=0)) / scale)
            norms = np.linalg.norm(got, axis=1) * np.linalg.norm(wanted, axis=1)
            cosines.append((got * wanted).sum(1) / np.maximum(norms, np.finfo(np.float32).tiny))
    every = np.concatenate(cosines)
    return Agreement(largest, float(every.min()), float(np.median(every)))


def worse(one: Agreement | None, other: Agreement) -> Agreement:
    """The worse of two in every respect."""
    if one is None:
        return other
    return Agreement(
        max(one.largest, other.largest),
        min(one.smallest_cosine, other.smallest_cosine),
        min(one.median_cosine, other.median_cosine),
    )


def _measure_peaks(peaks: dict[str, Any], threads: int) -> None:
    from bertrt import _native

    for key, value in _native.machine_peaks(threads).items():
        peaks[key] = value if key == "isa" else max(value, peaks.get(key, 0.0))
