"""One node of an ONNX file on its way into the IR: what a conversion reads, asks and refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np

from bertrt.compiler.ir import Graph
from bertrt.errors import UnsupportedModelError

__all__ = ["DOMAINS", "MICROSOFT", "Builder", "Call", "Conversion", "Quantized", "Table"]

MICROSOFT = "com.microsoft"
DOMAINS = ("", "ai.onnx", MICROSOFT)


@dataclass(frozen=True)
class Quantized:
    """How a file holds a weight.

    Attributes:
        integers: the elements without their zero point: int16, as the weight lies in the file.
        scale: what they are multiplied by: float32, which broadcasts to the weight.
    """

    integers: np.ndarray
    scale: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """The weight, float32."""
        return self.integers.astype(np.float32) * self.scale


class Builder(Protocol):
    """What a conversion may ask of the reader."""

    opset: int
    graph: Graph
    # What weights are dequantised from, by their names
    quantized: dict[str, Quantized]
    # Products with integers whose scale is not known yet: the other operand, weight, zero point
    integer_products: dict[str, tuple[str, str, str]]

    def emit(
        self, op: str, inputs: Sequence[str], attrs: dict[str, Any] | None, name: str, count: int
    ) -> list[str]:
        """The results of an operator of the IR: a node, or constants where all is known."""
        ...

    def literal(self, values: Any, dtype: str) -> str:
        """A constant with these values."""
        ...

    def made(self, name: str, make: Callable[[], np.ndarray]) -> str:
        """A constant of this name, which `make` makes the first time that the file is read."""
        ...

    def rounded_by(self, name: str) -> tuple[str, tuple[str, ...]]:
        """What rounded a value of the file, looking through views: the operator, and its inputs
        behind the first; "" where a weight or something else is there."""
        ...

    def is_weight(self, value: str) -> bool:
        """Whether a value is a tensor of the file, and no arithmetic of the graph's."""
        ...

    def shape(self, value: str) -> tuple[int, ...]:
        """The shape of a value."""
        ...

    def dtype(self, value: str) -> str:
        """The element type of a value."""
        ...


@dataclass(frozen=True)
class Call:
    """One node of a file, its inputs being values of the graph ("" where left out)."""

    builder: Builder
    where: str  # "FILE: node 'NAME' (OPERATOR)", for messages
    op: str
    name: str
    inputs: tuple[str, ...]
    names: tuple[str, ...]  # of the inputs in the file
    attrs: dict[str, Any]
    count: int  # of results, up to the last one that is read
    declared: int  # of results that the file names

    def refuse(self, reason: str) -> NoReturn:
        """Raise UnsupportedModelError with this reason."""
        raise UnsupportedModelError(f"{self.where}: {reason}")

    def expect(self, **attrs: Any) -> None:
        """Refuse an attribute that is there with another value than these."""
        for name, value in attrs.items():
            found = self.attrs.pop(name, value)
            if found != value:
                self.refuse(f"{name} is {found!r}, supported is {value!r}")

    def no_more(self, *names: str) -> None:
        """Refuse attributes other than these."""
        unknown = set(self.attrs) - set(names)
        if unknown:
            self.refuse(f"has attributes {sorted(unknown)}, which are not supported")

    def input(self, index: int) -> str:
        """An input, or "" where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def given(self, first: int, last: int, *, but: Sequence[int] = ()) -> None:
        """Refuse fewer inputs than `first` or more than `last`, and one left out of the first of
        them, unless `but` has it."""
        needed = [value for index, value in enumerate(self.inputs[:first]) if index not in but]
        if not first <= len(self.inputs) <= last or "" in needed:
            found = sum(map(bool, self.inputs))
            self.refuse(f"{found} inputs, expected {first - len(but)} to {last}")

    def only(self, *indices: int) -> None:
        """Refuse inputs other than these."""
        for index, value in enumerate(self.inputs):
            if value and index not in indices:
                self.refuse(f"its input {index} ({value!r}) is not supported")

    def shape(self, value: str) -> tuple[int, ...]:
        """The shape of a value."""
        return self.builder.shape(value)

    def ints(self, values: Any) -> str:
        """A constant of integers."""
        return self.builder.literal(values, "int64")

    def emit(self, op: str, *inputs: str, **attrs: Any) -> str:
        """The one result of an operator of the IR."""
        return self.builder.emit(op, inputs, attrs, self.name, 1)[0]

    def number(self, value: float) -> str:
        """A constant that is a number."""
        return self.builder.literal(value, "float32")


Conversion = Callable[[Call], "str | list[str]"]
_F = TypeVar("_F", bound=Conversion)


class Table(dict[str, Conversion]):
    """Conversions by the names of operators."""

    def of(self, *ops: str) -> Callable[[_F], _F]:
        """Register what is decorated for these operators."""

        def register(function: _F) -> _F:
            self.update(dict.fromkeys(ops, function))
            return function

        return register
