"""What became of every node of a graph: the report of the passes."""

from __future__ import annotations

from dataclasses import dataclass, field

from bertrt.compiler.ir import Graph

__all__ = ["Coverage", "Fused", "Unfused", "layers_of"]


@dataclass(frozen=True)
class Fused:
    """``count`` nodes of a layer, ending at ``node``, that a pass made one step."""

    layer: str
    fusion: str
    step: str
    node: str
    count: int


@dataclass(frozen=True)
class Unfused:
    """A pattern that began at ``anchor`` and broke off at ``node``, or nodes that none took up."""

    layer: str
    fusion: str
    anchor: str
    node: str
    reason: str


@dataclass
class Coverage:
    """What was fused by which pass, and what stayed unfused, where and why."""

    origin: str
    fused: list[Fused] = field(default_factory=list)
    unfused: list[Unfused] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"fusion of {self.origin}"]
        layers = {done.layer for done in self.fused} | {left.layer for left in self.unfused}
        for layer in sorted(layers, key=_layer_order):
            lines.append(layer)
            for done in self.fused:
                if done.layer == layer:
                    nodes = "1 node" if done.count == 1 else f"{done.count} nodes"
                    lines.append(f"  {done.fusion}: {nodes} up to {done.node!r} -> {done.step}")
            for left in self.unfused:
                if left.layer == layer:
                    begin = "" if left.anchor == left.node else f" (begun at {left.anchor!r})"
                    lines.append(
                        f"  NOT FUSED, {left.fusion}: at {left.node!r}: {left.reason}{begin}"
                    )
        total = sum(done.count for done in self.fused)
        lines.append(
            f"{total} nodes fused, {len(self.unfused)} problems"
            if self.unfused
            else f"{total} nodes fused, nothing left"
        )
        return "\n".join(lines)


def _layer_order(layer: str) -> tuple[int, int]:
    order = {"inputs": 0, "embeddings": 1, "heads": 3}
    return (2, int(layer.split()[1])) if layer.startswith("layer ") else (order.get(layer, 4), 0)


def layers_of(graph: Graph) -> dict[str, str]:
    """The part of the model that each value belongs to.

    A BERT layer ends at its second LayerNormalization, and one normalisation comes before the first
    layer. Nodes that see parameters only belong where their result is used.
    """
    count = sum(node.op == "Softmax" for node in graph.nodes.values())
    depth: dict[str, int] = dict.fromkeys(graph.inputs, 0)
    for node in graph.nodes.values():
        known = [depth[value] for value in node.inputs if value in depth]
        if known:
            after = max(known) + (node.op == "LayerNormalization")
            depth |= dict.fromkeys(node.outputs, after)
    layers: dict[str, str] = {}
    for node in reversed(list(graph.nodes.values())):
        if node.output not in depth:
            users = graph.users(node.output)
            layer = layers[users[0].output] if users else "heads"
        else:
            # A normalisation belongs to the layer that it ends.
            normalised = depth[node.output] - (node.op == "LayerNormalization")
            index = (normalised - 1) // 2
            if normalised == 0:
                whole = graph.types[node.output].dtype in ("int64", "bool")
                layer = "inputs" if whole else "embeddings"
            else:
                layer = f"layer {index}" if index < count else "heads"
        layers |= dict.fromkeys(node.outputs, layer)
    return layers
