"""From graph to plan: the ordered passes, and the coverage report.

Example::

    plan, coverage = compile_graph(read_mxnet("model-symbol.json", "model-0000.params"))
    print(coverage)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType

from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.graph.ir import Graph, Node
from bertrt.graph.passes import (
    Match,
    NoMatchError,
    attention,
    batch_axis,
    embed,
    first_token,
    gather_positions,
    gelu,
    layer_norm,
    linear,
    qkv,
    rows,
    sequence_axis,
)
from bertrt.graph.plan import INPUTS, STEP_OPS, Plan, Step

__all__ = ["Coverage", "Fused", "Unfused", "apply_pass", "compile_graph", "output_names"]

# In this order: a pass may build on what those before it have fused.
PASSES: tuple[ModuleType, ...] = (
    gelu,
    embed,
    attention,
    qkv,
    linear,
    layer_norm,
    rows,
    first_token,
    gather_positions,
)


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


def compile_graph(graph: Graph) -> tuple[Plan, Coverage]:
    """Fuse a graph, in place, and lay out its plan.

    Raises UnsupportedModelError, with the coverage report in its message, when a part of the model
    stays unfused or is not one that a plan can say.
    """
    layers = _layers_of(graph)
    coverage = Coverage(graph.origin)
    names = output_names(graph)
    for module in PASSES:
        apply_pass(graph, module, layers, coverage)
    # Where a pass stopped matters only if no other pass has taken the place up since.
    unfused = {n.name: n for n in graph.nodes.values() if n.op not in (*STEP_OPS, rows.STEP)}
    coverage.unfused = [e for e in coverage.unfused if e.node in unfused or e.anchor in unfused]
    told = {name for entry in coverage.unfused for name in (entry.node, entry.anchor)}
    left: dict[str, list[Node]] = {}
    for node in unfused.values():
        if node.name not in told:
            left.setdefault(layers[node.output], []).append(node)
    for layer, nodes in left.items():
        listed = ", ".join(f"{node.name!r} ({node.op})" for node in nodes)
        name = nodes[0].name
        coverage.unfused.append(Unfused(layer, "no pass", name, name, f"left over: {listed}"))
    if coverage.unfused:
        first = coverage.unfused[0]
        raise UnsupportedModelError(
            f"{graph.origin}: {first.layer} is not fused: pass {first.fusion} stopped at node "
            f"{first.node!r}: {first.reason}\n{coverage}"
        )
    return _lay_out(graph, names), coverage


def apply_pass(
    graph: Graph,
    module: ModuleType,
    layers: dict[str, str] | None = None,
    coverage: Coverage | None = None,
) -> None:
    """Run one pass over a graph, in place, and note in ``coverage`` what it did."""
    name = module.__name__.rpartition(".")[2]
    for node in list(graph.nodes.values()):
        if graph.nodes.get(node.name) is not node:
            continue  # fused meanwhile
        try:
            match: Match | None = module.match(graph, node)
        except NoMatchError as stop:
            if coverage is not None and layers is not None:
                layer = layers.get(node.output, "?")
                coverage.unfused.append(Unfused(layer, name, node.name, stop.node, stop.reason))
            continue
        if match is None:
            continue
        before = len(graph.nodes)
        graph.replace(match.last, match.fused)
        if coverage is not None and layers is not None:
            layer, count = layers[match.fused.output], before - len(graph.nodes) + 1
            coverage.fused.append(Fused(layer, name, match.fused.op, match.fused.name, count))


def output_names(graph: Graph) -> dict[str, str]:
    """The public name of every output, by what it is: value -> name.

    Works on a graph before fusion. An output that is none of the known ones keeps its name. Raises
    UnsupportedModelError for a graph whose first input is not (batch, sequence), both free.
    """
    first = graph.shape(graph.inputs[0]) if graph.inputs else ()
    if len(first) != 2 or first[0] == first[1] or not all(isinstance(d, str) for d in first):
        raise UnsupportedModelError(
            f"{graph.origin}: the first input has shape {first}, expected token ids of a free "
            "batch and sequence length"
        )
    batch, length = batch_axis(graph), sequence_axis(graph)
    # The other inputs with two axes: positions in the sequence
    counts = {graph.shape(v)[1] for v in graph.inputs if len(graph.shape(v)) == 2} - {length}
    names: dict[str, str] = {}
    for own, value in graph.outputs.items():
        shape = graph.shape(value)
        maker = graph.producer(value)
        name = own
        if shape[:2] == (batch, length) and len(shape) == 3:
            while maker is not None and maker.op in ("Transpose", "Where"):
                maker = graph.producer(maker.inputs[1 if maker.op == "Where" else 0])
            if maker is not None and maker.op == "LayerNormalization":
                name = "sequence_output"
        elif len(shape) == 2 and shape[0] == batch and isinstance(shape[1], int):
            if maker is not None and maker.op == "Tanh":
                name = "pooled_output"
            elif len(graph.outputs) == 1:
                name = "logits"
            else:
                name = "next_sentence_classifier_output"
        elif len(shape) == 3 and shape[0] == batch and shape[1] in counts:
            name = "masked_lm_outputs"
        names[value] = name if name not in names.values() else own
    if len(names) != len(graph.outputs):
        raise UnsupportedModelError(f"{graph.origin}: two outputs are the same value")
    return names


# Layers


def _layer_order(layer: str) -> tuple[int, int]:
    order = {"inputs": 0, "embeddings": 1, "heads": 3}
    return (2, int(layer.split()[1])) if layer.startswith("layer ") else (order.get(layer, 4), 0)


def _layers_of(graph: Graph) -> dict[str, str]:
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


# Laying out the plan


def _lay_out(graph: Graph, names: dict[str, str]) -> Plan:
    roles = _input_roles(graph)
    masks = {node.attrs["mask"] for node in graph.nodes.values() if "mask" in node.attrs}
    if len(masks) > 1:
        raise UnsupportedModelError(
            f"{graph.origin}: padding is masked in some places and not in others: attention and "
            "the encoder's output must all use valid_length, or none of them"
        )
    steps: list[Step] = []
    step_of: dict[str, str] = {}  # value in the graph -> value in the plan
    namer = _StepNamer(names)

    def step_value(value: str) -> str:
        if value not in step_of:
            raise UnsupportedModelError(
                f"{graph.origin}: {value!r} is an input or a parameter where rows are expected"
            )
        return step_of[value]

    for node in graph.nodes.values():
        if node.op == rows.STEP:
            step_of[node.output] = step_value(node.inputs[0])
            continue
        inputs = tuple(step_value(value) for value in node.inputs if value not in graph.inputs)
        name = namer.name(node, inputs)
        step_of[node.output] = name
        steps.append(Step(node.op, name, inputs, name, dict(node.weights), dict(node.attrs)))
    used = dict.fromkeys(v for step in steps for group in step.weights.values() for v in group)
    for value in used:
        if str(graph.types[value].dtype) != "float32":
            raise UnsupportedModelError(
                f"{graph.origin}: parameter {value!r} is {graph.types[value].dtype}, "
                "expected float32; cast the model before exporting it"
            )
    try:
        return Plan(
            roles,
            tuple(steps),
            {names[value]: step_value(value) for value in graph.outputs.values()},
            {value: graph.constants[value] for value in used},
        )
    except ModelFormatError as error:  # fused completely, into something that no BERT is
        raise UnsupportedModelError(f"{graph.origin}: {error}") from None


def _input_roles(graph: Graph) -> dict[str, str | None]:
    """Which input of the source is which, from the fused nodes that read it."""
    meanings = {
        embed.STEP: ("token_ids", "token_types"),
        attention.STEP: ("valid_length",),
        rows.STEP: ("valid_length",),
        gather_positions.STEP: ("masked_positions",),
    }
    roles: dict[str, str | None] = dict.fromkeys(INPUTS)
    for node in graph.nodes.values():
        read = [value for value in node.inputs if value in graph.inputs]
        for value, meaning in zip(read, meanings.get(node.op, ()), strict=False):
            if roles[meaning] not in (None, graph.sources[value]):
                raise UnsupportedModelError(
                    f"{graph.origin}: inputs {roles[meaning]!r} and {graph.sources[value]!r} "
                    f"are both used as {meaning}"
                )
            roles[meaning] = graph.sources[value]
    return roles


class _StepNamer:
    """Names for the steps, as they appear in plans and traces."""

    def __init__(self, outputs: dict[str, str]) -> None:
        self.outputs = outputs
        self.layer = -1
        self.kinds: dict[str, str] = {}
        self.taken: set[str] = set()

    def name(self, node: Node, inputs: tuple[str, ...]) -> str:
        kind = self.kinds[inputs[0]] if inputs else "tokens"
        kind = {"first_token": "seqs", "gather_positions": "positions"}.get(node.op, kind)
        if node.op == "qkv_linear":
            self.layer += 1
        name = self._base(node, kind)
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        self.kinds[name] = kind
        return name

    def _base(self, node: Node, kind: str) -> str:
        if node.op in ("embed_layer_norm", "first_token", "gather_positions"):
            return {"embed_layer_norm": "embeddings"}.get(node.op, node.op)
        if kind == "tokens":
            layer = f"layer{self.layer}"
            if node.op == "linear_add_layer_norm":
                first = f"{layer}.attention_output"
                return first if first not in self.taken else f"{layer}.ffn_output"
            part = {"qkv_linear": "qkv", "linear": "ffn"}.get(node.op, node.op)
            return f"{layer}.{part}"
        if kind == "seqs":
            output = self.outputs.get(node.output)
            tanh = node.attrs.get("activation") == "tanh"
            return "pooler" if tanh else output or node.op
        part = "decoder" if node.output in self.outputs else node.op
        return f"masked_lm.{part}"
