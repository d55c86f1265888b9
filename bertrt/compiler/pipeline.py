"""From graph to plan: the ordered passes, and the coverage report.

The passes work at fixed small sizes of batch and sequence, where what a graph computes can be
looked at. Every model goes through them at two pairs of sizes, and one plan must come out of both.

Example::

    plan, coverage = compile_graph(read_mxnet("model-symbol.json", "model-0000.params"))
    print(coverage)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import numpy as np

from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import (
    Match,
    NoMatchError,
    attention,
    attention_weights,
    batch_axis,
    elements,
    embed,
    first_token,
    gather_positions,
    gelu,
    layer_norm,
    layout,
    linear,
    normalization,
    qkv,
    reshape,
    row_numbers,
    rows,
    sequence_axis,
    tail,
    through_views,
)
from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.models.onnx.reader import SIZES, open_onnx
from bertrt.plan.plan import INPUTS, STEP_OPS, Plan, Step, output_kind

__all__ = [
    "Coverage",
    "Fused",
    "Unfused",
    "apply_pass",
    "compile_graph",
    "compile_onnx",
    "output_names",
]

# For models with fewer positions than SIZES ask for
_SHORT_SIZES = ((3, 2), (5, 2))
# They give operations that exporters spell in many ways the one spelling that the others know.
SPELLINGS: tuple[ModuleType, ...] = (normalization, gelu, reshape)
# In this order: a pass may build on what those before it have fused.
PASSES: tuple[ModuleType, ...] = (
    embed,
    attention_weights,
    attention,
    qkv,
    rows,
    linear,
    layer_norm,
    first_token,
    gather_positions,
    tail,
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
    """Fuse a graph and lay out its plan. A graph whose sizes are numbers is fused in place.

    Raises UnsupportedModelError, with the coverage report in its message, when a part of the model
    stays unfused or is not one that a plan can say.
    """
    if all(isinstance(dim, int) for value in graph.inputs for dim in graph.shape(value)):
        return _compile(graph, None)
    names = output_names(graph)

    def at(batch: int, length: int) -> tuple[Plan, Coverage]:
        sizes = {"batch": batch, "sequence": length, "num_masked": 4}
        return _compile(graph.bound(sizes), names)

    return _agreed(at)


def compile_onnx(path: str | Path) -> tuple[Plan, Coverage]:
    """Read an ONNX file and lay out its plan.

    Raises what :func:`~bertrt.models.onnx.reader.open_onnx` and :func:`compile_graph` raise.
    """
    read = open_onnx(path)
    return _agreed(lambda batch, length: _compile(read((batch, length)), None))


def _agreed(compiled: Callable[[int, int], tuple[Plan, Coverage]]) -> tuple[Plan, Coverage]:
    """The one plan that a model has at several sizes of batch and sequence."""
    try:
        (plan, coverage), *others = (compiled(*sizes) for sizes in SIZES)
    except ModelFormatError as error:
        try:
            (plan, coverage), *others = (compiled(*sizes) for sizes in _SHORT_SIZES)
        except ModelFormatError:
            raise error from None
    for other, _ in others:
        alike = (plan.steps, plan.outputs, plan.inputs, set(plan.weights)) == (
            other.steps, other.outputs, other.inputs, set(other.weights)
        )  # fmt: skip
        if not alike or not all(
            np.array_equal(constant.array, other.weights[name].array)
            for name, constant in plan.weights.items()
            if constant.file is None
        ):
            raise UnsupportedModelError(
                f"{coverage.origin}: the model is another one for another size of batch or sequence"
            )
    return plan, coverage


def _compile(graph: Graph, names: dict[str, str] | None) -> tuple[Plan, Coverage]:
    """Fuse a graph of known sizes; ``names`` are those of its outputs, by value, if they are
    known."""
    batch, length = batch_axis(graph), sequence_axis(graph)
    if not batch or batch == length:
        raise UnsupportedModelError(
            f"{graph.origin}: the first input with two axes has shape ({batch}, {length}), "
            "expected token ids of a batch and a sequence length that differ, or are free"
        )
    coverage = Coverage(graph.origin)
    for module in SPELLINGS:
        apply_pass(graph, module, {}, coverage)
    layers = _layers_of(graph)
    coverage.fused = [replace(done, layer=layers.get(done.node, "?")) for done in coverage.fused]
    coverage.unfused = [replace(e, layer=layers.get(e.anchor, "?")) for e in coverage.unfused]
    for module in PASSES:
        apply_pass(graph, module, layers, coverage)
    if names is None:
        names = _names_by_structure(graph)
    # Where a pass stopped matters only if no other pass has taken the place up since.
    unfused = {n.name: n for n in graph.nodes.values() if n.op not in (*STEP_OPS, rows.STEP)}
    coverage.unfused = [e for e in coverage.unfused if e.node in unfused or e.anchor in unfused]
    told = {name for entry in coverage.unfused for name in (entry.node, entry.anchor)}
    left: dict[str, list[Node]] = {}
    for node in unfused.values():
        if node.name not in told:
            left.setdefault(layers.get(node.output, "?"), []).append(node)
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
        if match.fused is None or match.value is not None:
            graph.forward(match.last, match.value or "")
            continue
        graph.replace(match.last, match.fused)
        for old, new in match.more:
            graph.replace(old, new)
        if coverage is not None and layers is not None:
            layer, count = layers.get(match.fused.output, "?"), before - len(graph.nodes) + 1
            coverage.fused.append(Fused(layer, name, match.fused.op, match.fused.name, count))


# What an output is that ends in this step
_TAIL_OUTPUTS = {
    "softmax": "probabilities",
    "sigmoid": "probabilities",
    "log_softmax": "logits",
    "affine": "logits",
    "mean_tokens": "pooled_output",
    "normalize": "pooled_output",
}


def _names_by_structure(graph: Graph) -> dict[str, str]:
    """The public name of every output of a fused graph, by what computes it: value -> name.

    Joins what a plan has as one output, and lets the head of a masked language model read the
    masked positions only.
    """
    _join_span(graph)
    names: dict[str, str] = {}
    encodings: list[str] = []
    attentions = 0
    rows_of_words = _words(graph)
    for own, value in graph.outputs.items():
        node = _step_behind(graph, value)
        if node is None:
            names[value] = own
            continue
        tokens = layout(graph, value) is not None
        linear_head = node.op == "linear"
        if node.op in _TAIL_OUTPUTS:
            names[value] = _TAIL_OUTPUTS[node.op]
            continue
        if tokens and linear_head and graph.shape(value)[-1] == rows_of_words:
            _gather_positions(graph, value)
            name = "masked_lm_outputs"
        elif tokens and linear_head:
            name = "logits"
        elif tokens:
            # Where a net returns every layer's encoding, the last of them is the encoder's output.
            for index, earlier in enumerate(encodings):
                names[earlier] = f"encoding_{index}"
            name = "sequence_output"
            encodings.append(value)
        elif node.op == attention_weights.STEP:
            name = f"attention_weights_{attentions}"
            attentions += 1
        elif linear_head and node.attrs["activation"] == "tanh":
            name = "pooled_output"
        elif gather_positions.STEP in {n.op for n in _behind(graph, value)}:
            name = "masked_lm_outputs"
        else:
            name = own if output_kind(own) else "logits"
            if name == "logits" and own != name and len(graph.outputs) > 1:
                name = "next_sentence_classifier_output"
        names[value] = name if name not in names.values() else own
    if len(names) != len(graph.outputs):
        raise UnsupportedModelError(f"{graph.origin}: two outputs are the same value")
    return names


def _step_behind(graph: Graph, value: str) -> Node | None:
    node = graph.producer(value)
    while node is not None and node.op == rows.STEP:
        node = graph.producer(node.inputs[0])
    return node


def _behind(graph: Graph, value: str) -> list[Node]:
    """The nodes that a value is computed by."""
    found: dict[str, Node] = {}
    pending = [value]
    while pending:
        node = graph.producer(pending.pop())
        if node is not None and node.name not in found:
            found[node.name] = node
            pending += node.inputs
    return list(found.values())


def _words(graph: Graph) -> int | str | None:
    for node in graph.nodes.values():
        if node.op == embed.STEP:
            return graph.shape(node.weights["word"][0])[0]
    return None


def _join_span(graph: Graph) -> None:
    """Two outputs (batch, sequence), the columns of one value, become the output ``logits``.

    So exporters write the start and the end of an answer.
    """
    length = sequence_axis(graph)
    found: dict[str, tuple[str, list[int]]] = {}
    for own, value in graph.outputs.items():
        base, factor = through_views(graph, value)
        kind = layout(graph, base)
        maker = graph.producer(base)
        if graph.shape(value) != (batch_axis(graph), length) or factor != 1.0 or kind is None:
            continue
        if maker is None or maker.op not in (*STEP_OPS, rows.STEP):
            continue
        try:
            shown = elements(graph, value, base)
        except NoMatchError:
            continue
        column = shown - row_numbers(graph, kind) * int(graph.shape(base)[-1])
        if len(np.unique(column)) == 1:
            found.setdefault(base, (base, []))[1].append(int(column[0, 0]))
            found[own] = (base, [])
    for base, (_, columns) in list(found.items()):
        if columns == [0, 1] and graph.shape(base)[-1] == 2 and len(graph.outputs) == 2:
            graph.outputs = {"logits": base}
            graph.prune()


def _gather_positions(graph: Graph, value: str) -> None:
    """Let a head over all tokens, whose last step computes ``value``, read the masked ones only."""
    node = _step_behind(graph, value)
    while node is not None:
        before = _step_behind(graph, node.inputs[0])
        if before is None or before.op not in ("linear", "layer_norm"):
            break
        node = before
    if node is None:
        return
    x = node.inputs[0]
    gathered = Node(gather_positions.STEP, "gather_positions", (x,), ("gather_positions",))
    graph.place(node, gathered, graph.types[x])
    graph.read(node, x, gathered.output)


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
    encodings: list[str] = []
    attentions = 0
    for own, value in graph.outputs.items():
        shape = graph.shape(value)
        maker = graph.producer(value)
        name = own
        if shape[:2] == (batch, length) and len(shape) == 3:
            while maker is not None and maker.op in ("Transpose", "Where"):
                maker = graph.producer(maker.inputs[1 if maker.op == "Where" else 0])
            if maker is not None and maker.op == "LayerNormalization":
                # The encoder's output; where a net returns every layer's, the last of them.
                for index, earlier in enumerate(encodings):
                    names[earlier] = f"encoding_{index}"
                name = "sequence_output"
                encodings.append(value)
            elif len(graph.outputs) == 1:
                name = "logits"
        elif len(shape) == 4 and (shape[0], *shape[2:]) == (batch, length, length):
            name = f"attention_weights_{attentions}"
            attentions += 1
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
        fields = dict(node.attrs)
        if node.op == "mean_tokens":
            del fields["mask"]  # a packed batch has no tokens to leave out
        steps.append(Step(node.op, name, inputs, name, dict(node.weights), fields))
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
        attention_weights.STEP: ("valid_length",),
        rows.STEP: ("valid_length",),
        gather_positions.STEP: ("masked_positions",),
        "mean_tokens": ("valid_length",),
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
        if node.op == gather_positions.STEP and not read:
            # The head gives every token's words in the file, and is asked for some of them.
            roles["masked_positions"] = "masked_positions"
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
        others = {"first_token": "seqs", "mean_tokens": "seqs", "gather_positions": "positions"}
        kind = others.get(node.op, kind)
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
            if node.op == "linear" and node.output in self.outputs:
                return self.outputs[node.output]
            part = {"qkv_linear": "qkv", "linear": "ffn"}.get(node.op, node.op)
            return f"{layer}.{part}"
        if kind == "seqs":
            output = self.outputs.get(node.output)
            tanh = node.attrs.get("activation") == "tanh"
            return "pooler" if tanh else output or node.op
        part = "decoder" if node.output in self.outputs else node.op
        return f"masked_lm.{part}"
