"""Reader of MXNet symbol files: ``*-symbol.json`` with its ``*.params``, without MXNet.

Every MXNet operator has a converter, a small function in one table, that adds the IR nodes with
the same meaning. Two conventions differ from MXNet on purpose:

* ids, lengths, positions and everything computed from them are int64, whatever MXNet holds them
  in (exported graphs feed float32);
* the inputs are given the names of their meaning (``token_ids``, ``token_types``,
  ``valid_length``, ``masked_positions``), which is read from how they are used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bertrt.compiler.ir import Graph
from bertrt.compiler.types import Dim, Type
from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.models.symbol.context import literal
from bertrt.models.symbol.file import Symbol, SymbolNode, load_symbol, pick
from bertrt.models.symbol.operators import convert
from bertrt.models.symbol.params import read_params
from bertrt.plan.weights import Constant

__all__ = ["read_mxnet"]

_INPUT_SHAPES: dict[str, tuple[Dim, ...]] = {
    "token_ids": ("batch", "sequence"),
    "token_types": ("batch", "sequence"),
    "valid_length": ("batch",),
    "masked_positions": ("batch", "num_masked"),
}


def read_mxnet(symbol_path: str | Path, params_path: str | Path) -> Graph:
    """Read an exported symbol and its parameters into the IR.

    The graph's outputs carry the names of the symbol's heads. Parameters are read when they are
    asked for, but for those in half precision, which are widened.

    Raises MissingFileError, ModelFormatError for a broken file (not JSON, no nodes, forward or
    out-of-range references, missing parameters, parameters that do not fit their use) and
    UnsupportedModelError for an operator, or a setting of one, outside the table; the message
    names file, node and operator.
    """
    symbol_path = Path(symbol_path)
    symbol = load_symbol(symbol_path)
    params = read_params(params_path)
    graph = Graph(str(symbol_path))
    roles = _input_roles(symbol, params)
    for role in _INPUT_SHAPES:
        if role in roles.values():
            source = next(name for name, known in roles.items() if known == role)
            graph.add_input(role, source, Type("int64", _INPUT_SHAPES[role]))

    values: list[list[str]] = []
    for node in symbol.nodes:
        if node.op != "null":
            values.append(convert(graph, symbol, node, values))
        elif node.name in roles:
            values.append([roles[node.name]])
        elif node.name in params:
            values.append([_add_parameter(graph, node, params[node.name], params_path)])
        else:
            raise ModelFormatError(
                f"{params_path}: no array for parameter {node.name!r}, which {symbol_path} uses"
            )
    for node_id, index in symbol.heads:
        name = symbol.nodes[node_id].name
        name = name if name not in graph.outputs else f"{name}_{index}"
        graph.outputs[name] = pick(symbol, values, node_id, index, "the outputs")
    graph.prune()
    return graph


# The symbol file


def _add_parameter(
    graph: Graph, node: SymbolNode, constant: Constant, params_path: str | Path
) -> str:
    declared = node.attrs.get("__shape__")
    if declared is not None:
        shape = literal(graph, node, "__shape__", declared)
        found = constant.shape
        if (
            not isinstance(shape, tuple)
            or len(shape) != len(found)
            # 0 and -1 stand for an extent that was not known yet when the block was made
            or any(a not in (0, -1) and a != b for a, b in zip(shape, found, strict=True))
        ):
            raise ModelFormatError(
                f"{params_path}: parameter {node.name!r} has shape {found}, "
                f"{graph.origin} declares {declared}"
            )
    if constant.dtype == np.float16:  # widened, exactly; the arithmetic is float32
        array = constant.array.astype(np.float32)
        array.flags.writeable = False
        constant = Constant(constant.name, array)
    return graph.add_constant(constant)


def _input_roles(symbol: Symbol, params: dict[str, Constant]) -> dict[str, str]:
    """What each input of the symbol means, from the operators that read it."""
    readers: list[list[tuple[int, int]]] = [[] for _ in symbol.nodes]  # (node, slot)
    for index, node in enumerate(symbol.nodes):
        for slot, (source, _output) in enumerate(node.inputs):
            readers[source].append((index, slot))

    def reaches(start: int, op: str, slot: int, through: set[str]) -> bool:
        pending, seen = [start], set()
        while pending:
            for reader, at in readers[pending.pop()]:
                reader_op = symbol.nodes[reader].op
                if (reader_op, at) == (op, slot):
                    return True
                if reader_op in through and reader not in seen:
                    seen.add(reader)
                    pending.append(reader)
        return False

    casts = {"Cast", "cast", "_copy", "identity"}
    indexing = casts | {"Reshape", "reshape", "Concat", "concat"}
    spreading = indexing | {"broadcast_add", "expand_dims", "broadcast_axis"}
    roles: dict[str, str] = {}
    for index, node in enumerate(symbol.nodes):
        if node.op != "null" or node.name in params:
            continue
        if reaches(index, "Embedding", 0, casts):
            role = "token_types" if "token_ids" in roles.values() else "token_ids"
        elif reaches(index, "SequenceMask", 1, casts) or reaches(index, "softmax", 1, spreading):
            role = "valid_length"
        elif reaches(index, "gather_nd", 1, indexing):
            role = "masked_positions"
        else:
            continue  # a parameter that has no array; reported where it is needed
        if role in roles.values():
            raise UnsupportedModelError(
                f"{symbol.path}: input {node.name!r} would be a second {role}; "
                "expected token ids, token types, valid length and masked positions at most"
            )
        roles[node.name] = role
    return roles


# Converters
