"""Where the time of a run goes, step by step, beside what the machine can do (a roofline)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["StepTrace", "roofline"]

# The arithmetic of a kernel, by which its name ends before the first dot -> the peak that is its
# ceiling. 16-bit integers are the attention of int8: no faster than 8-bit ones, at best as fast.
_PEAKS = {"f32": "fp32", "bf16": "bf16", "s8": "int8", "s16": "int8"}


@dataclass(frozen=True)
class StepTrace:
    """What a step has done in one run or several.

    Attributes:
        name, kernel: as `Engine.explain` has them, "layer0.ffn" and "gemm_bf16.avx512_bf16".
        seconds: the time spent.
        operations: additions and multiplications of matrix products.
        bytes: what has to move at least: a product's packed weights, or the rows that another step
            reads and writes.
    """

    name: str
    kernel: str
    seconds: float
    operations: int
    bytes: int

    def share_of_peak(self, peaks: Mapping[str, Any]) -> float | None:
        """The share of the peak of the kernel's arithmetic; None without operations."""
        kind = self.kernel.partition(".")[0].rpartition("_")[2]
        if not self.seconds or not self.operations or kind not in _PEAKS:
            return None
        return self.operations / self.seconds / peaks[_PEAKS[kind]]

    def share_of_memory(self, peaks: Mapping[str, Any]) -> float | None:
        """The share of the bandwidth of memory; above 1 where a cache answers; None without
        bytes."""
        if not self.seconds or not self.bytes:
            return None
        return self.bytes / self.seconds / peaks["read"]


def roofline(steps: Sequence[StepTrace], peaks: Mapping[str, Any] | None) -> str:
    """A table for people: steps in their order, then the same kinds of all layers together.

    Args:
        steps: at least one of which took time.
        peaks: as `bertrt.host.machine.machine_peaks` gives them; None: unknown, and rates stand
            where shares of them would.
    """
    total = sum(step.seconds for step in steps)
    rows = [_row(step, total, peaks) for step in steps]
    kinds: dict[tuple[str, str], list[StepTrace]] = {}
    for step in steps:
        kinds.setdefault((step.name.rpartition(".")[2], step.kernel), []).append(step)
    together = [
        StepTrace(
            name if len(members) == 1 else f"{name} ({len(members)})",
            kernel,
            sum(step.seconds for step in members),
            sum(step.operations for step in members),
            sum(step.bytes for step in members),
        )
        for (name, kernel), members in kinds.items()
    ]
    whole = StepTrace("all", "", total, sum(s.operations for s in steps), 0)
    sums = [_row(step, total, peaks) for step in (*together, whole)]
    header = ("step", "kernel", "ms", "of time", "Gop", "of peak", "MB", "of memory")
    if peaks is None:
        header = ("step", "kernel", "ms", "of time", "Gop", "Gop/s", "MB", "GB/s")
    widths = [max(map(len, column)) for column in zip(header, *rows, *sums, strict=True)]

    def line(row: Sequence[str]) -> str:
        # Text to the left, numbers to the right.
        texts = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        return "  ".join(texts + numbers).rstrip()

    return "\n".join([line(header), *map(line, rows), "", line(header), *map(line, sums)])


def _row(step: StepTrace, total: float, peaks: Mapping[str, Any] | None) -> tuple[str, ...]:
    if peaks is None:
        seconds = step.seconds or float("inf")
        arithmetic = f"{step.operations / seconds / 1e9:.0f}" if step.operations else ""
        memory = f"{step.bytes / seconds / 1e9:.0f}" if step.bytes else ""
    else:
        share, share_of_memory = step.share_of_peak(peaks), step.share_of_memory(peaks)
        arithmetic = "" if share is None else f"{share:.0%}"
        memory = "" if share_of_memory is None else f"{share_of_memory:.0%}"
    return (
        step.name,
        step.kernel,
        f"{step.seconds * 1e3:.3f}",
        f"{step.seconds / total:.1%}",
        f"{step.operations / 1e9:.3f}" if step.operations else "",
        arithmetic,
        f"{step.bytes / 1e6:.3f}" if step.bytes else "",
        memory,
    )
