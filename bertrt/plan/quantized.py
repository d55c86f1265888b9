"""Weights in fewer bits than float32, and plans that state the precision of their steps.

int8: each output of a matrix, `q * scale` with q from -127 to 127 and zero exact. bfloat16: the
upper half of a float32, to nearest, ties to even; numpy has no such type, so its bits are uint16.
Both are what the native engine makes of float32 weights when it is told to compute in int8 or bf16
(csrc/cpu/panel_matrix.cpp), bit for bit. fp8: each output of a matrix, `q * scale` with q in e4m3,
whose bits are uint8: what GPUs make of them (csrc/core/fp8.h), bit for bit.
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
    "fp8_outputs",
    "from_bfloat16",
    "from_e4m3",
    "lowered_steps",
    "product_steps",
    "quantize_outputs",
    "state_precisions",
    "store_quantized",
    "to_bfloat16",
    "to_e4m3",
]

_STEPS = np.float32(127)
_LARGEST_E4M3 = np.float32(448)


def quantize_outputs(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise a matrix symmetrically, each output by itself.

    Args:
        weight: finite float32, shape (outputs, inputs).

    Returns:
        int8 of the same shape, and float32 scales of shape (outputs,).

    Raises:
        InvalidInputError: a weight is not finite.
    """
    scaled, scale = _scaled(weight, _STEPS)
    return np.rint(scaled).astype(np.int8), scale


def fp8_outputs(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise a matrix to e4m3, each output by itself: its largest magnitude becomes 448.

    Args:
        weight: finite float32, shape (outputs, inputs).

    Returns:
        uint8, the codes, of the same shape, and float32 scales of shape (outputs,).

    Raises:
        InvalidInputError: a weight is not finite.
    """
    scaled, scale = _scaled(weight, _LARGEST_E4M3)
    return to_e4m3(scaled), scale


def _scaled(weight: np.ndarray, largest: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Weights in which each output's largest magnitude is `largest`, and what 1 of it is worth."""
    if not np.isfinite(weight).all():
        raise InvalidInputError("weights that are not finite cannot be quantised")
    limit = np.abs(weight).max(axis=1)
    scale = limit / largest
    # An output whose steps would be denormals is zero, as they are to the engine.
    scale[scale < np.finfo(np.float32).tiny] = 0
    inverse = np.divide(largest, limit, out=np.zeros_like(limit), where=scale > 0)
    return weight * inverse[:, None], scale


def to_e4m3(values: np.ndarray) -> np.ndarray:
    """The codes of the nearest e4m3 numbers, ties to even: uint8. What is beyond 448 becomes 448;
    NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    sign, size = bits >> 24 & 0x80, bits & 0x7FFFFFFF
    # Below 2^-6 steps are of 2^-9: adding 2^14 leaves them in the last bits of the sum, rounded.
    small = np.where(size < 0x3C800000, size, 0).astype(np.uint32).view(np.float32)
    steps = (small + np.float32(2**14)).view(np.uint32) - 0x46800000
    # The exponent's bias goes from 127 to 7, 20 bits of the fraction go.
    normal = (size - 0x3C000000 + 0x7FFFF + (size >> 20 & 1)) >> 20
    code = np.where(size < 0x3C800000, steps, normal)
    code = np.where(size >= 0x43E00000, 0x7E, code)
    return (sign | np.where(size > 0x7F800000, 0x7F, code)).astype(np.uint8)


def from_e4m3(codes: np.ndarray) -> np.ndarray:
    """The float32 values of e4m3 codes."""
    return _E4M3[codes]


def _e4m3_values() -> np.ndarray:
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, (codes & 7).astype(np.float32)
    size = np.where(exponent == 0, fraction, 8 + fraction) * np.exp2(np.maximum(exponent, 1) - 10.0)
    size[codes & 0x7F == 0x7F] = np.nan
    return np.where(codes & 0x80, -size, size).astype(np.float32)


_E4M3 = _e4m3_values()


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


def lowered_steps(plan: Plan, precision: str) -> list[Step]:
    """The steps that run in `precision` where all do: of `product_steps` all, but for attention in
    fp8, which has none."""
    return [step for step in product_steps(plan) if precision != "fp8" or step.weights]


def state_precisions(plan: Plan, precisions: Mapping[str, str]) -> Plan:
    """A plan in which some steps state their precision; the weights are as they were.

    Args:
        plan: a plan that states none.
        precisions: "fp32", "bf16", "int8" or "fp8" by the names of steps that compute products.
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
        InvalidInputError: a matrix that is to be int8 or fp8 holds numbers that are not finite; the
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
    if "weight" not in step.weights or precision not in ("bf16", "int8", "fp8"):
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
    quantize = fp8_outputs if precision == "fp8" else quantize_outputs
    quantized, scale = quantize(array.T if transposed else array)
    stored = np.ascontiguousarray(quantized.T if transposed else quantized)
    return {
        "weight": Constant(f"{label}.{precision}", stored),
        "scale": Constant(f"{label}.scale", scale),
    }
