"""What the converter of an operator works with: the node, its attributes, the graph that grows."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import Any

from bertrt.compiler.ir import Graph
from bertrt.compiler.types import Dim, product
from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.models.symbol.file import SymbolNode

__all__ = ["END", "Context", "literal"]

# A shape of 32 extents has some 400; Python's parser makes a hundred bytes of each.
_LONGEST_LITERAL = 4096
END = (1 << 63) - 1  # "to the end" of a slice


class Context:
    """What a converter sees: one symbol node, the types of its inputs, and the graph to add to."""

    def __init__(self, graph: Graph, node: SymbolNode) -> None:
        self.graph, self.node = graph, node

    # Attributes

    def parse(self, key: str, default: Any) -> Any:
        text = self.node.attrs.get(key)
        return default if text is None else literal(self.graph, self.node, key, text)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.parse(key, default)
        return value if _is_integer(value) else self._bad(key, "an integer")

    def number(self, key: str, default: float | None = None) -> float:
        value = self.parse(key, default)
        good = _is_integer(value) or (type(value) is float and math.isfinite(value))
        return float(value) if good else self._bad(key, "a number")

    def flag(self, key: str, default: bool) -> bool:
        value = self.parse(key, default)
        return bool(value) if value in (0, 1) else self._bad(key, "True or False")

    def integers(self, key: str, default: Any = None, none: bool = False) -> tuple[Any, ...]:
        value = self.parse(key, default)
        value = value if isinstance(value, (tuple, list)) else (value,)
        if not all(_is_integer(v) or (none and v is None) for v in value):
            self._bad(key, "integers")
        return tuple(value)

    def _bad(self, key: str, expected: str) -> Any:
        raise ModelFormatError(
            f"{self.graph.origin}: node {self.node.name!r} ({self.node.op}): "
            f"attribute {key!r} is {self.node.attrs.get(key)!r}, expected {expected}"
        )

    def unsupported(self, why: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self.graph.origin}: operator {self.node.op!r} at node {self.node.name!r}: {why}"
        )

    def misfit(self, why: str) -> ModelFormatError:
        return ModelFormatError(
            f"{self.graph.origin}: node {self.node.name!r} ({self.node.op}): {why}"
        )

    # Types and nodes

    def shape(self, value: str) -> tuple[Dim, ...]:
        return self.graph.shape(value)

    def rank(self, value: str) -> int:
        return len(self.shape(value))

    def axis(self, value: str, axis: int) -> int:
        if not -self.rank(value) <= axis < self.rank(value):
            raise self.misfit(f"axis {axis} of {self.graph.types[value]}")
        return axis % self.rank(value)

    def all(self, op: str, *inputs: str, **attrs: Any) -> tuple[str, ...]:
        name = f"{self.node.name}.{op}"
        if name in self.graph.nodes:
            same = sum(known.startswith(name) for known in self.graph.nodes)
            name = f"{name}.{same}"
        return self.graph.add(op, inputs, attrs, name=name).outputs

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        return self.all(op, *inputs, **attrs)[0]

    def ints(self, *values: int) -> str:
        return self.graph.literal(values, "int64")

    def like(self, number: float, value: str) -> str:
        """A scalar literal of the element type of ``value``."""
        return self.graph.literal(number, self.graph.types[value].dtype)

    def alike(self, a: str, b: str) -> tuple[str, str]:
        """Both values in one element type: whole numbers meet floats as floats."""
        kinds = [self.graph.types[value].dtype for value in (a, b)]
        if kinds[0] == "int64" != kinds[1]:
            a = self.add("Cast", a, to=kinds[1])
        elif kinds[1] == "int64" != kinds[0]:
            b = self.add("Cast", b, to=kinds[0])
        return a, b

    def extent(self, value: str, axis: int) -> str:
        """The extent of an axis, int64 of shape (1,)."""
        dim = self.shape(value)[axis]
        if isinstance(dim, int):
            return self.ints(dim)
        # The same extent is always taken from the same place: from an input if one has it.
        for name in self.graph.inputs:
            if dim in self.shape(name):
                value, axis = name, self.shape(name).index(dim)
                break
        return self.add("Gather", self.add("Shape", value), self.ints(axis), axis=0)

    def arange(self, value: str, axis: int) -> str:
        """0, 1, ... up to the extent of an axis, int64."""
        limit = self.add("Squeeze", self.extent(value, axis), self.ints(0))
        zero, one = (self.graph.literal(i, "int64") for i in (0, 1))
        return self.add("Range", zero, limit, one)

    def reshape(self, value: str, shape: Sequence[Dim]) -> str:
        """View ``value`` as ``shape``, its extents given as numbers and symbols."""
        old = self.shape(value)
        if tuple(shape) == old:
            return value
        if product(shape) != product(old):
            raise self.misfit(f"{self.graph.types[value]} cannot become {tuple(shape)}")
        target = [
            dim if isinstance(dim, int) else 0 if axis < len(old) and old[axis] == dim else -1
            for axis, dim in enumerate(shape)
        ]
        if target.count(-1) <= 1:
            return self.add("Reshape", value, self.ints(*target))
        # ONNX infers one extent; the others are taken from where they stand.
        parts = []
        for dim, code in zip(shape, target, strict=True):
            holder = next((v for v in (value, *self.graph.inputs) if dim in self.shape(v)), None)
            if code != -1 or holder is None:
                parts.append(self.ints(code))
            else:
                parts.append(self.extent(holder, self.shape(holder).index(dim)))
        return self.add("Reshape", value, self.add("Concat", *parts, axis=0))

    def before(self, length: str, value: str, axis: int) -> str:
        """Whether each position along ``axis`` of ``value`` lies before ``length``."""
        return self.add("Less", self.arange(value, axis), length)


def _is_integer(value: Any) -> bool:
    return type(value) is int and -END <= value <= END


def literal(graph: Graph, node: SymbolNode, key: str, text: str) -> Any:
    """The value of an attribute, which a symbol file holds as Python spells it."""
    try:
        if len(text) > _LONGEST_LITERAL:
            raise ValueError
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ModelFormatError(
            f"{graph.origin}: node {node.name!r} ({node.op}): attribute {key!r} is {text[:80]!r}, "
            "not a number, tuple or flag"
        ) from None
