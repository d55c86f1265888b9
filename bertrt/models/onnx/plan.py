"""From an ONNX file to its plan."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from bertrt.compiler.coverage import Coverage
from bertrt.compiler.pipeline import compile_at_sizes
from bertrt.errors import BertrtWarning
from bertrt.models.onnx.call import Quantized
from bertrt.models.onnx.reader import OnnxFile
from bertrt.plan.plan import Plan
from bertrt.plan.quantized import product_steps
from bertrt.plan.steps import Step
from bertrt.plan.weights import Constant

__all__ = ["compile_onnx"]


def compile_onnx(path: str | Path) -> tuple[Plan, Coverage]:
    """Read an ONNX file and lay out its plan.

    The products of a quantised file become int8 steps where all of its quantised weights are what
    these compute with; otherwise the plan has the dequantised weights, in float32, and a
    BertrtWarning names the file and the reason.

    Raises what :class:`~bertrt.models.onnx.reader.OnnxFile` and
    :func:`~bertrt.compiler.pipeline.compile_graph` raise.
    """
    file = OnnxFile(path)
    plan, coverage = compile_at_sizes(file.graph)
    if file.quantized:
        plan, why = _in_int8(plan, file.quantized)
        if why:
            warnings.warn(
                f"{path}: its quantised weights run dequantised, in fp32: {why}",
                BertrtWarning,
                stacklevel=2,
            )
    return plan, coverage


def _in_int8(plan: Plan, quantized: Mapping[str, Quantized]) -> tuple[Plan, str]:
    """The plan with int8 for the steps whose weights were quantised, or as it is with the reason
    why that would be another model."""
    weights = dict(plan.weights)
    chosen = {step.name for step in product_steps(plan)}
    steps: list[Step] = []
    found = 0
    for step in plan.steps:
        names = step.weights.get("weight", ())
        if step.name not in chosen or not any(name in quantized for name in names):
            steps.append(step)
            continue
        stored: dict[str, list[Constant]] = {"weight": [], "scale": []}
        for name in names:
            if name not in quantized:
                return plan, f"of the weights of {step.name}, {name!r} is none of them"
            parts, why = _outputs(quantized[name], transposed=step.fields["transposed"])
            own = name.replace(".dequantized", "")
            if parts is None:
                return plan, f"the weight {own!r} of {step.name} {why}"
            stored["weight"].append(Constant(own, parts[0]))
            stored["scale"].append(Constant(f"{own}.scale", parts[1]))
        for role in stored.values():
            weights |= {constant.name: constant for constant in role}
        roles = {role: tuple(c.name for c in own) for role, own in stored.items()}
        fields = step.fields | {"precision": "int8"}
        steps.append(replace(step, weights=step.weights | roles, fields=fields))
        found += 1
    if not found:
        return plan, "none of them belongs to a product of the encoder"
    used = {name for step in steps for names in step.weights.values() for name in names}
    kept = {name: constant for name, constant in weights.items() if name in used}
    return replace(plan, steps=tuple(steps), weights=kept), ""


def _outputs(
    weight: Quantized, *, transposed: bool
) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
    """A matrix as int8 with a scale an output, or None and what it has that int8 steps have not."""
    integers = weight.integers
    most = int(np.abs(integers).max(initial=0))
    if most > 127:
        return None, f"has integers up to {most} around its zero point, beyond 127"
    outputs = 1 if transposed else 0
    shape = np.broadcast_shapes(weight.scale.shape, (1, 1))
    if shape[1 - outputs] != 1:
        return None, "has a scale for each of its inputs, not of its outputs"
    scale = np.broadcast_to(weight.scale.reshape(-1), (integers.shape[outputs],))
    arrays = integers.astype(np.int8), np.ascontiguousarray(scale, np.float32)
    for array in arrays:
        array.flags.writeable = False
    return arrays, ""
