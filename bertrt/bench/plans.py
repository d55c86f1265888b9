"""A plan as other engines need it: the steps that a batch of tokens asks for, and weights as plain
arrays, however the plan stores them."""

from __future__ import annotations

import numpy as np

from bertrt.plan.plan import Plan
from bertrt.plan.steps import Step

__all__ = ["matrix", "qkv", "runnable_outputs", "runnable_steps", "vector"]


def runnable_outputs(plan: Plan) -> list[str]:
    """The outputs that a batch of tokens alone gives: neither those at masked positions, nor
    attention's probabilities, which read padding."""
    return [
        name
        for name in plan.outputs
        if name != "masked_lm_outputs" and not name.startswith("attention_weights")
    ]


def runnable_steps(plan: Plan) -> list[Step]:
    """The steps that `runnable_outputs` need, in their order."""
    needed = {plan.outputs[name] for name in runnable_outputs(plan)}
    found = []
    for step in reversed(plan.steps):
        if step.output in needed:
            needed.update(step.inputs)
            found.append(step)
    return found[::-1]


def vector(plan: Plan, step: Step, role: str) -> np.ndarray | None:
    """A step's only array in a role; None where it has none."""
    if role not in step.weights:
        return None
    (name,) = step.weights[role]
    return plan.weights[name].array


def matrix(plan: Plan, step: Step) -> np.ndarray:
    """The weight of a linear step: (outputs, inputs)."""
    (name,) = step.weights["weight"]
    array = plan.weights[name].array
    return array.T if step.fields["transposed"] else array


def qkv(plan: Plan, step: Step) -> tuple[np.ndarray, np.ndarray]:
    """Weight (3 hidden, inputs) and bias (3 hidden,): query, then key, then value, each by head."""
    heads, dim = step.fields["heads"], step.fields["head_dim"]
    found = []
    for role in ("weight", "bias"):
        arrays = [plan.weights[name].array for name in step.weights[role]]
        if role == "weight" and step.fields["transposed"]:
            arrays = [array.T for array in arrays]
        if step.fields[f"{role}_layout"] == "interleaved":
            rest = arrays[0].shape[1:]
            by_head = arrays[0].reshape(heads, 3, dim, *rest)
            arrays = [by_head[:, i].reshape(heads * dim, *rest) for i in range(3)]
        found.append(np.concatenate(arrays))
    return found[0], found[1]
