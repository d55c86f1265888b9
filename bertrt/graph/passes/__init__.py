"""The fusion passes: one pattern a file, each with a drawing of the nodes it matches.

A pass is a module with a ``match(graph, node)`` function. It is asked about every node in turn and

* returns None when the node is not where its pattern is anchored;
* returns a :class:`Match` when the whole pattern is there: the last node of it, and the fused node
  that takes the last node's place;
* raises :class:`NoMatchError` when the pattern begins at the node and then breaks off, naming the
  node where it breaks off and why. That sentence ends up in the coverage report.
"""

from __future__ import annotations

from dataclasses import dataclass

from bertrt.graph.ir import Graph, Node

__all__ = [
    "Match",
    "NoMatchError",
    "batch_axis",
    "expect",
    "expect_user",
    "range_over",
    "sequence_axis",
]


@dataclass(frozen=True)
class Match:
    """A match: ``fused`` replaces ``last``, whose outputs it computes."""

    last: Node
    fused: Node


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
    """The extent of the batch: the first of the first input."""
    return graph.shape(graph.inputs[0])[0]


def sequence_axis(graph: Graph) -> int | str:
    """The extent of the sequence: the second of the first input."""
    return graph.shape(graph.inputs[0])[1]


def range_over(graph: Graph, value: str, extent: int | str) -> bool:
    """Whether ``value`` is 0, 1, ... up to ``extent``."""
    node = graph.producer(value)
    return (
        node is not None
        and node.op == "Range"
        and graph.scalar(node.inputs[0]) == 0
        and graph.scalar(node.inputs[2]) == 1
        and graph.shape(value) == (extent,)
    )
