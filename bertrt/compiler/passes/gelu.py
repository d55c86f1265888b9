"""Recognise a GELU that an exporter has written out.

::

    x ─┬► Div √2 ──► Erf ──► Add 1 ──► Mul ──► y          x Φ(x), in any order of operands
       └► Mul 0.5 ──────────────────────┘

    x ──┬──────────────────────────────► Mul 0.5 ─────────────────────────┐
        ├──► Pow 3 ──► Mul 0.044715 ──┐                                   ▼
        └─────────────────────────────┴► Add ──► Mul √(2/π) ──► Tanh ──► Add 1 ──► Mul ──► y

become ``Gelu``, with ``approximate`` "none" or "tanh". Which of the two is told by what it
computes: they differ by up to 4.7e-4, ten times the bound here, which leaves room for constants in
half precision.
"""

from __future__ import annotations

import numpy as np

from bertrt.compiler.evaluate import EvaluationError, compute, evaluate
from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import Match, NoMatchError

_BOUND = 5e-5
_GRID = np.linspace(-6.0, 6.0, 49)
_STEPS = ("Add", "Div", "Mul", "Pow", "Sub")
_FARTHEST = 6  # nodes from the Erf or Tanh to x, or to y


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at every Erf, and at a Tanh of something computed; another Tanh is left alone."""
    if node.op not in ("Erf", "Tanh"):
        return None
    for x in _above(graph, node):
        for last in _below(graph, node):
            try:
                found = evaluate(graph, last.output, {x: _GRID})
            except EvaluationError:
                continue
            for kind in ("none", "tanh"):
                (expected,) = compute("Gelu", {"approximate": kind}, [_GRID])
                if found.shape == expected.shape and np.abs(found - expected).max() < _BOUND:
                    return Match(last, Node("Gelu", "", (x,), (), {"approximate": kind}))
    if node.op == "Erf":
        raise NoMatchError(node, "what is around it is no GELU")
    return None


def _above(graph: Graph, node: Node) -> list[str]:
    """Values that may be x, the nearest first."""
    found = dict.fromkeys(node.inputs)
    for value in node.inputs:
        at = [value]
        for _ in range(_FARTHEST):
            makers = [maker for v in at if (maker := graph.producer(v)) and maker.op in _STEPS]
            at = [v for maker in makers for v in maker.inputs if not graph.is_parametric(v)]
            found |= dict.fromkeys(at)
    return list(found)


def _below(graph: Graph, node: Node) -> list[Node]:
    """Nodes that may compute y, the farthest first."""
    found: dict[str, Node] = {}
    at = [node]
    for _ in range(_FARTHEST):
        at = [user for n in at for user in graph.users(n.output) if user.op in _STEPS]
        found |= {user.name: user for user in at}
    return list(found.values())[::-1]
