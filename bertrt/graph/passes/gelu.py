"""Fuse the tanh approximation of GELU, which GluonNLP's ``approx_gelu`` writes out.

::

    x ──┬──────────────────────────────► Mul 0.5 ─────────────────────────┐
        ├──► Pow 3 ──► Mul 0.044715 ──┐                                   ▼
        └─────────────────────────────┴► Add ──► Mul √(2/π) ──► Tanh ──► Add 1 ──► Mul ──► y

becomes ``Gelu(approximate="tanh")``. The erf form arrives as one node already.
"""

from __future__ import annotations

import math

from bertrt.graph.ir import Graph, Node
from bertrt.graph.passes import Match, NoMatchError, expect, expect_user


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at a Tanh of something scaled; a Tanh of anything else is left alone."""
    scaled = graph.producer(node.inputs[0]) if node.op == "Tanh" else None
    if scaled is None or scaled.op != "Mul" or graph.scalar(scaled.inputs[1]) is None:
        return None
    _expect_scalar(graph, scaled, math.sqrt(2 / math.pi))
    total = expect(graph, scaled.inputs[0], "Add", "x plus its cube")
    x, cubic = total.inputs
    cubic_scaled = expect(graph, cubic, "Mul", "the cube times 0.044715")
    _expect_scalar(graph, cubic_scaled, 0.044715)
    cube = expect(graph, cubic_scaled.inputs[0], "Pow", "the cube")
    _expect_scalar(graph, cube, 3)
    shifted = expect_user(graph, node, "Add", "tanh plus 1")
    _expect_scalar(graph, shifted, 1)
    last = expect_user(graph, shifted, "Mul", "the product with x/2")
    other = last.inputs[0] if last.inputs[1] == shifted.output else last.inputs[1]
    half = expect(graph, other, "Mul", "x/2")
    _expect_scalar(graph, half, 0.5)
    if not x == cube.inputs[0] == half.inputs[0]:
        raise NoMatchError(last, "the branches do not begin at the same value")
    return Match(last, Node("Gelu", "", (x,), (), {"approximate": "tanh"}))


def _expect_scalar(graph: Graph, node: Node, number: float) -> None:
    found = graph.scalar(node.inputs[1])
    if found is None or not math.isclose(found, number, rel_tol=1e-6):
        raise NoMatchError(node, f"expected the constant {number:.6g}, found {found}")
