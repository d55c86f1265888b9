"""Fuse the projections that feed an attention into one ``qkv_linear`` step.

::

    x ─┬► MatMul query weight ─► Add query bias ─┐
       ├► MatMul key weight ───► Add key bias ───┼► attention
       └► MatMul value weight ─► Add value bias ─┘

    x ──► MatMul ──► Add ──► attention               (one product for the three of them)

One product has its columns either as query, key, value, or interleaved: by head, then query, key,
value. GluonNLP interleaves three stored arrays in the graph:

::

    query weight ─► Reshape ─┐
    key weight ───► Reshape ─┼► Concat ─► Reshape ─► Transpose ─► MatMul
    value weight ─► Reshape ─┘
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import Match, NoMatchError, expect, values_of
from bertrt.compiler.passes.attention import STEP as ATTENTION
from bertrt.compiler.passes.attention import WEIGHTS
from bertrt.compiler.types import Type
from bertrt.plan.weights import Constant

STEP = "qkv_linear"
_VIEWS = ("Reshape", "Unsqueeze", "Squeeze")  # row-major order stays as it is


@dataclass(frozen=True)
class _Projection:
    added: Node
    x: str
    weight: str
    bias: str
    transposed: bool


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at a fused attention that reads projections; runs after that pass."""
    if node.op != ATTENTION or "columns" not in node.attrs:
        return None
    attrs = dict(node.attrs)
    columns = np.array(attrs.pop("columns"))
    heads, head_dim = attrs["heads"], attrs["head_dim"]
    bases = tuple(dict.fromkeys(node.inputs[:3]))
    parts = [_projection(graph, base, node) for base in bases]
    first = parts[0]
    if len(bases) == 3:
        if not np.array_equal(columns, np.tile(np.arange(heads * head_dim), (3, 1))):
            raise NoMatchError(node, "a projection's columns are not in the order of the heads")
        if len({(part.x, part.transposed) for part in parts}) > 1:
            raise NoMatchError(first.added, "query, key and value are projections of other rows")
        weights = tuple(_stored(graph, part.weight, part.added) for part in parts)
        biases = tuple(_stored(graph, part.bias, part.added) for part in parts)
    elif len(bases) == 1:
        by_head = np.arange(3 * heads * head_dim).reshape(heads, 3, head_dim)
        if np.array_equal(columns, by_head.transpose(1, 0, 2).reshape(3, -1)):
            weights = _interleaved(graph, first.weight, heads)
            biases = _interleaved(graph, first.bias, heads)
        elif np.array_equal(columns.ravel(), np.arange(3 * heads * head_dim)):
            axis = 1 if first.transposed else 0
            weights = _cut(graph, _stored(graph, first.weight, first.added), axis)
            biases = _cut(graph, _stored(graph, first.bias, first.added), 0)
        else:
            raise NoMatchError(
                first.added,
                "the columns of query, key and value are neither side by side nor by head",
            )
    else:
        raise NoMatchError(node, "two of query, key and value share a projection, not the third")
    if graph.shape(biases[0]) != (3 * heads * head_dim // len(biases),):
        raise NoMatchError(first.added, f"bias is {graph.types[biases[0]]}")
    fields = {
        "heads": heads,
        "head_dim": head_dim,
        "weight_layout": _LAYOUT[len(weights)],
        "bias_layout": _LAYOUT[len(biases)],
        "transposed": first.transposed,
    }
    roles = {"weight": weights, "bias": biases}
    kind = graph.types[first.added.output]
    graph.types[first.added.output] = Type(kind.dtype, (*kind.shape[:-1], 3 * heads * head_dim))
    fused = Node(STEP, "", (first.x,), (), fields, roles)
    inputs = (first.added.output, *node.inputs[3:])
    readers = (node, *_weights(graph, node))
    more = tuple((reader, Node(reader.op, "", inputs, (), attrs)) for reader in readers)
    return Match(first.added, fused, more=more)


def _weights(graph: Graph, node: Node) -> list[Node]:
    """The steps that write down the probabilities of an attention."""
    users = dict.fromkeys(user.name for user in graph.users(node.inputs[0]))
    found = [graph.nodes[name] for name in users]
    return [user for user in found if user.op == WEIGHTS and user.inputs == node.inputs]


_LAYOUT = {1: "interleaved", 3: "separate"}


def _projection(graph: Graph, base: str, node: Node) -> _Projection:
    added = expect(graph, base, "Add", "bias of query, key and value")
    # The step's result is ordered [Q | K | V], the graph's is not: nobody else may look.
    if set(graph.users(base)) != {node, *_weights(graph, node)} or base in graph.outputs.values():
        raise NoMatchError(added, "the projection is also used outside the attention")
    matmul = expect(graph, added.inputs[0], "MatMul", "projection to query, key and value")
    weight, transposed = matmul.inputs[1], True
    turned = graph.producer(weight)
    if turned is not None:
        expect(graph, weight, "Transpose", "weight", perm=(1, 0))
        weight, transposed = turned.inputs[0], False
    return _Projection(added, matmul.inputs[0], weight, added.inputs[1], transposed)


def _stored(graph: Graph, value: str, at: Node) -> str:
    """The parameter that ``value`` is; where it is a part of one, that part as a parameter."""
    source = value
    while (maker := graph.producer(source)) is not None and maker.op in ("Split", "Slice"):
        source = maker.inputs[0]
    if source not in graph.constants:
        raise NoMatchError(at, f"{source!r} is not a parameter")
    if source == value:
        return value
    name = f"{value}.part"
    if name not in graph.constants:
        array = np.ascontiguousarray(values_of(graph, value, {}))
        array.flags.writeable = False
        graph.add_constant(Constant(name, array))
    return name


def _cut(graph: Graph, value: str, axis: int) -> tuple[str, ...]:
    """Query, key and value out of one parameter that has them side by side along ``axis``."""
    whole = graph.constants[value]
    names = []
    extent = whole.shape[axis] // 3
    for index, role in enumerate(("query", "key", "value")):
        name, begin, end = f"{value}.{role}", index * extent, (index + 1) * extent
        if axis in (0, -len(whole.shape)):  # still where it is in the file
            part = whole.rows(name, begin, end)
        else:
            cut = whole.array.take(range(begin, end), axis=axis)
            part = Constant(name, np.ascontiguousarray(cut))
        names.append(part.name if part.name in graph.types else graph.add_constant(part))
    return tuple(names)


def _interleaved(graph: Graph, value: str, heads: int) -> tuple[str, ...]:
    """The parameters behind ``value``: one as it is, or three interleaved by head."""
    if value in graph.constants:
        return (value,)
    concat = expect(graph, _base(graph, value), "Concat", "query, key and value interleaved")
    parts = tuple(_base(graph, part) for part in concat.inputs)
    for part in parts:
        if part not in graph.constants:
            raise NoMatchError(concat, f"{part!r} is not a parameter")
    # Everything before the axis of the Concat counts the interleaved groups: one for each head.
    groups = prod(int(dim) for dim in graph.shape(concat.inputs[0])[: concat.attrs["axis"]])
    alike = len({graph.shape(part) for part in concat.inputs}) == 1
    if len(parts) != 3 or groups != heads or not alike:
        raise NoMatchError(concat, f"{len(parts)} parts in {groups} groups; expected 3 in {heads}")
    return parts


def _base(graph: Graph, value: str) -> str:
    node = graph.producer(value)
    while node is not None and node.op in _VIEWS:
        value = node.inputs[0]
        node = graph.producer(value)
    return value
