"""Recognise the attention probabilities that a model returns: an ``attention_weights`` step.

::

    Softmax ► mask (batch*heads, sequence, sequence)
     ├─► MatMul ... (the attention itself)
     └─► Reshape (batch, heads, sequence, sequence)

The attention pass, and that of its projections, let the step read what the attention reads. It is
computed where it is asked for only: the attention never writes its probabilities down.
"""

from __future__ import annotations

from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import Match, batch_axis, sequence_axis
from bertrt.compiler.passes.attention import WEIGHTS

STEP = WEIGHTS


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at an output that is a Reshape by head; runs before the attention pass."""
    if node.op != "Reshape" or node.output not in graph.outputs.values():
        return None
    batch, length = batch_axis(graph), sequence_axis(graph)
    shape = graph.shape(node.output)
    if len(shape) != 4 or (shape[0], *shape[2:]) != (batch, length, length):
        return None
    return Match(node, Node(STEP, "", node.inputs[:1], ()))
