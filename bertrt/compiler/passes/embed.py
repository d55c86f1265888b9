"""Fuse the embeddings and their normalisation into one ``embed_layer_norm`` step.

::

    token_ids ────► Gather word ────────► views ─┐
    token_types ──► Gather type ────────► views ─┼► Add, Add ──► LayerNormalization
    0, 1, 2, ... ─► Gather position ────► views ─┘

in any order of the sum. What a summand is, is told by which rows of its table it shows: those that
an input names, the first ones in their order, or always the same one. So the positions may be a
slice of the table, a constant, or counted from the ids as RoBERTa does (from a row other than the
first, past the padding id); the types may be one-hot vectors times the table, or absent, and then a
row that is the same for all tokens is added to the positions. Positions may be an input, too: one
that is called ``position_ids``, which nobody is asked for, because it is 0, 1, 2, ... here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bertrt.compiler.evaluate import dependencies
from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import (
    Match,
    NoMatchError,
    batch_axis,
    layout,
    row_numbers,
    sequence_axis,
    values_of,
)
from bertrt.plan.steps import POSITIONS
from bertrt.plan.weights import Constant, Weights

STEP = "embed_layer_norm"
_VIEWS = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Expand")


@dataclass(frozen=True)
class _Summand:
    """A table, and which of its rows are summed: those that ``ids`` names, those from ``first`` on
    by position, or always ``first``."""

    table: str
    ids: str | None
    first: int = 0
    moves: bool = False


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at the normalisation of a sum that begins at parameters and inputs."""
    if node.op != "LayerNormalization":
        return None
    parts = _summands(graph, node.inputs[0])
    makers = [graph.producer(part) for part in parts]
    if len(parts) < 2 or not any(maker is not None and maker.op == "Gather" for maker in makers):
        return None
    kind = layout(graph, node.output)
    if kind is None or node.attrs["axis"] != len(graph.shape(node.output)) - 1:
        raise NoMatchError(node, f"expected rows of all tokens, found {graph.types[node.output]}")
    found = [_classify(graph, part, node, kind) for part in parts]
    tokens = [part for part in found if part.ids is not None]
    positions = [part for part in found if part.ids is None and part.moves]
    same = [part for part in found if part.ids is None and not part.moves]
    if not 1 <= len(tokens) <= 2 or len(positions) != 1 or len(tokens) + len(same) > 2:
        raise NoMatchError(
            node,
            f"expected the sum of embeddings of tokens, of types and of positions, found "
            f"{len(tokens)} by an input, {len(positions)} by position, {len(same)} constant",
        )
    if len(tokens) == 2 and tokens[0].ids == tokens[1].ids:
        raise NoMatchError(node, "ids and types are the same input of the graph")
    # There are more words than types; where the tables are alike, ids come before types.
    tokens.sort(
        key=lambda part: (
            -graph.constants[part.table].shape[0],
            graph.inputs.index(part.ids or ""),
        )
    )
    weights: Weights = {}
    for role, part in zip(("word", "type"), tokens, strict=False):
        weights[role] = (part.table,)
    weights["position"] = (_positions(graph, positions[0], same),)
    if len(node.inputs) != 3:
        raise NoMatchError(node, "it has no beta")
    weights |= {"gamma": (node.inputs[1],), "beta": (node.inputs[2],)}
    for names in weights.values():
        if names[0] not in graph.constants:
            raise NoMatchError(node, f"{names[0]!r} is not a parameter")
    inputs = tuple(part.ids for part in tokens if part.ids is not None)
    return Match(node, Node(STEP, "", inputs, (), {"eps": node.attrs["epsilon"]}, weights))


def _summands(graph: Graph, value: str) -> list[str]:
    """What is added up, looking through views of partial sums."""
    node = graph.producer(value)
    behind = node
    while behind is not None and behind.op in _VIEWS:
        behind = graph.producer(behind.inputs[0])
    if behind is not None and behind.op == "Add":
        return [part for operand in behind.inputs for part in _summands(graph, operand)]
    while node is not None and node.op in _VIEWS and not graph.is_parametric(value):
        value = node.inputs[0]
        node = graph.producer(value)
    return [value]


def _classify(graph: Graph, value: str, at: Node, kind: str) -> _Summand:
    ends = dependencies(graph, value)
    tables = [
        name
        for name in ends
        if name in graph.constants
        and graph.constants[name].dtype.kind == "f"
        and len(graph.constants[name].shape) >= 2
    ]
    inputs = [name for name in graph.inputs if name in ends]
    maker = graph.producer(value)
    if len(tables) != 1 or len(inputs) > 1:
        raise NoMatchError(
            maker or at,
            f"expected rows of one table that one input names at most, found tables "
            f"{sorted(tables)} and inputs {inputs}",
        )
    (table,) = tables
    shape = graph.constants[table].shape
    if any(extent != 1 for extent in shape[:-2]):
        raise NoMatchError(maker or at, f"{table!r} {shape} is no parameter of rows")
    batch, length = int(batch_axis(graph)), int(sequence_axis(graph))
    width = shape[-1]
    if graph.shape(value)[-1] != width:
        raise NoMatchError(maker or at, f"it is {graph.types[value]}, of a table {shape}")

    def rows(ids: np.ndarray | None) -> np.ndarray:
        """Which row each token gets, (batch, sequence)."""
        numbers = np.broadcast_to(np.arange(shape[-2], dtype=np.float64)[:, None], shape)
        known = {table: numbers}
        if ids is not None:
            known[inputs[0]] = ids.astype(graph.types[inputs[0]].dtype)
        shown = values_of(graph, value, known)
        columns = np.broadcast_to(np.arange(width, dtype=np.float64), shape)
        in_order = values_of(graph, value, known | {table: columns})
        if not np.array_equal(in_order, np.broadcast_to(np.arange(width), in_order.shape)):
            raise NoMatchError(maker or at, f"it is not rows of {table!r} as they are")
        return _by_token(graph, shown[..., 0], kind, maker or at)

    if inputs:
        drawn = np.random.default_rng(0).integers(0, shape[-2], (batch, length))
        last = np.full((batch, length), shape[-2] - 1)
        if graph.shape(inputs[0]) != (batch, length):
            raise NoMatchError(maker or at, f"{inputs[0]!r} is not (batch, sequence)")
        # Of a table with one row nothing tells ids from a constant, and nothing needs to.
        if shape[-2] > 1 and all(np.array_equal(rows(ids), ids) for ids in (drawn, last)):
            given = graph.sources[inputs[0]] != POSITIONS
            return _Summand(table, inputs[0]) if given else _Summand(table, None, moves=True)
        found = [rows(np.full((batch, length), number)) for number in (13, 14, 29)]
        if not all(np.array_equal(found[0], other) for other in found):
            raise NoMatchError(maker or at, f"it is no embedding of {inputs[0]!r}")
        (shown, *_) = found
    else:
        shown = rows(None)
    first = int(shown[0, 0])
    if np.array_equal(shown, np.broadcast_to(first + np.arange(length), shown.shape)):
        return _Summand(table, None, first, moves=True)
    if np.array_equal(shown, np.full_like(shown, first)):
        return _Summand(table, None, first)
    raise NoMatchError(maker or at, "the rows are not those of the positions 0, 1, 2, ...")


def _by_token(graph: Graph, rows: np.ndarray, kind: str, at: Node) -> np.ndarray:
    """Rows in the graph's layout, broadcast, as (batch, sequence).

    A summand may lie in another layout than the sum where a view turns it.
    """
    batch, length = int(batch_axis(graph)), int(sequence_axis(graph))
    rows = np.rint(rows).astype(np.int64)
    if rows.shape in ((batch, length), (1, length), (length,)):
        return np.broadcast_to(rows, (batch, length))
    if rows.shape in ((length, batch), (length, 1)) and kind == "sequence first":
        return np.broadcast_to(rows.T, (batch, length))
    if rows.shape == (batch * length,):
        return rows[row_numbers(graph, "flat")]
    if rows.shape in ((1,), (1, 1), ()):
        return np.broadcast_to(rows.reshape(()), (batch, length))
    raise NoMatchError(at, f"its rows {rows.shape} are not those of (batch, sequence)")


def _positions(graph: Graph, part: _Summand, same: list[_Summand]) -> str:
    """The table of positions, from its first row that is used, with what all tokens get added.

    A model of one sequence length has no more positions than that.
    """
    whole = graph.constants[part.table]
    array = whole.array.reshape(-1, whole.array.shape[-1])[part.first :][: graph.fixed_length]
    if not same and array.shape == whole.array.shape:
        return part.table
    made = Constant(f"{part.table}.positions", array)
    if not same:
        made = whole.part(made.name, part.first * array.shape[1], array.shape)
    for other in same:
        table = graph.constants[other.table].array
        added = (array + table.reshape(-1, table.shape[-1])[other.first]).astype(np.float32)
        added.flags.writeable = False
        made = Constant(made.name, added)
    return graph.add_constant(made)
