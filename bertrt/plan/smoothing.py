"""Outliers of activations, moved into the weights.

In int8 a row of activations has 255 steps from its lowest value to its highest, so that a few
columns with large values leave few steps to all others. A column of an activation can be divided by
a factor and the matrix that reads it multiplied by the same, where whatever makes the activation
lets a factor through (SmoothQuant: Xiao et al., arXiv:2211.10438). In a post-LN encoder that holds
of

- the context of attention: rows of value, weighted and summed, so that a factor of a column goes
  into the value projection's output, weights and bias;
- the inside of a feed-forward block with ReLU, likewise.

It does not hold of LayerNorm's output: it is the next residual too, which would have to be
multiplied again where it is added, and a plan has no such step. Nor of GELU's.

Factors are powers of two, so that in fp32 no bit of any result changes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass

import numpy as np

from bertrt.plan.plan import Plan
from bertrt.plan.steps import Step
from bertrt.plan.weights import Constant

__all__ = ["Pair", "smooth", "smoothing_pairs"]

# Factors stay between 2^-_MOST and 2^_MOST, far from where float32 under- or overflows.
_MOST = 10


@dataclass(frozen=True)
class Pair:
    """A step that makes an activation, through what lets factors pass, and the one that reads it.

    Attributes:
        maker: ``qkv_linear`` or ``linear``.
        activation: the value that is smoothed.
        reader: ``linear_add_layer_norm`` or ``linear``.
    """

    maker: Step
    activation: str
    reader: Step


def smoothing_pairs(plan: Plan) -> list[Pair]:
    """Where a plan's activations can be smoothed without changing its results."""
    made = {step.output: step for step in plan.steps}
    reads = Counter(value for step in plan.steps for value in step.inputs)
    reads.update(plan.outputs.values())
    # Probabilities are of queries and keys.
    weighed = Counter(step.inputs[0] for step in plan.steps if step.op == "attention_weights")
    owners = Counter(name for step in plan.steps for own in step.weights.values() for name in own)
    pairs = []
    for reader in plan.steps:
        if reader.op not in ("linear", "linear_add_layer_norm"):
            continue
        activation = reader.inputs[0]
        source = made[activation]
        maker = made[source.inputs[0]] if source.op == "attention" else source
        if source.op == "attention":
            passes = reads[source.inputs[0]] == weighed[source.inputs[0]] + 1
        else:
            passes = source.op == "linear" and source.fields["activation"] == "relu"
        own = [
            name for step in (maker, reader) for names in step.weights.values() for name in names
        ]
        if passes and reads[activation] == 1 and all(owners[name] == 1 for name in own):
            pairs.append(Pair(maker, activation, reader))
    return pairs


def smooth(plan: Plan, pair: Pair, largest: np.ndarray) -> Plan:
    """Divide the columns of a pair's activation by powers of two near the factors of SmoothQuant,
    the root of a column's largest magnitude over that of the weights that read it.

    Args:
        plan: has both steps.
        pair: one of `smoothing_pairs`.
        largest: the largest magnitude in each column of the activation: float32, shape (width,).
    """
    (name,) = pair.reader.weights["weight"]
    weight = plan.weights[name].array
    transposed = pair.reader.fields["transposed"]
    read = np.abs(weight).max(axis=1 if transposed else 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        exponents = 0.5 * (np.log2(largest) - np.log2(read))
    used = np.isfinite(exponents)
    if not used.any():
        return plan
    # About their middle: a factor that all columns share changes nothing.
    exponents = np.where(used, exponents - np.median(exponents[used]), 0.0)
    factors = np.exp2(np.clip(np.rint(exponents), -_MOST, _MOST)).astype(np.float32)
    changed = {name: weight * (factors[:, None] if transposed else factors)}
    changed |= _divided(plan, pair.maker, factors)
    weights = plan.weights | {own: Constant(own, array) for own, array in changed.items()}
    return dataclasses.replace(plan, weights=weights)


def _divided(plan: Plan, maker: Step, factors: np.ndarray) -> dict[str, np.ndarray]:
    """A maker's arrays with its outputs, or the values among them, divided."""
    changed = {}
    for role in ("weight", "bias"):
        names = maker.weights.get(role, ())
        if not names:
            continue
        divisors = factors
        if maker.op == "qkv_linear" and maker.fields[f"{role}_layout"] == "separate":
            names = names[2:]
        elif maker.op == "qkv_linear":
            heads, dim = maker.fields["heads"], maker.fields["head_dim"]
            by_head = np.ones((heads, 3, dim), np.float32)
            by_head[:, 2] = factors.reshape(heads, dim)
            divisors = by_head.ravel()
        for name in names:
            array = plan.weights[name].array
            matrix = array.ndim == 2 and not maker.fields["transposed"]
            changed[name] = array / (divisors[:, None] if matrix else divisors)
    return changed
