"""The public names of a graph's outputs, told by Gluon's names or by what computes them."""

from __future__ import annotations

import numpy as np

from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import (
    NoMatchError,
    attention,
    attention_weights,
    batch_axis,
    elements,
    embed,
    first_token,
    gather_positions,
    layout,
    qkv,
    row_numbers,
    rows,
    sequence_axis,
    through_views,
)
from bertrt.errors import UnsupportedModelError
from bertrt.plan.check import STEP_OPS
from bertrt.plan.steps import output_kind
from bertrt.plan.tail import OVER_TOKENS

__all__ = ["names_by_structure", "output_names"]

# What an output is that ends in this step
_TAIL_OUTPUTS = {
    "softmax": "probabilities",
    "sigmoid": "probabilities",
    "log_softmax": "logits",
    "affine": "logits",
    **dict.fromkeys(OVER_TOKENS, "pooled_output"),
    "normalize": "pooled_output",
}


def names_by_structure(graph: Graph) -> dict[str, str]:
    """The public name of every output of a fused graph, by what computes it: value -> name.

    Joins what a plan has as one output, drops outputs that are others again, and lets the head of a
    masked language model read the masked positions only.
    """
    _join_columns(graph)
    _drop_copies(graph)
    names: dict[str, str] = {}
    encodings = _encodings(graph)
    rows_of_words = _words(graph)
    for own, value in graph.outputs.items():
        node = _step_behind(graph, value)
        if node is None:
            names[value] = own
            continue
        tokens = layout(graph, value) is not None
        linear_head = node.op == "linear"
        if node.op in _TAIL_OUTPUTS:
            name = _TAIL_OUTPUTS[node.op]
        elif value in encodings:
            name = encodings[value]
        elif tokens and linear_head and graph.shape(value)[-1] == rows_of_words:
            _gather_positions(graph, value)
            name = "masked_lm_outputs"
        elif tokens and linear_head:
            name = "logits"
        elif tokens and not _fused(graph):  # the coverage report says why
            name = own
        elif tokens:
            raise UnsupportedModelError(
                f"{graph.origin}: the output {own!r} is made within a layer, by {node.name!r}; "
                "expected what a layer hands on"
            )
        elif node.op == attention_weights.STEP:
            name = f"attention_weights_{_depth(graph, value)}"
        elif (linear_head and node.attrs["activation"] == "tanh") or node.op == first_token.STEP:
            name = "pooled_output"
        elif gather_positions.STEP in {n.op for n in _behind(graph, value)}:
            name = "masked_lm_outputs"
        else:
            name = own if output_kind(own) else "logits"
            if name == "logits" and own != name and len(graph.outputs) > 1:
                name = "next_sentence_classifier_output"
        names[value] = name if name not in names.values() else own
    return names


def _drop_copies(graph: Graph) -> None:
    """Leave an output out that is the same value as one before it: exporters return the last
    layer's rows by themselves, and once more among those of every layer."""
    first: dict[str, str] = {}
    for own, value in graph.outputs.items():
        first.setdefault(value, own)
    graph.outputs = {own: value for value, own in first.items()}


def _encodings(graph: Graph) -> dict[str, str]:
    """The names of the outputs that are what a layer, or the embeddings, hand on, by the layers
    before them, in whichever order they are returned."""
    layers = sum(node.op == attention.STEP for node in graph.nodes.values())
    names: dict[str, str] = {}
    for value in graph.outputs.values():
        node = _step_behind(graph, value)
        if node is None or layout(graph, value) is None:
            continue
        depth, readers = _depth(graph, value), _readers(graph, node.output)
        read = any(reader.op == qkv.STEP for reader in readers)
        if depth == 0 and read:  # ELECTRA's may have a projection behind the sum
            names[value] = "embedding_output"
        elif node.op != "linear_add_layer_norm" or not depth:
            continue
        elif depth < layers and read:
            names[value] = f"encoding_{depth - 1}"
        elif depth == layers and not any(reader.op == node.op for reader in readers):
            names[value] = "sequence_output"
    if names and "sequence_output" not in names.values() and _fused(graph):
        raise UnsupportedModelError(
            f"{graph.origin}: it returns what {', '.join(names.values())} would be, and not the "
            "last layer's rows"
        )
    return names


def _fused(graph: Graph) -> bool:
    return all(node.op in (*STEP_OPS, rows.STEP) for node in graph.nodes.values())


def _readers(graph: Graph, value: str) -> list[Node]:
    """The steps that read a value, in whichever layout."""
    found: list[Node] = []
    for user in graph.users(value):
        found += _readers(graph, user.output) if user.op == rows.STEP else [user]
    return found


def _depth(graph: Graph, value: str) -> int:
    """The layers that a value is computed by."""
    return sum(node.op == attention.STEP for node in _behind(graph, value))


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


def _join_columns(graph: Graph) -> None:
    """Outputs (batch, sequence) that are the columns of one value become that value: two of them,
    as exporters write the start and the end of an answer, the output ``logits``; and a value of one
    column, as ELECTRA's discriminator returns it, under the name that its output has."""
    length = sequence_axis(graph)
    found: dict[str, list[tuple[str, int]]] = {}
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
            found.setdefault(base, []).append((own, int(column[0, 0])))
    for base, columns in found.items():
        width = graph.shape(base)[-1]
        if [at for _, at in columns] == [0, 1] and width == 2 and len(graph.outputs) == 2:
            graph.outputs = {"logits": base}
        elif [at for _, at in columns] == [0] and width == 1:
            graph.outputs[columns[0][0]] = base
        else:
            continue
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
