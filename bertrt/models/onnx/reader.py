"""Reader of ONNX files. Needs the ``onnx`` package, for parsing only.

Initialisers become constants (read from the file they lie in, external data included), nodes
become the IR's operators (the modules beside this one), and three things are settled on the
way, so that the fusion passes see the encoder and not its exporter:

* **Sizes.** Free axes get small distinct sizes: an exporter's arithmetic on shapes, however it is
  written, is then a matter of computing it. :func:`~bertrt.models.onnx.plan.compile_onnx` reads a
  file with two pairs of sizes and expects the same plan from both.
* **What is known is computed**: whatever depends on integers and single numbers only.
* **Floats are float32.** Half-precision weights are widened, exactly; casts between them go.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.compiler.evaluate import compute
from bertrt.compiler.ir import Graph
from bertrt.compiler.passes import VIEWS
from bertrt.compiler.pipeline import SIZES
from bertrt.compiler.types import Type, infer
from bertrt.errors import MissingDependencyError, ModelFormatError, UnsupportedModelError
from bertrt.host.stored import File
from bertrt.models.onnx import attention, fused, operators, quantized
from bertrt.models.onnx.attributes import check_attributes
from bertrt.models.onnx.call import DOMAINS, MICROSOFT, Call, Quantized, Table
from bertrt.models.onnx.messages import check_messages
from bertrt.models.onnx.tensors import Tensors
from bertrt.plan.weights import Constant

__all__ = ["OnnxFile", "read_onnx"]

_CONVERSIONS = Table(
    operators.CONVERSIONS | attention.CONVERSIONS | fused.CONVERSIONS | quantized.CONVERSIONS
)

# Before opset 7 operators broadcast by other rules.
_OPSETS = range(7, 27)
# The size of the axis that bertrt's own writer calls so: it must not be taken for the sequence.
_OTHER_SIZES = {"num_masked": 4}
# A float constant of a Constant node is a number of the graph's arithmetic up to this many
# elements, a weight beyond.
_FEW = 16
# Exporters make of 24 layers up to ten thousand.
_MOST_NODES = 1 << 16
# Constants are computed up to this many elements.
_MOST = 1 << 16
_COMMUTATIVE = ("Add", "Mul")
_WEIGHTS = ("float32", "float64", "int8", "uint8")


def read_onnx(path: str | Path, sizes: tuple[int, int] = SIZES[0]) -> Graph:
    """Read an ONNX model into the IR, its free axes taken to be ``sizes``, (batch, sequence).

    Raises what :class:`OnnxFile` and its `graph` raise.
    """
    return OnnxFile(path).graph(sizes)


class OnnxFile:
    """A parsed ONNX file.

    Making it and `graph` raise MissingFileError; MissingDependencyError where onnx is not
    installed; ModelFormatError for a broken file; UnsupportedModelError for an operator, an
    attribute, an element type or an opset that bertrt does not know. Messages name the file and the
    node.

    Attributes:
        path: the file.
        inputs: the names of its inputs.
        quantized: the weights that were dequantised, by their names in the graphs read so far.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import onnx
        except ImportError as error:
            raise MissingDependencyError(
                "reading ONNX files needs the onnx package: pip install bertrt[onnx]"
            ) from error

        self.path = Path(path)
        data = File(self.path)
        self._model = onnx.ModelProto()
        content = data[:].tobytes()
        check_messages(content, str(path))
        try:
            self._model.ParseFromString(content)
        except Exception as error:  # protobuf's errors differ between its implementations
            raise ModelFormatError(f"{path}: not an ONNX file: {error}") from None
        self._tensors = Tensors(self.path, data, onnx)
        self.quantized: dict[str, Quantized] = {}
        initialised = {tensor.name for tensor in self._model.graph.initializer}
        self.inputs = [v.name for v in self._model.graph.input if v.name not in initialised]

    def graph(self, sizes: tuple[int, int]) -> Graph:
        """The graph, its free axes taken to be ``sizes``, (batch, sequence)."""
        return _Reader(self._model, self._tensors, self.quantized, sizes).graph


class _Reader:
    """Turns a parsed model into a graph."""

    def __init__(
        self,
        model: Any,
        tensors: Tensors,
        quantized: dict[str, Quantized],
        sizes: tuple[int, int],
    ) -> None:
        self.tensors, self.quantized = tensors, quantized
        path = self.path = tensors.path
        self.onnx = tensors.onnx
        self.integer_products: dict[str, tuple[str, str, str]] = {}
        self.graph = Graph(str(path))
        self.values: dict[str, str] = {"": ""}  # name in the file -> value in the graph
        self.known: set[str] = set()  # values whose elements are arithmetic, not weights
        source = model.graph
        if not source.node or not source.output:
            raise ModelFormatError(f"{path}: not an ONNX model: it has no nodes or no outputs")
        if len(source.node) > _MOST_NODES:
            raise ModelFormatError(
                f"{path} has {len(source.node)} nodes, and at most {_MOST_NODES} are read"
            )
        self.tensors.check_text("the model", *(o.domain for o in model.opset_import))
        versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
        if len(versions) != 1 or versions[0] not in _OPSETS:
            raise UnsupportedModelError(
                f"{path}: opset {versions}, expected one of {_OPSETS[0]} to {_OPSETS[-1]}"
            )
        self.opset = versions[0]
        if model.functions or source.sparse_initializer or source.quantization_annotation:
            raise UnsupportedModelError(
                f"{path}: local functions, sparse and quantised tensors are not supported"
            )
        initialised = {tensor.name for tensor in source.initializer}
        inputs = [value for value in source.input if value.name not in initialised]
        self.sizes, self.graph.fixed_length = _sizes(inputs, sizes)
        for value in inputs:
            self._add_input(value)
        for tensor in source.initializer:
            self._add_constant(tensor.name, tensor, few=1)
        # What is read; the file may name results beside these.
        self.read = {value for node in source.node for value in node.input}
        self.read |= {output.name for output in source.output}
        self.makers = {value: node for node in source.node for value in node.output if value}
        for node in self._in_order(source.node):
            self._add_node(node)
        for output in source.output:
            self.tensors.check_text("an output", output.name)
            if not output.name or output.name in self.graph.outputs:
                raise ModelFormatError(
                    f"{path}: the output name {output.name!r} is empty, or there twice"
                )
            self.graph.outputs[output.name] = self._value(output.name, "the list of outputs")
        self.graph.prune()

    def _add_input(self, value: Any) -> None:
        tensor = value.type.tensor_type
        extents = (dim.dim_param for dim in tensor.shape.dim)
        self.tensors.check_text("an input", value.name, *extents)
        if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
            raise ModelFormatError(f"{self.path}: input {value.name!r} has no type or no shape")
        dims: list[int] = []
        for axis, dim in enumerate(tensor.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value < 1:
                raise ModelFormatError(
                    f"{self.path}: input {value.name!r}: extent {dim.dim_value} of axis {axis}"
                )
            free = _OTHER_SIZES.get(dim.dim_param, self.sizes[min(axis, 1)])
            dims.append(dim.dim_value if dim.HasField("dim_value") else free)
        dtype = self.tensors.dtype(tensor.elem_type, f"input {value.name!r}")
        self._declare(value.name, value.name)
        self.graph.add_input(value.name, value.name, Type(_single(dtype), tuple(dims)))

    def _declare(self, name: str, value: str) -> None:
        if not name or name in self.values:
            raise ModelFormatError(f"{self.path}: the name {name!r} is empty, or there twice")
        self.values[name] = value

    def _value(self, name: str, reader: str) -> str:
        if name not in self.values:
            raise ModelFormatError(
                f"{self.path}: {reader} reads {name!r}, which nothing before it computes"
            )
        return self.values[name]

    def _add_constant(self, name: str, tensor: Any, few: int) -> None:
        """Floats and bytes of more than ``few`` elements are weights."""
        constant = self.tensors.constant(name, tensor, few)
        self._declare(name, name)
        self.graph.add_constant(constant)
        # Bytes are quantised weights, where they are no single numbers.
        if constant.dtype.name not in _WEIGHTS or prod(constant.shape) <= few:
            self.known.add(name)

    # Nodes

    def _in_order(self, nodes: Sequence[Any]) -> list[Any]:
        """The nodes, each behind those whose results it reads. Some tools do not sort them."""
        maker: dict[str, int] = {}
        for index, node in enumerate(nodes):
            for value in node.output:
                if value and value not in maker:  # a second maker is refused later
                    maker[value] = index
        readers: list[list[int]] = [[] for _ in nodes]
        missing = [0] * len(nodes)
        for index, node in enumerate(nodes):
            makers = {maker[value] for value in node.input if value in maker}
            missing[index] = len(makers)
            for other in makers:
                readers[other].append(index)
        # The first of the file's that can be next: sorted files stay as they are.
        ready = [index for index, count in enumerate(missing) if not count]
        order = []
        while ready:
            index = heapq.heappop(ready)
            order.append(index)
            for reader in readers[index]:
                missing[reader] -= 1
                if not missing[reader]:
                    heapq.heappush(ready, reader)
        if len(order) < len(nodes):
            cycle = [
                repr(node.name or node.output[0])
                for node, count in zip(nodes, missing, strict=True)
                if count
            ]
            raise ModelFormatError(
                f"{self.path}: nodes read each other's results in a cycle, in which, or behind "
                f"which, are {', '.join(cycle[:5])}{', ...' if len(cycle) > 5 else ''}"
            )
        return [nodes[index] for index in order]

    def _add_node(self, node: Any) -> None:
        name = node.name or (node.output[0] if node.output else "") or "without a name"
        what = f"node {name!r} ({node.op_type})"
        texts = [name, node.op_type, node.domain, *node.input, *node.output]
        texts += [attribute.name for attribute in node.attribute]
        self.tensors.check_text(what, *texts)
        if node.domain not in DOMAINS:
            raise UnsupportedModelError(
                f"{self.path}: operator {node.domain}.{node.op_type} at node {name!r} "
                "is not supported"
            )
        check_attributes(self.onnx, self.opset, node, f"{self.path}: {what}")
        if node.op_type == "Constant":
            self._add_constant_node(node, what)
            return
        attrs = {a.name: self._attribute(what, a) for a in node.attribute}
        if "to" in attrs:
            attrs["to"] = _single(self.tensors.dtype(attrs["to"], what))
        inputs = [self._value(value, what) for value in node.input]
        while inputs and not inputs[-1]:
            inputs.pop()
        outputs = list(node.output)
        while outputs and not outputs[-1]:
            outputs.pop()
        count = max((i for i, own in enumerate(outputs, 1) if own in self.read), default=0)
        op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        where = f"{self.path}: {what}"
        names = tuple(node.input)
        call = Call(self, where, op, name, tuple(inputs), names, attrs, count, len(outputs))
        if not outputs or (not inputs and op != "Range"):
            raise ModelFormatError(f"{self.path}: {what} has no inputs or no outputs")
        results = _convert(call)
        if not count <= len(results) <= len(outputs):
            raise UnsupportedModelError(
                f"{self.path}: {what} has {len(outputs)} outputs, expected {len(results)}"
            )
        for own, value in zip(outputs, results, strict=False):
            if own:
                self._declare(own, value)

    def _add_constant_node(self, node: Any, what: str) -> None:
        if len(node.attribute) != 1 or len(node.output) != 1:
            raise ModelFormatError(f"{self.path}: {what} has not one value")
        (attribute,) = node.attribute
        kinds = self.onnx.AttributeProto
        if attribute.name == "value" and attribute.type == kinds.TENSOR:
            self._add_constant(node.output[0], attribute.t, few=_FEW)
            return
        dtypes = {
            "value_int": "int64",
            "value_ints": "int64",
            "value_float": "float32",
            "value_floats": "float32",
        }
        if attribute.name not in dtypes:
            raise UnsupportedModelError(
                f"{self.path}: {what} holds {attribute.name!r}, expected a tensor or numbers"
            )
        values = self._attribute(what, attribute)
        self._declare(node.output[0], self.literal(values, dtypes[attribute.name]))

    def _attribute(self, what: str, attribute: Any) -> Any:
        kinds = self.onnx.AttributeProto
        if attribute.type == kinds.INT:
            return attribute.i
        if attribute.type == kinds.INTS:
            return tuple(self._few(what, attribute.ints))
        if attribute.type == kinds.FLOAT:
            # The shortest number that is this float32: 1e-12 stays 1e-12.
            return float(str(np.float32(attribute.f)))
        if attribute.type == kinds.FLOATS:
            return tuple(self._few(what, attribute.floats))
        if attribute.type == kinds.STRING:
            return attribute.s.decode("utf-8", "replace")
        if attribute.type == kinds.TENSOR:
            array = self.tensors.array(f"of {what}", attribute.t)
            return array.astype(_single(str(array.dtype)))
        raise UnsupportedModelError(
            f"{self.path}: {what}: attribute {attribute.name!r} of kind {attribute.type}"
        )

    def _few(self, what: str, values: Sequence[Any]) -> Sequence[Any]:
        if len(values) > _MOST:
            raise UnsupportedModelError(
                f"{self.path}: {what} has an attribute of {len(values)} numbers; at most {_MOST} "
                "are read"
            )
        return values

    # What conversions ask for: see bertrt.models.onnx.call.Builder

    def emit(
        self, op: str, inputs: Sequence[str], attrs: dict[str, Any] | None, name: str, count: int
    ) -> list[str]:
        attrs = dict(attrs or {})
        inputs = list(inputs)
        if op in _COMMUTATIVE and len(inputs) == 2 and self.graph.is_parametric(inputs[0]):
            inputs.sort(key=self.graph.is_parametric)
        if all(value in self.known for value in inputs if value):
            folded = self._fold(op, inputs, attrs, name)
            if folded is not None:
                return folded
        own = name
        while any(n in self.graph.nodes or n in self.graph.types for n in (own, f"{own}_0")):
            own += "_"
        # Results are named by the node: the names in the file may have been passed on already.
        node = self.graph.add(op, inputs, attrs, name=own)
        for value in node.outputs:
            self._numbers(name, op, self.graph.types[value])
        return list(node.outputs)

    def _numbers(self, name: str, op: str, kind: Type) -> list[int]:
        """The extents of a value, which have to be known."""
        numbers = [dim for dim in kind.shape if isinstance(dim, int)]
        if len(numbers) < len(kind.shape):
            raise UnsupportedModelError(
                f"{self.path}: node {name!r} ({op}): the shape of its result depends on what the "
                "model is given"
            )
        return numbers

    def made(self, name: str, make: Callable[[], np.ndarray]) -> str:
        stored = self.tensors.stored
        if name not in stored:
            array = np.ascontiguousarray(make())
            array.flags.writeable = False
            stored[name] = Constant(name, array)
        if name not in self.graph.types:
            self.graph.add_constant(stored[name])
        return name

    def rounded_by(self, name: str) -> tuple[str, tuple[str, ...]]:
        node = self.makers.get(name)
        while node is not None and node.op_type in VIEWS and node.input:
            node = self.makers.get(node.input[0])
        if node is None or node.op_type not in quantized.ROUNDING:
            return "", ()
        return node.op_type, tuple(self.values[own] for own in node.input[1:] if own)

    def is_weight(self, value: str) -> bool:
        return value in self.tensors.stored and value not in self.known

    def literal(self, values: Any, dtype: str) -> str:
        value = self.graph.literal(values, dtype)
        self.known.add(value)
        return value

    def shape(self, value: str) -> tuple[int, ...]:
        return tuple(int(dim) for dim in self.graph.shape(value))

    def dtype(self, value: str) -> str:
        return self.graph.types[value].dtype

    def _fold(
        self, op: str, inputs: Sequence[str], attrs: dict[str, Any], name: str
    ) -> list[str] | None:
        """The results of a node whose operands are known, as constants; None if it has to stay."""
        graph = self.graph
        kinds = infer(
            op, name, [graph.types[v] if v else None for v in inputs], attrs, graph.origin
        )
        if any(prod(self._numbers(name, op, kind)) > _MOST for kind in kinds):
            return None
        try:
            arrays = [graph.constants[v].array if v else None for v in inputs]
            results = compute(op, attrs, arrays)
        except KeyError:  # an operator without numpy form
            return None
        except (ValueError, IndexError, TypeError, OverflowError, MemoryError) as error:
            raise ModelFormatError(f"{self.path}: node {name!r} ({op}): {error}") from None
        values = []
        for index, (kind, result) in enumerate(zip(kinds, results, strict=True)):
            array = np.ascontiguousarray(result, kind.dtype).reshape(result.shape)
            if array.size <= _FEW:
                values.append(self.literal(array.tolist(), kind.dtype))
                continue
            array.flags.writeable = False
            own = f"{name}_{index}"
            while own in graph.types:
                own += "_"
            self.known.add(graph.add_constant(Constant(own, array)))
            values.append(own)
        return values


def _convert(call: Call) -> list[str]:
    """Add what a node means to the graph; returns the values of its results.

    Raises UnsupportedModelError for an operator or a setting that is not known, and what the
    typing of the IR raises.
    """
    function = _CONVERSIONS.get(call.op)
    if function is None:
        if call.op.removeprefix(f"{MICROSOFT}.").startswith(("QLinear", "QGemm")):
            call.refuse(
                "it computes in integers of a scale fixed before (QOperator), which is not "
                "supported: quantise to QDQ, or with quantize_dynamic"
            )
        if call.op.startswith(f"{MICROSOFT}."):
            call.refuse(f"operator {call.op} is not supported")
        return call.builder.emit(call.op, call.inputs, call.attrs, call.name, call.count)
    result = function(call)
    return result if isinstance(result, list) else [result]


def _sizes(inputs: Sequence[Any], free: tuple[int, int]) -> tuple[tuple[int, int], int | None]:
    """(batch, sequence), and the sequence if it is fixed.

    Sizes are as the inputs fix them, and where they leave them free, as given, or something else
    where that is taken.
    """
    fixed: list[int | None] = [None, None]
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        for axis in range(2) if len(dims) == 2 else ():
            if dims[axis].HasField("dim_value") and fixed[axis] is None:
                fixed[axis] = dims[axis].dim_value
    batch, length = fixed
    sizes = (
        batch or (free[0] if free[0] != length else free[0] + 1),
        length or (free[1] if free[1] != batch else free[1] + 1),
    )
    return sizes, length


def _single(dtype: str) -> str:
    """Arithmetic is in float32, whichever precision a file asks for."""
    return "float32" if dtype in ("float16", "float64") else dtype
