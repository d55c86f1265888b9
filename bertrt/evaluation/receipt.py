"""A lowered model's receipt: what each step and the whole model lose, and what is gained."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertrt.errors import BertrtError
from bertrt.host.machine import cpu_name
from bertrt.plan.plan import Plan
from bertrt.plan.quantized import product_steps, store_quantized
from bertrt.version import __version__

__all__ = ["BoundError", "Cost", "Report", "StepError", "describe", "make_report"]


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
        device: likewise, a GPU; None: the CPU.
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
    device: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
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
            "machine": {"cpu": self.cpu} | ({} if self.device is None else {"device": self.device}),
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
        + (f" by {report['machine']['device']}" if "device" in report["machine"] else "")
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


def make_report(precision: str, stated: Plan, source: Plan, steps: Sequence[StepError]) -> Report:
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
