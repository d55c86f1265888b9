"""Fuse multi-head self-attention into one ``attention`` step.

::

    qkv (sequence, batch, 3 hidden)
     └► Reshape (sequence, batch*heads, 3 head_dim) ► Transpose ► Split

    Split
     ├─ query ► Mul scale ──┐
     ├─ key ──► Transpose ──┴► MatMul ► Where(mask, ., lowest) ► Softmax ► Where(mask, ., 0)
     └─ value ─────────────────────────────────────────────────────────┐        │
    context (sequence, batch, hidden) ◄── Reshape ◄── Transpose ◄── MatMul ◄────┘

    mask = position < length:  Less(Range, Unsqueeze(Reshape(Expand(Reshape(valid_length)))))

Both Where, or none of them, may be absent; the Reshapes are, where there is one head.
"""

from __future__ import annotations

from bertrt.graph.ir import Graph, Node
from bertrt.graph.passes import (
    Match,
    NoMatchError,
    batch_axis,
    expect,
    expect_user,
    range_over,
    sequence_axis,
)
from bertrt.graph.types import divide, product

STEP = "attention"
_LOWEST = -1e30  # a masked score is this or lower: its probability is exactly 0 in float32


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at every Softmax."""
    if node.op != "Softmax":
        return None
    if node.attrs["axis"] != len(graph.shape(node.output)) - 1:
        raise NoMatchError(node, f"expected the last axis, found axis {node.attrs['axis']}")

    # Up to the projection
    scores, mask = node.inputs[0], None
    masked = graph.producer(scores)
    if masked is not None and masked.op == "Where":
        mask, scores, lowest = masked.inputs
        if (graph.scalar(lowest) or 0.0) > _LOWEST:
            raise NoMatchError(
                masked, f"masked scores become {graph.scalar(lowest)}, not the lowest"
            )
    matmul = expect(graph, scores, "MatMul", "query times key")
    scaled = expect(graph, matmul.inputs[0], "Mul", "query times scale")
    scale = graph.scalar(scaled.inputs[1])
    if scale is None:
        raise NoMatchError(scaled, "the scale is not a constant")
    turned_key = expect(graph, matmul.inputs[1], "Transpose", "key transposed", perm=(0, 2, 1))
    split = expect(graph, scaled.inputs[0], "Split", "query, key and value", axis=2)
    if (scaled.inputs[0], turned_key.inputs[0]) != split.outputs[:2] or len(split.outputs) != 3:
        raise NoMatchError(split, "query and key are not the first two of its three parts")
    turned = expect(graph, split.inputs[0], "Transpose", "heads first", perm=(1, 0, 2))
    qkv = _before_reshape(graph, turned.inputs[0])
    heads, head_dim = _heads(graph, qkv, turned)
    lengths = () if mask is None else (_lengths(graph, mask, heads),)

    # Down to the context
    last_of_scores = node
    if mask is not None:
        last_of_scores = expect_user(graph, node, "Where", "probability 0 beyond the length")
        if last_of_scores.inputs[0] != mask or graph.scalar(last_of_scores.inputs[2]) != 0:
            raise NoMatchError(last_of_scores, "expected the mask of the scores, and 0 elsewhere")
    context = expect_user(graph, last_of_scores, "MatMul", "probabilities times value")
    if context.inputs != (last_of_scores.output, split.outputs[2]):
        raise NoMatchError(context, "expected probabilities times the third part of the projection")
    last = expect_user(graph, context, "Transpose", "sequence first", perm=(1, 0, 2))
    if heads > 1:
        last = expect_user(graph, last, "Reshape", "heads side by side")
    expected = (sequence_axis(graph), batch_axis(graph), heads * head_dim)
    if graph.shape(last.output) != expected:
        raise NoMatchError(last, f"expected {expected}, found {graph.types[last.output]}")

    attrs = {
        "heads": heads,
        "head_dim": head_dim,
        "scale": scale,
        "mask": "none" if mask is None else "valid_length",
    }
    return Match(last, Node(STEP, "", (qkv, *lengths), (), attrs))


def _before_reshape(graph: Graph, value: str) -> str:
    node = graph.producer(value)
    return node.inputs[0] if node is not None and node.op == "Reshape" else value


def _heads(graph: Graph, qkv: str, turned: Node) -> tuple[int, int]:
    batch, length = batch_axis(graph), sequence_axis(graph)
    found = graph.shape(turned.inputs[0])
    heads = divide(found[1], batch)
    width = found[2]
    if isinstance(heads, int) and isinstance(width, int) and width % 3 == 0:
        expected = (length, product([batch, heads]), width)
        if found == expected and graph.shape(qkv) == (length, batch, heads * width):
            return heads, width // 3
    raise NoMatchError(
        turned,
        f"expected (sequence, batch*heads, 3*head_dim) of (sequence, batch, 3*hidden), "
        f"found {graph.types[turned.inputs[0]]} of {graph.types[qkv]}",
    )


def _lengths(graph: Graph, mask: str, heads: int) -> str:
    """The input of lengths that a mask (batch*heads, 1, sequence) is made of."""
    batch = batch_axis(graph)
    less = expect(graph, mask, "Less", "position before length")
    if not range_over(graph, less.inputs[0], sequence_axis(graph)):
        raise NoMatchError(less, "its left side is not the positions 0, 1, 2, ...")
    value = expect(graph, less.inputs[1], "Unsqueeze", "length of each head").inputs[0]
    per_head = expect(graph, _before_reshape(graph, value), "Expand", "length for all heads")
    vector = expect(graph, per_head.inputs[0], "Reshape", "length as a column").inputs[0]
    shapes = [graph.shape(v) for v in (vector, per_head.inputs[0], per_head.output)]
    if vector not in graph.inputs or shapes != [(batch,), (batch, 1), (batch, heads)]:
        raise NoMatchError(per_head, "the lengths are not one input number for each sequence")
    if graph.shape(less.output) != (product([batch, heads]), 1, sequence_axis(graph)):
        raise NoMatchError(less, f"the mask is {graph.types[less.output]}")
    return vector
