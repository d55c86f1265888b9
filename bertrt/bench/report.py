"""What a benchmark found: as plain values, and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bertrt.bench.engines import Name

__all__ = ["Agreement", "EngineReport", "Report", "Timing", "WorkloadReport"]

# On outputs of magnitude 1. fp32 engines differ by rounding only; what a lower precision costs is
# reported, and refused only where no sentence would be recognised any more.
LARGEST_FP32 = 1e-4
SMALLEST_MEDIAN_COSINE = {"bf16": 0.99, "int8": 0.8}


@dataclass(frozen=True)
class Agreement:
    """How far outputs are from those of the native engine in fp32.

    Attributes:
        largest: the largest difference; relative to the largest magnitude where that is above 1.
            Infinite where shapes differ or a value is not finite.
        smallest_cosine, median_cosine: between the rows of the outputs.
    """

    largest: float
    smallest_cosine: float
    median_cosine: float

    def ok(self, precision: str) -> bool:
        """Whether this is a right run in that precision."""
        if precision == "fp32":
            return self.largest <= LARGEST_FP32
        return self.median_cosine >= SMALLEST_MEDIAN_COSINE[precision]


@dataclass(frozen=True)
class Timing:
    """The times of one engine on one workload, in seconds; all batches together are a run.

    Attributes:
        seconds: each run's.
    """

    seconds: tuple[float, ...]

    @property
    def p50(self) -> float:
        """The median."""
        return float(np.percentile(self.seconds, 50))

    @property
    def p95(self) -> float:
        """95 of 100 runs took no longer."""
        return float(np.percentile(self.seconds, 95))

    @property
    def p99(self) -> float:
        """99 of 100 runs took no longer."""
        return float(np.percentile(self.seconds, 99))

    @property
    def best(self) -> float:
        """The shortest."""
        return min(self.seconds)


@dataclass
class EngineReport:
    """An engine: how it started.

    Attributes:
        engine, precision: its name.
        provider: library and version; "" where it did not start.
        method: what is done for the precision.
        start_seconds: from the start of its process to its first answer, on one sequence.
        convert_seconds: what making its own model file took before, None where it needs none.
        interpreter_memory, first_memory, peak_memory: bytes resident before it was imported, at
            most until its first answer, and at most ever.
        problem: why it has no times: not installed, failed.
    """

    engine: str
    precision: str
    provider: str = ""
    method: str = ""
    start_seconds: float | None = None
    convert_seconds: float | None = None
    interpreter_memory: int | None = None
    first_memory: int | None = None
    peak_memory: int | None = None
    problem: str = ""


@dataclass
class WorkloadReport:
    """A workload: what it is, and what each engine made of it.

    Attributes:
        name, groups: as in `Workload`.
        seqs, tokens, padded_tokens: how large it is.
        operations: additions and multiplications that its outputs need.
        weight_bytes: by precision, the bytes of weights that a run reads at least.
        agreements: by engine.
        timings: by engine; none for an engine that disagrees or failed.
    """

    name: str
    groups: tuple[str, ...]
    seqs: int
    tokens: int
    padded_tokens: int
    operations: int
    weight_bytes: dict[str, int]
    agreements: dict[Name, Agreement] = field(default_factory=dict)
    timings: dict[Name, Timing] = field(default_factory=dict)

    def share_of_peak(self, name: Name, peaks: Mapping[str, Any]) -> float:
        """The operations that the outputs need, per second of the median run, over the measured
        peak of the engine's precision."""
        return self.operations / self.timings[name].p50 / peaks[name[1]]

    def share_of_memory(self, name: Name, peaks: Mapping[str, Any]) -> float:
        """The weights, read once a run, per second of the median run, over the measured
        bandwidth."""
        return self.weight_bytes[name[1]] / self.timings[name].p50 / peaks["read"]

    def floor(self, precision: str, peaks: Mapping[str, Any]) -> float:
        """The seconds that a run takes at least: its operations at the measured peak, or reading
        the weights once at the measured bandwidth, whichever is longer."""
        return max(self.operations / peaks[precision], self.weight_bytes[precision] / peaks["read"])

    def best_peer(self, precision: str) -> Name | None:
        """The fastest engine of a precision that is not ours."""
        peers = [name for name in self.timings if name[1] == precision and name[0] != "native"]
        return min(peers, key=lambda name: self.timings[name].p50, default=None)

    def ratio(self, name: Name) -> float | None:
        """How many times as fast as the best peer of its precision an engine is; None where there
        is none."""
        peer = self.best_peer(name[1])
        return None if peer is None else self.timings[peer].p50 / self.timings[name].p50


@dataclass
class Report:
    """What `bench` found. ``str(report)`` is tables in Markdown.

    Attributes:
        model: the name of its file or directory, and the architecture.
        machine: the CPU's name; threads; peaks, as `machine_peaks` gives them.
        engines: in the order in which they were asked for.
        workloads: in the order in which they ran.
    """

    name: str
    architecture: dict[str, Any]
    cpu: str
    threads: int
    peaks: dict[str, Any]
    versions: dict[str, str]
    engines: dict[Name, EngineReport]
    workloads: list[WorkloadReport]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON; times in seconds, memory in bytes."""
        return {
            "model": {"name": self.name, "architecture": self.architecture},
            "machine": {"cpu": self.cpu, "threads": self.threads, "peaks": self.peaks},
            "versions": self.versions,
            "engines": [vars(engine) for engine in self.engines.values()],
            "workloads": [self._workload(workload) for workload in self.workloads],
        }

    def _workload(self, workload: WorkloadReport) -> dict[str, Any]:
        results = []
        for name, agreement in workload.agreements.items():
            result: dict[str, Any] = {
                "engine": name[0],
                "precision": name[1],
                "agrees": agreement.ok(name[1]),
                "largest_difference": _finite(agreement.largest),
                "smallest_cosine": _finite(agreement.smallest_cosine),
                "median_cosine": _finite(agreement.median_cosine),
            }
            timing = workload.timings.get(name)
            if timing is not None:
                result |= {
                    "runs": len(timing.seconds),
                    "p50": timing.p50,
                    "p95": timing.p95,
                    "p99": timing.p99,
                    "best": timing.best,
                    "tokens_per_second": workload.tokens / timing.p50,
                    "seqs_per_second": workload.seqs / timing.p50,
                    "ratio_to_best_peer": workload.ratio(name),
                    "share_of_peak": workload.share_of_peak(name, self.peaks),
                    "share_of_memory": workload.share_of_memory(name, self.peaks),
                }
            results.append(result)
        return {
            "name": workload.name,
            "groups": list(workload.groups),
            "seqs": workload.seqs,
            "tokens": workload.tokens,
            "padded_tokens": workload.padded_tokens,
            "operations": workload.operations,
            "weight_bytes": workload.weight_bytes,
            "results": results,
        }

    def __str__(self) -> str:
        facts = self.architecture
        lines = [
            f"Model {self.name}: {facts['layers']} layers, {facts['hidden']} wide.",
            f"Machine: {self.cpu}, {self.threads} threads, {self.peaks['isa']}. Measured peaks: "
            f"{self.peaks['fp32'] / 1e9:.0f} Gflop/s fp32, {self.peaks['bf16'] / 1e9:.0f} bf16, "
            f"{self.peaks['int8'] / 1e9:.0f} Gop/s int8; memory reads "
            f"{self.peaks['read'] / 1e9:.0f} GB/s.",
            "Versions: "
            + ", ".join(f"{name} {text}" for name, text in self.versions.items())
            + ".",
            "",
            *_table(_ENGINE_COLUMNS, [_engine_row(engine) for engine in self.engines.values()]),
        ]
        notes = [
            f"- {engine.engine} {engine.precision}: {text}"
            for engine in self.engines.values()
            if (text := engine.problem or engine.method)
        ]
        lines += ["", *notes] if notes else []
        for workload in self.workloads:
            lines += ["", f"**{workload.name}**: {_size(workload)}", ""]
            lines += _table(_COLUMNS, [self._row(workload, name) for name in workload.agreements])
        return "\n".join(lines)

    def _row(self, workload: WorkloadReport, name: Name) -> list[str]:
        agreement, timing = workload.agreements[name], workload.timings.get(name)
        row = [" ".join(name)]
        if timing is None:
            # One that agreed failed later; the list of engines says how.
            row += ["failed" if agreement.ok(name[1]) else "disagrees", *[""] * 7]
        else:
            ratio = workload.ratio(name)
            row += [
                *(f"{t * 1e3:.2f}" for t in (timing.p50, timing.p95, timing.p99, timing.best)),
                f"{workload.tokens / timing.p50:.0f}",
                "" if ratio is None else f"{ratio:.2f}",
                f"{workload.share_of_peak(name, self.peaks):.0%}",
                f"{workload.share_of_memory(name, self.peaks):.0%}",
            ]
        return [*row, f"{agreement.largest:.1e}", f"{agreement.smallest_cosine:.5f}"]


_ENGINE_COLUMNS = ("engine", "runs on", "first answer s", "MB then", "peak MB")
_COLUMNS = (
    "engine",
    "p50 ms",
    "p95",
    "p99",
    "best",
    "tokens/s",
    "x best peer",
    "of peak",
    "of memory",
    "difference",
    "cosine",
)


def _engine_row(engine: EngineReport) -> list[str]:
    row = [f"{engine.engine} {engine.precision}", engine.provider]
    if engine.start_seconds is None:
        return [*row, "", "", ""]
    memory = (engine.first_memory, engine.peak_memory)
    return [
        *row,
        f"{engine.start_seconds:.2f}",
        *("" if bytes_ is None else f"{bytes_ / 1e6:.0f}" for bytes_ in memory),
    ]


def _size(workload: WorkloadReport) -> str:
    seqs = "1 sequence" if workload.seqs == 1 else f"{workload.seqs} sequences"
    padding = ""
    if workload.padded_tokens > workload.tokens:
        padding = f" of {workload.padded_tokens} with padding"
    return f"{seqs}, {workload.tokens} tokens{padding}, {workload.operations / 1e9:.3g} Gop"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned Markdown: the first column to the left, the others to the right."""
    cells = [header, *rows]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        first, *rest = row
        aligned = [first.ljust(widths[0])]
        aligned += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [line(header), f"| {' | '.join(rule)} |", *map(line, rows)]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
