"""The intermediate representation that both readers build and all passes rewrite.

A :class:`Graph` is a list of nodes in topological order over named values. Operators follow ONNX
(opset 20) in meaning and attribute names; :mod:`bertrt.compiler.types` holds the closed set of
them. The fusion passes replace groups of those nodes by fused nodes, whose ``op`` is the name of a
plan step and whose parameters stand in ``weights``.

Two rules keep passes simple:

* equal nodes exist once: :meth:`Graph.add` returns the existing value when it is asked for a node
  that is already there, so that matching never has to look through duplicates;
* a rewrite replaces the *last* node of a match in place (:meth:`Graph.replace`). What nobody uses
  afterwards disappears; what is still used elsewhere stays, and shows up as unfused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from bertrt.compiler.types import Type, excess, infer
from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.plan.weights import Constant, Weights

__all__ = ["Graph", "Node"]


@dataclass(eq=False)
class Node:
    """One operation. ``weights`` is used by fused nodes only."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)

    @property
    def output(self) -> str:
        """The first, usually the only, value that the node computes."""
        return self.outputs[0]


class Graph:
    """A dataflow graph of typed values.

    Attributes
    ----------
    origin: what the graph was read from, for messages.
    inputs: names of the graph's inputs, in order.
    sources: the name that each input had in the file it was read from.
    outputs: public output name -> value, in the order of the model.
    nodes: node name -> node, in topological order.
    constants: value name -> :class:`Constant`.
    types: value name -> :class:`~bertrt.compiler.types.Type`.
    fixed_length: the sequence length, where the model takes no other.
    """

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.inputs: list[str] = []
        self.sources: dict[str, str] = {}
        self.outputs: dict[str, str] = {}
        self.nodes: dict[str, Node] = {}
        self.constants: dict[str, Constant] = {}
        self.types: dict[str, Type] = {}
        self.fixed_length: int | None = None
        self._producer: dict[str, Node] = {}
        self._users: dict[str, list[Node]] = {}
        self._known: dict[Any, Node] = {}
        self._parametric: set[str] = set()

    # Building

    def add_input(self, name: str, source: str, kind: Type) -> None:
        """Declare an input; ``source`` is its name in the file."""
        if (found := excess(kind.shape)) is not None:
            raise ModelFormatError(f"{self.origin}: the input {source!r} would be {found}")
        self._new_value(name)
        self.inputs.append(name)
        self.sources[name] = source
        self.types[name] = kind

    def add_constant(self, constant: Constant) -> str:
        """Add a constant and return its value name."""
        self._new_value(constant.name)
        self.constants[constant.name] = constant
        kind, shape = constant.dtype, constant.shape
        # Short integer vectors are shapes, axes and indices: their content takes part in typing.
        short = kind.kind == "i" and len(shape) <= 1 and prod(shape) <= 16
        content = tuple(int(v) for v in constant.array.ravel()) if short else None
        self.types[constant.name] = Type(str(kind), shape, content)
        return constant.name

    def literal(self, values: Any, dtype: str) -> str:
        """The constant with these values; equal literals are one value."""
        array = np.array(values, dtype=dtype)
        array.flags.writeable = False
        shape = "x".join(map(str, array.shape)) or "scalar"
        name = f"{dtype}_{shape}_" + "_".join(repr(v) for v in array.ravel().tolist())
        if name not in self.constants:
            self.add_constant(Constant(name, array))
        return name

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        attrs: dict[str, Any] | None = None,
        *,
        name: str,
        outputs: Sequence[str] | None = None,
    ) -> Node:
        """Append a node, or return the node that already computes the same.

        Raises ModelFormatError where an input does not exist, a name is taken or the operands do
        not fit the operator; UnsupportedModelError where the operator is not in the set.
        """
        attrs = dict(attrs or {})
        key = (op, tuple(inputs), tuple(sorted(attrs.items())))
        if key in self._known:
            return self._known[key]
        for value in inputs:
            if value and value not in self.types:
                raise ModelFormatError(
                    f"{self.origin}: node {name!r} ({op}) reads {value!r}, which nothing before "
                    "it computes"
                )
        kinds = infer(op, name, [self.types[v] if v else None for v in inputs], attrs, self.origin)
        if outputs is None:
            outputs = [name] if len(kinds) == 1 else [f"{name}_{i}" for i in range(len(kinds))]
        if len(outputs) != len(kinds):
            raise UnsupportedModelError(
                f"{self.origin}: node {name!r} ({op}) has {len(outputs)} outputs, "
                f"expected {len(kinds)}"
            )
        if name in self.nodes:
            raise ModelFormatError(f"{self.origin}: two nodes are called {name!r}")
        node = Node(op, name, tuple(inputs), tuple(outputs), attrs)
        for value, kind in zip(outputs, kinds, strict=True):
            self._new_value(value)
            self.types[value] = kind
        if all(self.is_parametric(value) for value in inputs if value):
            self._parametric.update(outputs)
        self.nodes[name] = node
        self._known[key] = node
        self._link(node)
        return node

    # Looking

    def producer(self, value: str) -> Node | None:
        """The node that computes a value; None for inputs and constants."""
        return self._producer.get(value)

    def users(self, value: str) -> list[Node]:
        """The nodes that read a value (one entry for each reading input)."""
        return self._users.get(value, [])

    def only_user(self, value: str) -> Node | None:
        """The node that alone reads a value which is no output of the graph; None otherwise."""
        users = self.users(value)
        return users[0] if len(users) == 1 and value not in self.outputs.values() else None

    def array(self, value: str) -> np.ndarray | None:
        """The array of a constant; None for any other value."""
        constant = self.constants.get(value)
        return None if constant is None else constant.array

    def is_parametric(self, value: str) -> bool:
        """Whether a value depends on constants only."""
        return value in self.constants or value in self._parametric

    def scalar(self, value: str) -> float | None:
        """The number that a one-element constant holds; None for any other value."""
        array = self.array(value)
        return float(array.ravel()[0]) if array is not None and array.size == 1 else None

    def shape(self, value: str) -> tuple[int | str, ...]:
        """The shape of a value; unknown extents are symbols."""
        return self.types[value].shape

    # Rewriting

    def replace(self, old: Node, new: Node) -> None:
        """Put ``new``, which computes the outputs of ``old``, in its place; drop what is unused."""
        new.name, new.outputs = old.name, old.outputs
        self._known = {}
        self.nodes[old.name] = new
        self._link(new)
        self._unlink(old)

    def insert(
        self, before: Node, op: str, inputs: Sequence[str], attrs: dict[str, Any] | None = None
    ) -> Node:
        """Put a node, or the node that computes the same, somewhere ahead of ``before``."""
        name = f"{before.name}_{op.lower()}"
        while name in self.nodes or name in self.types or f"{name}_0" in self.types:
            name += "_"
        node = self.add(op, inputs, attrs, name=name)
        if next(reversed(self.nodes)) == node.name:
            self._move(node, before)
        return node

    def place(self, before: Node, node: Node, kind: Type) -> None:
        """Put a fused node with one result of this type ahead of ``before``."""
        self._new_value(node.output)
        self.types[node.output] = kind
        self.nodes[node.name] = node
        self._link(node)
        self._move(node, before)

    def read(self, node: Node, old: str, new: str) -> None:
        """Let ``node`` read ``new`` where it read ``old``."""
        self._known = {}
        self._users[old] = [user for user in self._users[old] if user is not node]
        count = node.inputs.count(old)
        node.inputs = tuple(new if value == old else value for value in node.inputs)
        self._users.setdefault(new, []).extend([node] * count)

    def forward(self, node: Node, value: str) -> None:
        """Let everybody who reads the result of ``node`` read ``value``; drop what is unused."""
        self._known = {}
        for user in self._users.pop(node.output, []):
            user.inputs = tuple(value if v == node.output else v for v in user.inputs)
            self._users.setdefault(value, []).append(user)
        self.outputs = {
            name: value if own == node.output else own for name, own in self.outputs.items()
        }
        if self.nodes.pop(node.name, None):
            self._unlink(node)

    def bound(self, sizes: Mapping[str, int]) -> Graph:
        """The same graph with these extents in the place of symbols."""
        graph = Graph(self.origin)
        for name in self.inputs:
            kind = self.types[name]
            shape = tuple(
                sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in kind.shape
            )
            graph.add_input(name, self.sources[name], Type(kind.dtype, shape))
        for constant in self.constants.values():
            graph.add_constant(constant)
        for node in self.nodes.values():
            graph.add(node.op, node.inputs, node.attrs, name=node.name, outputs=node.outputs)
        graph.outputs = dict(self.outputs)
        return graph

    def replace_by_constant(self, old: Node, constant: Constant) -> None:
        """Put a constant in the place of a node with one result; drop what is then unused."""
        self._known = {}
        del self.nodes[old.name]
        del self._producer[old.output]
        self.constants[constant.name] = constant
        self._unlink(old)

    def prune(self) -> None:
        """Drop every node, and every constant, that no output needs."""
        for node in reversed(list(self.nodes.values())):
            if node.name in self.nodes and not any(map(self._needed, node.outputs)):
                del self.nodes[node.name]
                self._unlink(node)
        weights = {v for n in self.nodes.values() for names in n.weights.values() for v in names}
        self.constants = {
            name: constant
            for name, constant in self.constants.items()
            if name in weights or self._needed(name)
        }
        self._known = {}

    def _move(self, node: Node, before: Node) -> None:
        order = list(self.nodes)
        order.remove(node.name)
        order.insert(order.index(before.name), node.name)
        self.nodes = {key: self.nodes[key] for key in order}

    def _needed(self, value: str) -> bool:
        return bool(self._users.get(value)) or value in self.outputs.values()

    def _new_value(self, name: str) -> None:
        if name in self.types:
            raise ModelFormatError(f"{self.origin}: two values are called {name!r}")

    def _link(self, node: Node) -> None:
        for value in node.outputs:
            self._producer[value] = node
        for value in filter(None, node.inputs):
            self._users.setdefault(value, []).append(node)

    def _unlink(self, node: Node) -> None:
        """Forget that ``node`` reads its inputs, and drop producers left unused."""
        pending = [node]
        while pending:
            gone = pending.pop()
            for value in gone.inputs:
                if not value:
                    continue
                self._users[value].remove(gone)
                producer = self._producer.get(value)
                if producer is None or any(map(self._needed, producer.outputs)):
                    continue
                if self.nodes.pop(producer.name, None):
                    pending.append(producer)
