"""A symbol file as it lies: its nodes, checked, and the outputs that they name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bertrt.errors import ModelFormatError
from bertrt.host.files import read_json

__all__ = ["Symbol", "SymbolNode", "load_symbol", "pick"]

# 24 layers have two thousand.
_MOST_NODES = 1 << 16


@dataclass(frozen=True)
class SymbolNode:
    """An operator or variable; `attrs` holds its attributes as text."""

    op: str
    name: str
    inputs: tuple[tuple[int, int], ...]  # (node, output of it)
    attrs: dict[str, str]


@dataclass(frozen=True)
class Symbol:
    """A whole file: `heads` are its outputs, as (node, output of it)."""

    path: Path
    nodes: list[SymbolNode]
    heads: list[tuple[int, int]]


def load_symbol(path: Path) -> Symbol:
    """Read a symbol file; MissingFileError or ModelFormatError say what is wrong with it."""
    content = read_json(path, distinct=True)
    if not isinstance(content, dict) or not isinstance(content.get("nodes"), list):
        raise ModelFormatError(f"{path}: not an MXNet symbol: it has no list of nodes")
    if len(content["nodes"]) > _MOST_NODES:
        raise ModelFormatError(
            f"{path} has {len(content['nodes'])} nodes, and at most {_MOST_NODES} are read"
        )
    nodes: list[SymbolNode] = []
    names: set[str] = set()
    for index, raw in enumerate(content["nodes"]):
        node = _load_node(path, index, raw)
        if node.op == "null" and node.name in names:
            raise ModelFormatError(f"{path}: two nodes are called {node.name!r}")
        # Operations may share a name: those of a block that is called twice, or of two blocks with
        # one prefix.
        while node.name in names:
            node = replace(node, name=f"{node.name}.{index}")
        names.add(node.name)
        nodes.append(node)
    heads = _references(path, content.get("heads"), len(nodes), "the list of heads")
    if not heads:
        raise ModelFormatError(f"{path}: the symbol has no outputs (heads)")
    return Symbol(path, nodes, heads)


def _load_node(path: Path, index: int, raw: Any) -> SymbolNode:
    if not isinstance(raw, dict) or not all(isinstance(raw.get(k), str) for k in ("op", "name")):
        raise ModelFormatError(f"{path}: node {index} has no operator or no name")
    attrs: dict[str, str] = {}
    # MXNet before 1.0 split them over "param" (of the operator) and "attr" (of the user).
    for key in ("attr", "param", "attrs"):
        part = raw.get(key) or {}
        if not isinstance(part, dict) or not all(isinstance(v, str) for v in part.values()):
            raise ModelFormatError(
                f"{path}: node {raw['name']!r}: {key!r} is not a table of strings"
            )
        attrs.update(part)
    # Inputs must come before their users: forward references, and with them cycles, end here.
    inputs = _references(path, raw.get("inputs"), index, f"node {raw['name']!r}")
    return SymbolNode(raw["op"], raw["name"], tuple(inputs), attrs)


def _references(path: Path, raw: Any, limit: int, what: str) -> list[tuple[int, int]]:
    if not isinstance(raw, list):
        raise ModelFormatError(f"{path}: {what} has no list of inputs")
    references = []
    for entry in raw:
        if not isinstance(entry, list) or not 2 <= len(entry) <= 3:
            raise ModelFormatError(f"{path}: {what} holds {entry!r}, not [node, output]")
        node, output = entry[:2]
        if type(node) is not int or type(output) is not int or not 0 <= node < limit or output < 0:
            raise ModelFormatError(
                f"{path}: {what} refers to output {output!r} of node {node!r}; "
                f"expected one of the {limit} nodes before it"
            )
        references.append((node, output))
    return references


def pick(symbol: Symbol, values: list[list[str]], node_id: int, index: int, reader: str) -> str:
    """The value behind a reference of `reader`: output `index` of node `node_id`."""
    outputs = values[node_id]
    if index >= len(outputs):
        node = symbol.nodes[node_id]
        raise ModelFormatError(
            f"{symbol.path}: {reader} read output {index} of node {node.name!r} ({node.op}), "
            f"which has {len(outputs)}"
        )
    return outputs[index]
