"""The fusion passes: one pattern a file, each with a drawing of the nodes it matches.

A pass is a module with a ``match(graph, node)`` function. It is asked about every node in turn and

* returns None when the node is not where its pattern is anchored;
* returns a :class:`Match` when the whole pattern is there: the last node of it, and the fused node
  that takes the last node's place;
* raises :class:`NoMatchError` when the pattern begins at the node and then breaks off, naming the
  node where it breaks off and why. That sentence ends up in the coverage report.

All sizes of the graph are numbers here. Where exporters spell one meaning in many ways, a pass
finds the ends of it and looks at what is computed between (:mod:`bertrt.compiler.evaluate`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from bertrt.compiler.evaluate import EvaluationError, evaluate
from bertrt.compiler.ir import Graph, Node

__all__ = [
    "VIEWS",
    "Match",
    "NoMatchError",
    "batch_axis",
    "elements",
    "expect",
    "expect_user",
    "layout",
    "range_over",
    "row_numbers",
    "sequence_axis",
    "through_views",
    "values_of",
]

# They move elements and change none.
VIEWS = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Split", "Slice", "Gather", "Expand")


@dataclass(frozen=True)
class Match:
    """A match: ``fused`` replaces ``last``, whose outputs it computes.

    ``more`` holds further pairs of a node and what replaces it; ``value``, in place of a fused
    node, an existing value that is the same as the result of ``last``.
    """

    last: Node
    fused: Node | None = None
    more: tuple[tuple[Node, Node], ...] = ()
    value: str | None = None


class NoMatchError(Exception):
    """Where a pattern that had begun breaks off, and why."""

    def __init__(self, node: Node | str, reason: str) -> None:
        self.node = node.name if isinstance(node, Node) else node
        self.reason = reason
        super().__init__(f"at {self.node}: {reason}")


def expect(graph: Graph, value: str, op: str, role: str, **attrs: object) -> Node:
    """The producer of ``value``, which must be an ``op`` with these attributes."""
    node = graph.producer(value)
    if node is None:
        raise NoMatchError(value, f"expected {op} ({role}), found an input or a parameter")
    return _checked(node, op, role, attrs)


def expect_user(graph: Graph, node: Node, op: str, role: str, **attrs: object) -> Node:
    """The only reader of a node's result, which must be an ``op`` with these attributes."""
    user = graph.only_user(node.output)
    if user is None:
        raise NoMatchError(
            node, f"its result must be read by {op} ({role}) alone, and it is also used elsewhere"
        )
    return _checked(user, op, role, attrs)


def _checked(node: Node, op: str, role: str, attrs: dict[str, object]) -> Node:
    if node.op != op:
        raise NoMatchError(node, f"expected {op} ({role}), found {node.op}")
    for key, value in attrs.items():
        if node.attrs.get(key) != value:
            raise NoMatchError(
                node, f"expected {key} {value} ({role}), found {node.attrs.get(key)}"
            )
    return node


def batch_axis(graph: Graph) -> int | str:
    """The extent of the batch: the first of the first input with two axes."""
    return _axes(graph)[0]


def sequence_axis(graph: Graph) -> int | str:
    """The extent of the sequence: the second of the first input with two axes."""
    return _axes(graph)[1]


def _axes(graph: Graph) -> tuple[int | str, int | str]:
    for value in graph.inputs:
        shape = graph.shape(value)
        if len(shape) == 2:
            return shape[0], shape[1]
    return 0, 0


def range_over(graph: Graph, value: str, extent: int | str) -> bool:
    """Whether ``value`` is 0, 1, ... up to ``extent``."""
    node = graph.producer(value)
    if node is None:
        array = graph.array(value)
        return array is not None and np.array_equal(array, np.arange(int(extent)))
    return (
        node.op == "Range"
        and graph.scalar(node.inputs[0]) == 0
        and graph.scalar(node.inputs[2]) == 1
        and graph.shape(value) == (extent,)
    )


# Rows: how the tokens of a batch lie in a value


def layout(graph: Graph, value: str) -> str | None:
    """How token rows lie in a value: "batch first" (batch, sequence, width), "sequence first"
    (sequence, batch, width) or "flat" (batch * sequence, width); None where it holds none."""
    batch, length = _axes(graph)
    shape = graph.shape(value)
    if len(shape) == 3 and shape[:2] == (batch, length):
        return "batch first"
    if len(shape) == 3 and shape[:2] == (length, batch):
        return "sequence first"
    if len(shape) == 2 and shape[0] == int(batch) * int(length):
        return "flat"
    return None


def row_numbers(graph: Graph, kind: str) -> np.ndarray:
    """(batch, sequence): which row of a value with this layout holds which token."""
    batch, length = map(int, _axes(graph))
    if kind == "sequence first":
        return np.arange(length * batch).reshape(length, batch).T
    return np.arange(batch * length).reshape(batch, length)


def through_views(graph: Graph, value: str) -> tuple[str, float]:
    """What ``value`` shows, looking through views and scalings: the value behind it, and the
    product of the scales."""
    factor = 1.0
    while (node := graph.producer(value)) is not None:
        if node.op in VIEWS and not graph.is_parametric(node.inputs[0]):
            value = node.inputs[0]
        elif node.op in ("Mul", "Div") and (number := graph.scalar(node.inputs[1])) is not None:
            factor = factor * number if node.op == "Mul" else factor / number
            value = node.inputs[0]
        else:
            break
    return value, factor


def elements(graph: Graph, value: str, base: str, factor: float = 1.0) -> np.ndarray:
    """Which element of ``base``, counted row-major, each element of ``value`` shows.

    ``value`` shows ``base`` through views, scaled by ``factor``. Raises NoMatchError where
    something else lies between.
    """
    shape = [int(dim) for dim in graph.shape(base)]
    numbers = np.arange(prod(shape), dtype=np.float64).reshape(shape)
    shown = values_of(graph, value, {base: numbers}) / factor
    return np.rint(shown).astype(np.int64)


def values_of(graph: Graph, value: str, known: dict[str, np.ndarray]) -> np.ndarray:
    """:func:`~bertrt.compiler.evaluate.evaluate`, with NoMatchError where that is not possible."""
    try:
        return evaluate(graph, value, known)
    except EvaluationError as error:
        raise NoMatchError(error.node, error.reason) from None
