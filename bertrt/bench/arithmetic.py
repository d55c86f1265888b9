"""How much a batch asks of a machine at least: operations and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from bertrt.bench import plans
from bertrt.plan.plan import Plan
from bertrt.plan.steps import Step

__all__ = ["operations", "weight_bytes"]

_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}

_BY_ROW = ("linear", "linear_add_layer_norm", "layer_norm")


def operations(plan: Plan, lengths: Sequence[int] | np.ndarray) -> int:
    """The additions and multiplications of the matrix products that a batch needs.

    Tokens only, no padding; and what the outputs need only: where they read one row a sequence of
    the last layer (a pooler, a classifier), its keys and values for all tokens and everything else
    for that row. Outputs of masked positions and attention's probabilities are not counted.

    Args:
        plan: the model.
        lengths: the tokens of each sequence.
    """
    sizes = np.asarray(lengths, np.int64)
    tokens, seqs = int(sizes.sum()), int((sizes > 0).sum())
    all_rows = _read_for_all_tokens(plan)
    kinds: dict[str, str] = {}
    total = 0
    for step in plans.runnable_steps(plan):
        if step.op == "first_token":
            kinds[step.output] = "seqs"
        else:
            kinds[step.output] = kinds[step.inputs[0]] if step.inputs else "tokens"
        one_a_sequence = kinds[step.output] == "seqs" or step.output not in all_rows
        rows = seqs if one_a_sequence else tokens
        if step.op == "attention":
            # Scores, and the sum of the values: a product each.
            width = step.fields["heads"] * step.fields["head_dim"]
            pairs = tokens if one_a_sequence else int((sizes * sizes).sum())
            total += 4 * width * pairs
        elif step.op == "qkv_linear":
            queries, others = _extents(plan, step)
            total += 2 * (rows * queries + tokens * others)
        elif "weight" in step.weights:
            total += 2 * rows * plans.matrix(plan, step).size
    return total


def weight_bytes(plan: Plan, precision: str) -> int:
    """The bytes of the matrices that token rows are multiplied with, in a precision: a batch reads
    them once at least. Those that layers share count once."""
    products = ("qkv_linear", "linear", "linear_add_layer_norm")
    names = {
        name
        for step in plans.runnable_steps(plan)
        if step.op in products
        for name in step.weights["weight"]
    }
    return sum(prod(plan.weights[name].shape) for name in names) * _BYTES[precision]


def _extents(plan: Plan, step: Step) -> tuple[int, int]:
    """Elements of a projection's weight: the queries', and the keys' and values'."""
    size = sum(prod(plan.weights[name].shape) for name in step.weights["weight"])
    return size // 3, size - size // 3


def _read_for_all_tokens(plan: Plan) -> set[str]:
    """The values of which more than the first tokens' rows are read."""
    found = {plan.outputs[name] for name in plans.runnable_outputs(plan)}
    for step in reversed(plans.runnable_steps(plan)):
        # Attention reads keys and values for all tokens, too; but whether its queries are is what
        # matters here. A projection's own input is read for all.
        passes_on = step.op in (*_BY_ROW, "attention")
        if step.output in found if passes_on else step.op == "qkv_linear":
            found.update(step.inputs)
    return found
