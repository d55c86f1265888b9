"""Recognise the attention probabilities that a model returns: an ``attention_weights`` step.

::

    Softmax ► mask (batch*heads, sequence, sequence)
     ├─► MatMul ... (the attention itself)
     └─► Reshape (batch, heads, sequence, sequence)

or the Softmax itself where it is by head.

The attention pass, and that of its projections, let the step read what the attention reads. It is
computed where it is asked for only: the attention never writes its probabilities down.
"""

from __future__ import annotations

from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import Match, batch_axis, sequence_axis
from bertrt.compiler.passes.attention import WEIGHTS

STEP = WEIGHTS


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at an output that is a Reshape by head, or a Softmax by head; runs before the
    attention pass."""
    if node.op not in ("Reshape", "Softmax") or node.output not in graph.outputs.values():
        return None
    batch, length = batch_axis(graph), sequence_axis(graph)
    shape = graph.shape(node.output)
    if len(shape) != 4 or (shape[0], *shape[2:]) != (batch, length, length):
        return None
    if node.op == "Reshape":
        return Match(node, Node(STEP, "", node.inputs[:1], ()))
    # The attention reads it, too: what is returned gets a name of its own.
    own = f"{node.output}.returned"
    nodes = list(graph.nodes.values())
    behind = nodes[nodes.index(node) + 1]
    graph.place(behind, Node(STEP, own, (node.output,), (own,)), graph.types[node.output])
    graph.outputs = {
        name: own if value == node.output else value for name, value in graph.outputs.items()
    }
    return None
