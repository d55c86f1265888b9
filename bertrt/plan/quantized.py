"""Weights in fewer bits than float32, and plans that state the precision of their steps.

int8: each output of a matrix, `q * scale` with q from -127 to 127 and zero exact. bfloat16: the
upper half of a float32, to nearest, ties to even; numpy has no such type, so its bits are uint16.
Both are what the native engine makes of float32 weights when it is told to compute in int8 or bf16
(csrc/cpu/panel_matrix.cpp), bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from bertrt.errors import InvalidInputError
from bertrt.plan.plan import Plan
from bertrt.plan.steps import Step
from bertrt.plan.weights import Constant

__all__ = [
    "from_bfloat16",
    "product_steps",
    "quantize_outputs",
    "state_precisions",
    "store_quantized",
    "to_bfloat16",
]

_STEPS = np.float32(127)


def quantize_outputs(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise a matrix symmetrically, each output by itself.

    Args:
        weight: finite float32, shape (outputs, inputs).

    Returns:
        int8 of the same shape, and float32 scales of shape (outputs,).

    Raises:
        InvalidInputError: a weight is not finite.
    """
    if not np.isfinite(weight).all():
        raise InvalidInputError("weights that are not finite cannot be quantised")
    limit = np.abs(weight).max(axis=1)
    scale = limit / _STEPS
    # An output whose steps would be denormals is zero, as they are to the engine.
    scale[scale < np.finfo(np.float32).tiny] = 0
    inverse = np.divide(_STEPS, limit, out=np.zeros_like(limit), where=scale > 0)
    return np.rint(weight * inverse[:, None]).astype(np.int8), scale


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16 values, ties to even: uint16. NaN stays NaN."""
    bits = values.astype(np.float32, copy=False).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def product_steps(plan: Plan) -> list[Step]:
    """The steps that a lower precision concerns: attention, and the products of token rows with
    matrices, but for a head over tokens, whose result is the model's."""
    returned = {plan.tail_of(name)[0] for name in plan.outputs}
    tokens: set[str] = set()
    found = []
    for step in plan.steps:
        if step.op == "embed_layer_norm" or (
            step.inputs[0] in tokens and step.op not in ("first_token", "gather_positions")
        ):
            tokens.add(step.output)
        if step.op in ("qkv_linear", "attention", "linear_add_layer_norm") or (
            step.op == "linear" and step.output not in returned
        ):
            found += [step] if step.output in tokens else []
    return found


def state_precisions(plan: Plan, precisions: Mapping[str, str]) -> Plan:
    """A plan in which some steps state their precision; the weights are as they were.

    Args:
        plan: a plan that states none.
        precisions: "fp32", "bf16" or "int8" by the names of steps that compute products.
    """
    steps = tuple(
        dataclasses.replace(step, fields=step.fields | {"precision": precisions[step.name]})
        if step.name in precisions
        else step
        for step in plan.steps
    )
    return dataclasses.replace(plan, steps=steps)


def store_quantized(plan: Plan) -> Plan:
    """A plan whose matrices are stored as their steps' stated precisions compute with them. Those
    of other steps, biases, tables and LayerNorms stay float32.

    Raises:
        InvalidInputError: a matrix that is to be int8 holds numbers that are not finite; the
            message names it.
    """
    weights: dict[str, Constant] = {}
    steps = []
    made: _Made = {}
    for step in plan.steps:
        roles = dict(step.weights)
        stored = _stored(plan, step, made)
        if stored:
            roles |= {role: tuple(array.name for array in own) for role, own in stored.items()}
            weights |= {array.name: array for own in stored.values() for array in own}
        for names in roles.values():
            weights |= {name: plan.weights[name] for name in names if name not in weights}
        steps.append(dataclasses.replace(step, weights=roles))
    return dataclasses.replace(plan, steps=tuple(steps), weights=weights)


# What matrices have become, by name, precision and orientation: steps that shared one still do.
_Made = dict[tuple[str, str, bool], dict[str, Constant]]


def _stored(plan: Plan, step: Step, made: _Made) -> dict[str, list[Constant]]:
    """What a step's matrices become, by role; nothing where they stay."""
    precision = step.fields.get("precision")
    if "weight" not in step.weights or precision not in ("bf16", "int8"):
        return {}
    transposed = step.fields["transposed"]
    found: dict[str, list[Constant]] = {}
    for name in step.weights["weight"]:
        if (name, precision, transposed) not in made:
            # Another step may read the same array the other way round: its outputs are others.
            other = (name, precision, not transposed) in made
            label = f"{name}.transposed" if other else name
            try:
                stored = _stored_matrix(plan.weights[name].array, precision, transposed, label)
            except InvalidInputError as error:
                raise InvalidInputError(f"step {step.name!r}, weight {name!r}: {error}") from None
            made[name, precision, transposed] = stored
        for role, constant in made[name, precision, transposed].items():
            found.setdefault(role, []).append(constant)
    return found


def _stored_matrix(
    array: np.ndarray, precision: str, transposed: bool, label: str
) -> dict[str, Constant]:
    if precision == "bf16":
        return {"weight": Constant(f"{label}.bf16", to_bfloat16(array))}
    quantized, scale = quantize_outputs(array.T if transposed else array)
    stored = np.ascontiguousarray(quantized.T if transposed else quantized)
    return {
        "weight": Constant(f"{label}.int8", stored),
        "scale": Constant(f"{label}.scale", scale),
    }
