"""Recognise a LayerNormalization that an exporter has written out.

As PyTorch before opset 17 writes it::

    x ─┬► ReduceMean ─┐
       └──────────────┴► Sub ─┬► Pow 2 ► ReduceMean ► Add eps ► Sqrt ─┐
                              └───────────────────────────────────────┴► Div ► Mul ► Add

(times gamma, plus beta), and as TensorFlow's converters do::

    x ─┬► ReduceMean ─┬► Sub ► Mul by itself ► ReduceMean ► Add eps ► Sqrt ► Reciprocal ► Mul gamma
       │              │                                                                       │
       │              └──────────────────────────────────► Mul ◄──────────────────────────────┤
       │                                     beta ► Sub ◄───┘                                 │
       │                                             ▼                                        │
       └────────────────────────────────► Mul ────► Add                                       │
                                           └──────────────────────────────────────────────────┘

where the first ``Sub`` may have its operands in the other order.
"""

from __future__ import annotations

from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import Match, NoMatchError, expect


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at a Sqrt of a mean and an epsilon."""
    if node.op != "Sqrt":
        return None
    added = graph.producer(node.inputs[0])
    if added is None or added.op != "Add" or (eps := graph.scalar(added.inputs[1])) is None:
        return None
    variance = graph.producer(added.inputs[0])
    if variance is None or variance.op != "ReduceMean":
        return None
    squared = expect_square(graph, variance.inputs[0])
    centred = expect(graph, squared, "Sub", "x minus its mean")
    x, mean = centred.inputs
    if (made := graph.producer(mean)) is None or made.op != "ReduceMean" or made.inputs[0] != x:
        x, mean = mean, x
    made = expect(graph, mean, "ReduceMean", "mean")
    last_axis = len(graph.shape(x)) - 1
    for reduction in (made, variance):
        axes = graph.array(reduction.inputs[1]) if len(reduction.inputs) > 1 else None
        wanted = axes is not None and [int(a) % (last_axis + 1) for a in axes] == [last_axis]
        if not wanted or not reduction.attrs["keepdims"]:
            raise NoMatchError(reduction, "expected the mean over the last axis")
    if made.inputs[0] != x:
        raise NoMatchError(made, "the mean subtracted is not that of the same value")
    users = {user.op: user for user in graph.users(node.output)}
    if set(users) == {"Div"} and centred.inputs == (x, mean):
        divided = users["Div"]
        if divided.inputs != (centred.output, node.output):
            raise NoMatchError(divided, "expected x minus its mean, divided by the deviation")
        scaled = _user(graph, divided, "Mul", "times gamma")
        last = _user(graph, scaled, "Add", "plus beta")
        gamma, beta = scaled.inputs[1], last.inputs[1]
    elif set(users) == {"Reciprocal"}:
        scaled = _user(graph, users["Reciprocal"], "Mul", "times gamma")
        gamma = scaled.inputs[1]
        last, beta = _shifted(graph, scaled, x, mean)
    else:
        raise NoMatchError(node, f"the deviation is read by {sorted(users)}")
    for value in (gamma, beta):
        if not graph.is_parametric(value):
            raise NoMatchError(last, f"{value!r} is not a parameter")
    fused = Node(
        "LayerNormalization", "", (x, gamma, beta), (), {"axis": last_axis, "epsilon": float(eps)}
    )
    return Match(last, fused)


def expect_square(graph: Graph, value: str) -> str:
    """The value that is squared, by Pow 2 or by itself."""
    node = graph.producer(value)
    if node is not None and node.op == "Pow" and graph.scalar(node.inputs[1]) == 2:
        return node.inputs[0]
    if node is not None and node.op == "Mul" and node.inputs[0] == node.inputs[1]:
        return node.inputs[0]
    raise NoMatchError(node or value, "expected a square (variance)")


def _user(graph: Graph, node: Node, op: str, role: str) -> Node:
    """The one reader of a node's result; its other operand comes second."""
    users = graph.users(node.output)
    if len(users) != 1 or users[0].op != op or users[0].inputs[0] != node.output:
        raise NoMatchError(
            node, f"expected its result in {op} ({role}), found {[user.op for user in users]}"
        )
    return users[0]


def _shifted(graph: Graph, scaled: Node, x: str, mean: str) -> tuple[Node, str]:
    """From the scale on: x times it, plus (beta minus the mean times it)."""
    products = {
        (set(user.inputs) - {scaled.output}).pop(): user
        for user in graph.users(scaled.output)
        if user.op == "Mul" and len(set(user.inputs)) == 2
    }
    if set(products) != {x, mean}:
        raise NoMatchError(scaled, "expected the scale in products with x and with its mean")
    (offset,) = graph.users(products[mean].output) or [products[mean]]
    (last,) = graph.users(products[x].output) or [products[x]]
    if offset.op != "Sub" or offset.inputs[1] != products[mean].output:
        raise NoMatchError(offset, "expected beta minus the scaled mean")
    if last.op != "Add" or set(last.inputs) != {products[x].output, offset.output}:
        raise NoMatchError(last, "expected the scaled x plus the offset")
    return last, offset.inputs[0]
