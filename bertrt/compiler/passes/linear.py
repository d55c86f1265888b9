"""Fuse a matrix product with its bias and activation into one ``linear`` step.

::

    weight ──► Transpose ─┐
    x ────────────────────┴► MatMul ──► Add bias ──► Relu | Gelu | Tanh ──► y

Bias and activation may be absent, and so may the Transpose: then the weight is stored (in, out).
"""

from __future__ import annotations

from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import Match, NoMatchError
from bertrt.plan.weights import Weights

STEP = "linear"


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at every MatMul by a parameter; runs after the attention passes."""
    if node.op != "MatMul":
        return None
    weight, transposed = node.inputs[1], True
    turned = graph.producer(weight)
    if turned is not None and turned.op == "Transpose" and turned.attrs["perm"] == (1, 0):
        weight, transposed = turned.inputs[0], False
    if not graph.is_parametric(weight):
        return None
    if weight not in graph.constants or len(graph.shape(weight)) != 2:
        raise NoMatchError(
            node, "its right side is computed from parameters, expected a stored matrix"
        )
    weights: Weights = {"weight": (weight,)}
    last = node
    user = graph.only_user(last.output)
    if user is not None and user.op == "Add" and user.inputs[0] == last.output:
        bias = user.inputs[1]
        if bias in graph.constants and graph.shape(bias) == graph.shape(node.output)[-1:]:
            weights["bias"] = (bias,)
            last = user
    activation = "none"
    user = graph.only_user(last.output)
    if user is not None and user.op == "Sigmoid" and user.output not in graph.outputs.values():
        raise NoMatchError(user, "expected the activation Relu, Gelu or Tanh, found Sigmoid")
    if user is not None and (name := _activation(user)) is not None:
        activation, last = name, user
    attrs = {"activation": activation, "transposed": transposed}
    return Match(last, Node(STEP, "", node.inputs[:1], (), attrs, weights))


def _activation(node: Node) -> str | None:
    if node.op == "Gelu":
        return {"none": "gelu_erf", "tanh": "gelu_tanh"}[node.attrs["approximate"]]
    return {"Relu": "relu", "Tanh": "tanh"}.get(node.op)
