"""Fuse a projection, the residual it is added to and the normalisation of their sum.

::

    x ──► linear ──┐
    residual ──────┴► Add ──► LayerNormalization ──► y

becomes ``linear_add_layer_norm``. A LayerNormalization of anything else becomes ``layer_norm``.
"""

from __future__ import annotations

from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import Match, NoMatchError
from bertrt.compiler.passes.rows import STEP as ROWS
from bertrt.plan.weights import Weights


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at every LayerNormalization; runs after the linear pass."""
    if node.op != "LayerNormalization":
        return None
    if node.attrs["axis"] != len(graph.shape(node.output)) - 1:
        raise NoMatchError(node, "it normalises more than the last axis")
    if len(node.inputs) != 3 or not all(v in graph.constants for v in node.inputs[1:]):
        raise NoMatchError(node, "gamma and beta are not both parameters")
    eps = node.attrs["epsilon"]
    norm: Weights = {"gamma": (node.inputs[1],), "beta": (node.inputs[2],)}
    total = graph.producer(node.inputs[0])
    if total is None or total.op != "Add":
        return Match(node, Node("layer_norm", "", node.inputs[:1], (), {"eps": eps}, norm))
    if graph.only_user(total.output) is not node:
        raise NoMatchError(total, "the sum is also used outside the normalisation")
    for value, residual in (total.inputs, total.inputs[::-1]):
        linear = _maker(graph, value)
        if (
            linear is not None
            and linear.op == "linear"
            and linear.attrs["activation"] == "none"
            and "bias" in linear.weights
            and graph.only_user(value) is total
            and len(graph.users(linear.output)) == 1
            and graph.shape(value) == graph.shape(residual)
        ):
            attrs = {"eps": eps, "transposed": linear.attrs["transposed"]}
            inputs = (linear.inputs[0], residual)
            weights = linear.weights | norm
            return Match(node, Node("linear_add_layer_norm", "", inputs, (), attrs, weights))
    raise NoMatchError(total, "neither operand is a linear with bias and without activation")


def _maker(graph: Graph, value: str) -> Node | None:
    """What computes rows, however they are laid out."""
    node = graph.producer(value)
    while node is not None and node.op == ROWS and "mask" not in node.attrs:
        node = graph.producer(node.inputs[0])
    return node
