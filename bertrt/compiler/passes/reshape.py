"""Move reshapes of rows behind what works row by row, until they meet and vanish.

::

    x ──► Reshape ──► op ──► y      becomes      x ──► op ──► Reshape ──► y

    x ──► Reshape ──► Reshape ──► y  becomes      x ──► Reshape ──► y, or x itself

where the Reshape leaves the last axis as it is, and ``op`` treats every row alike: a product with a
stored matrix, a bias, an activation, a normalisation. Exporters flatten (batch, sequence, .) to
matrices around a product, and TensorFlow's put the bias behind the way back.
"""

from __future__ import annotations

from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import Match, layout

_RESHAPES = ("Reshape", "Squeeze", "Unsqueeze")
_UNARY = ("Erf", "Gelu", "LayerNormalization", "Relu", "Tanh")
_WITH_VECTOR = ("Add", "Div", "Mul", "Pow", "Sub")


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at what reads a Reshape."""
    reshape = graph.producer(node.inputs[0]) if node.inputs else None
    if reshape is None or reshape.op not in _RESHAPES or graph.is_parametric(node.output):
        return None
    x = reshape.inputs[0]
    if node.op in _RESHAPES:
        if graph.shape(x) == graph.shape(node.output):
            return Match(node, value=x)
        return Match(node, _reshape(graph, x, graph.shape(node.output)))
    if None in (layout(graph, x), layout(graph, reshape.output)) or not _by_row(graph, node):
        return None
    if graph.shape(x)[-1] != graph.shape(reshape.output)[-1]:
        return None
    inner = graph.insert(node, node.op, (x, *node.inputs[1:]), _attrs(node, len(graph.shape(x))))
    return Match(node, _reshape(graph, inner.output, graph.shape(node.output)))


def _by_row(graph: Graph, node: Node) -> bool:
    if node.op == "LayerNormalization" and node.attrs["axis"] != len(graph.shape(node.output)) - 1:
        return False
    if node.op in _UNARY:
        return True
    if node.op not in (*_WITH_VECTOR, "MatMul") or not graph.is_parametric(node.inputs[1]):
        return False
    return len(graph.shape(node.inputs[1])) == 2 if node.op == "MatMul" else (
        len(graph.shape(node.inputs[1])) <= 1
    )  # fmt: skip


def _attrs(node: Node, rank: int) -> dict[str, object]:
    return node.attrs | ({"axis": rank - 1} if "axis" in node.attrs else {})


def _reshape(graph: Graph, value: str, shape: tuple[int | str, ...]) -> Node:
    return Node("Reshape", "", (value, graph.literal(list(shape), "int64")), ())
