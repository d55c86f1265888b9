"""Reader of ONNX files. Needs the ``onnx`` package, for parsing only.

Initialisers become constants (mapped from the file they lie in, external data included), nodes
become the IR's operators (:mod:`bertrt.models.onnx.operators`), and three things are settled on the
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
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bertrt.compiler.evaluate import compute
from bertrt.compiler.ir import Graph
from bertrt.compiler.pipeline import SIZES
from bertrt.compiler.types import Type, infer
from bertrt.errors import MissingDependencyError, ModelFormatError, UnsupportedModelError
from bertrt.host.files import map_file, view
from bertrt.models.onnx.operators import DOMAINS, Call, convert
from bertrt.plan.weights import Constant

__all__ = ["open_onnx", "read_onnx"]

# Before opset 7 operators broadcast by other rules.
_OPSETS = range(7, 27)
# The size of the axis that bertrt's own writer calls so: it must not be taken for the sequence.
_OTHER_SIZES = {"num_masked": 4}
# A float constant of a Constant node is a number of the graph's arithmetic up to this many
# elements, a weight beyond.
_FEW = 16
# Constants are computed up to this many elements.
_MOST = 1 << 16
_COMMUTATIVE = ("Add", "Mul")


def read_onnx(path: str | Path, sizes: tuple[int, int] = SIZES[0]) -> Graph:
    """Read an ONNX model into the IR, its free axes taken to be ``sizes``, (batch, sequence).

    Raises what :func:`open_onnx` and the function that it returns raise.
    """
    return open_onnx(path)(sizes)


def open_onnx(path: str | Path) -> Callable[[tuple[int, int]], Graph]:
    """Parse an ONNX file, once; the function returned makes its graph at the sizes it is given.

    It and this one raise MissingFileError; MissingDependencyError where onnx is not installed;
    ModelFormatError for a broken file; UnsupportedModelError for an operator, an attribute, an
    element type or an opset that bertrt does not know. Messages name the file and the node.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(
            "reading ONNX files needs the onnx package: pip install bertrt[onnx]"
        ) from error

    path = Path(path)
    data = map_file(path)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data.tobytes())
    except Exception as error:  # protobuf's errors differ between its implementations
        raise ModelFormatError(f"{path}: not an ONNX file: {error}") from None
    stored: dict[str, Constant] = {}
    return lambda sizes: _Reader(path, data, model, onnx, sizes, stored).graph


class _Reader:
    """Turns a parsed model into a graph."""

    def __init__(
        self,
        path: Path,
        data: np.ndarray,
        model: Any,
        onnx: Any,
        sizes: tuple[int, int],
        stored: dict[str, Constant],
    ) -> None:
        self.path, self.onnx = path, onnx
        self.files = {path: data}
        self.stored = stored  # constants that were found in the files already, by name
        self.found_at = 0  # where the last inline tensor was found in the file
        self.graph = Graph(str(path))
        self.values: dict[str, str] = {"": ""}  # name in the file -> value in the graph
        self.known: set[str] = set()  # values whose elements are arithmetic, not weights
        source = model.graph
        if not source.node or not source.output:
            raise ModelFormatError(f"{path}: not an ONNX model: it has no nodes or no outputs")
        self._check_text("the model", *(o.domain for o in model.opset_import))
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
        for node in self._in_order(source.node):
            self._add_node(node)
        for output in source.output:
            self._check_text("an output", output.name)
            if not output.name or output.name in self.graph.outputs:
                raise ModelFormatError(
                    f"{path}: the output name {output.name!r} is empty, or there twice"
                )
            self.graph.outputs[output.name] = self._value(output.name, "the list of outputs")
        self.graph.prune()

    def _add_input(self, value: Any) -> None:
        tensor = value.type.tensor_type
        self._check_text("an input", value.name, *(dim.dim_param for dim in tensor.shape.dim))
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
        dtype = self._dtype(tensor.elem_type, f"input {value.name!r}")
        self._declare(value.name, value.name)
        self.graph.add_input(value.name, value.name, Type(_single(dtype), tuple(dims)))

    def _check_text(self, what: str, *texts: object) -> None:
        """Protobuf hands out strings that are not UTF-8 as bytes."""
        for text in texts:
            if not isinstance(text, str):
                raise ModelFormatError(f"{self.path}: {what}: the name {text!r} is not UTF-8")

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

    def _dtype(self, code: int, what: str) -> str:
        types = self.onnx.TensorProto
        names = {
            types.FLOAT: "float32",
            types.FLOAT16: "float16",
            types.DOUBLE: "float64",
            types.INT32: "int32",
            types.INT64: "int64",
            types.BOOL: "bool",
            types.UINT8: "uint8",
            types.INT8: "int8",
        }
        if code not in names:
            raise UnsupportedModelError(f"{self.path}: {what} has element type {code}")
        return names[code]

    # Constants

    def _add_constant(self, name: str, tensor: Any, few: int) -> None:
        """Floats of more than ``few`` elements are weights."""
        if name not in self.stored:
            self.stored[name] = self._constant(name, tensor, few)
        constant = self.stored[name]
        self._declare(name, name)
        self.graph.add_constant(constant)
        if constant.array.dtype.kind != "f" or constant.array.size <= few:
            self.known.add(name)

    def _constant(self, name: str, tensor: Any, few: int) -> Constant:
        what = f"tensor {name!r}"
        entries = (text for entry in tensor.external_data for text in (entry.key, entry.value))
        self._check_text(what, name, *entries)
        dtype = self._dtype(tensor.data_type, what)
        shape = tuple(tensor.dims)
        if any(extent < 0 for extent in shape) or len(shape) > 32:
            raise ModelFormatError(f"{self.path}: {what} has shape {shape}")
        size = prod(shape) * np.dtype(dtype).itemsize
        if tensor.data_location == self.onnx.TensorProto.EXTERNAL:
            constant = self._external(name, tensor, dtype, shape, size)
        elif tensor.HasField("raw_data"):
            raw = tensor.raw_data
            if len(raw) != size:
                raise ModelFormatError(
                    f"{self.path}: {what} of shape {shape} has {len(raw)} bytes, expected {size}"
                )
            if dtype == "float32" and prod(shape) > few:
                offset = self._find(raw)
                array = view(self.files[self.path], offset, dtype, shape)
                constant = Constant(name, array, self.path, offset)
            else:  # nobody asks where it lies
                constant = Constant(name, view(np.frombuffer(raw, np.uint8), 0, dtype, shape))
        else:
            constant = Constant(name, self._typed(tensor, what, dtype, shape))
        array = constant.array
        if array.dtype == np.float16 or (array.dtype == np.float64 and array.size <= few):
            array = array.astype(np.float32)
            array.flags.writeable = False
            constant = Constant(name, array)
        return constant

    def _find(self, raw: bytes) -> int:
        """Where these bytes lie in the file: tensors come in order, so this is one pass in all."""
        data = self.files[self.path]
        window = 1 << 22
        for start in (self.found_at, 0):
            for position in range(start, len(data), window):
                at = data[position : position + window + len(raw)].tobytes().find(raw)
                if at >= 0:
                    self.found_at = position + at
                    return self.found_at
        raise ModelFormatError(f"{self.path}: the bytes of a tensor are not in the file")

    def _external(
        self, name: str, tensor: Any, dtype: str, shape: tuple[int, ...], size: int
    ) -> Constant:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        parts = PurePosixPath(location)
        where = f"{self.path}: external data of tensor {name!r}"
        if not location or parts.is_absolute() or ".." in parts.parts or "\\" in location:
            raise ModelFormatError(f"{where} are in {location!r}, which leaves the directory")
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries.get("length", str(size)))
        except ValueError:
            raise ModelFormatError(f"{where}: bad offset or length in {entries}") from None
        file = self.path.parent / location
        if file not in self.files:
            self.files[file] = map_file(file)
        data = self.files[file]
        if length != size or offset < 0 or offset + size > len(data):
            raise ModelFormatError(
                f"{where}: bytes {offset} to {offset + length} of {len(data)}, shape {shape} "
                f"needs {size}"
            )
        return Constant(name, view(data, offset, dtype, shape), file, offset)

    def _typed(self, tensor: Any, what: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        fields = {"float32": "float_data", "float64": "double_data", "int64": "int64_data"}
        values = getattr(tensor, fields.get(dtype, "int32_data"))
        if len(values) != prod(shape):
            raise ModelFormatError(
                f"{self.path}: {what} of shape {shape} has {len(values)} elements"
            )
        if dtype == "float16":  # stored as the bits of each element
            array = np.array([v & 0xFFFF for v in values], np.uint16).view(np.float16)
        else:
            array = np.array(values, dtype)
        array = array.reshape(shape)
        array.flags.writeable = False
        return array

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
        names = (attribute.name for attribute in node.attribute)
        self._check_text(what, name, node.op_type, node.domain, *node.input, *node.output, *names)
        if node.domain not in DOMAINS:
            raise UnsupportedModelError(
                f"{self.path}: operator {node.domain}.{node.op_type} at node {name!r} "
                "is not supported"
            )
        if node.op_type == "Constant":
            self._add_constant_node(node, what)
            return
        attrs = {a.name: self._attribute(what, a) for a in node.attribute}
        if "to" in attrs:
            attrs["to"] = _single(self._dtype(attrs["to"], what))
        inputs = [self._value(value, what) for value in node.input]
        while inputs and not inputs[-1]:
            inputs.pop()
        outputs = list(node.output)
        while outputs and not outputs[-1]:
            outputs.pop()
        op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        call = Call(self, f"{self.path}: {what}", op, name, tuple(inputs), attrs, len(outputs))
        if not outputs or (not inputs and op != "Range"):
            raise ModelFormatError(f"{self.path}: {what} has no inputs or no outputs")
        results = convert(call)
        if len(results) != len(outputs):
            raise UnsupportedModelError(
                f"{self.path}: {what} has {len(outputs)} outputs, expected {len(results)}"
            )
        for own, value in zip(outputs, results, strict=True):
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
            return tuple(attribute.ints)
        if attribute.type == kinds.FLOAT:
            # The shortest number that is this float32: 1e-12 stays 1e-12.
            return float(str(np.float32(attribute.f)))
        if attribute.type == kinds.FLOATS:
            return tuple(attribute.floats)
        if attribute.type == kinds.STRING:
            return attribute.s.decode("utf-8", "replace")
        if attribute.type == kinds.TENSOR:
            dtype = self._dtype(attribute.t.data_type, what)
            try:
                array = self.onnx.numpy_helper.to_array(attribute.t)
            except (ValueError, TypeError) as error:
                raise ModelFormatError(f"{self.path}: {what}: broken tensor: {error}") from None
            return array.astype(_single(dtype))
        raise UnsupportedModelError(
            f"{self.path}: {what}: attribute {attribute.name!r} of kind {attribute.type}"
        )

    # What conversions ask for: see bertrt.models.onnx.operators.Builder

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
        except (ValueError, IndexError, TypeError, OverflowError) as error:
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
