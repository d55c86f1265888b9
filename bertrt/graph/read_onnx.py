"""Reader of ONNX files. Needs the ``onnx`` package, for parsing only.

The IR's operators are ONNX's, so there is little to convert: initialisers become constants (mapped
from the file they lie in, external data included), Identity and Dropout disappear, and every other
node is added as it is.
"""

from __future__ import annotations

import re
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bertrt.errors import MissingDependencyError, ModelFormatError, UnsupportedModelError
from bertrt.graph.ir import Constant, Graph
from bertrt.graph.params import map_file, view
from bertrt.graph.types import Dim, Type

__all__ = ["read_onnx"]

# The operators of the IR mean the same in all of these.
_OPSETS = range(13, 25)
# Attributes that change nothing at this value
_NEUTRAL = {
    ("LayerNormalization", "stash_type"): 1,
    ("Reshape", "allowzero"): 0,
    ("Cast", "saturate"): 1,
}
_PASS_THROUGH = ("Identity", "Dropout")


def read_onnx(path: str | Path) -> Graph:
    """Read an ONNX model into the IR.

    Raises MissingFileError; MissingDependencyError where onnx is not installed; ModelFormatError
    for a broken file; UnsupportedModelError for an operator, an attribute, an element type or an
    opset that bertrt does not know. Messages name the file and the node.
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
    return _Reader(path, data, model, onnx).graph


class _Reader:
    """Turns a parsed model into a graph."""

    def __init__(self, path: Path, data: np.ndarray, model: Any, onnx: Any) -> None:
        self.path, self.onnx = path, onnx
        self.files = {path: data}
        self.found_at = 0  # where the last inline tensor was found in the file
        self.graph = Graph(str(path))
        self.values: dict[str, str] = {"": ""}  # name in the file -> value in the graph
        source = model.graph
        if not source.node or not source.output:
            raise ModelFormatError(f"{path}: not an ONNX model: it has no nodes or no outputs")
        self._check_text("the model", *(o.domain for o in model.opset_import))
        versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
        if len(versions) != 1 or versions[0] not in _OPSETS:
            raise UnsupportedModelError(
                f"{path}: opset {versions}, expected one of {_OPSETS[0]} to {_OPSETS[-1]}"
            )
        if model.functions or source.sparse_initializer or source.quantization_annotation:
            raise UnsupportedModelError(
                f"{path}: local functions, sparse and quantised tensors are not supported"
            )
        stored = {tensor.name for tensor in source.initializer}
        for value in source.input:
            if value.name not in stored:
                self._add_input(value)
        for tensor in source.initializer:
            self._add_constant(tensor.name, tensor)
        for index, node in enumerate(source.node):
            self._add_node(index, node)
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
        dims: list[Dim] = []
        for axis, dim in enumerate(tensor.shape.dim):
            if dim.HasField("dim_value"):
                if dim.dim_value < 1:
                    raise ModelFormatError(
                        f"{self.path}: input {value.name!r}: extent {dim.dim_value} of axis {axis}"
                    )
                dims.append(dim.dim_value)
            else:
                symbol = re.sub(r"[^A-Za-z0-9_]", "_", dim.dim_param)
                dims.append(
                    f"_{symbol}" if symbol[:1].isdecimal() else symbol or f"{value.name}_{axis}"
                )
        kind = Type(self._dtype(tensor.elem_type, f"input {value.name!r}"), tuple(dims))
        self._declare(value.name, value.name)
        self.graph.add_input(value.name, value.name, kind)

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
        }
        if code not in names:
            raise UnsupportedModelError(f"{self.path}: {what} has element type {code}")
        return names[code]

    # Constants

    def _add_constant(self, name: str, tensor: Any) -> None:
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
            offset = self._find(raw)
            array = view(self.files[self.path], offset, dtype, shape)
            constant = Constant(name, array, self.path, offset)
        else:
            constant = Constant(name, self._typed(tensor, what, dtype, shape))
        self._declare(name, name)
        self.graph.add_constant(constant)

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

    def _add_node(self, index: int, node: Any) -> None:
        name = node.name or (node.output[0] if node.output else "") or f"node_{index}"
        what = f"node {name!r} ({node.op_type})"
        names = (attribute.name for attribute in node.attribute)
        self._check_text(what, name, node.op_type, node.domain, *node.input, *node.output, *names)
        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedModelError(
                f"{self.path}: operator {node.domain}.{node.op_type} at node {name!r} "
                "is not supported"
            )
        attrs = {a.name: self._attribute(what, a) for a in node.attribute}
        if node.op_type == "Constant" and set(attrs) == {"value"} and len(node.output) == 1:
            if not isinstance(attrs["value"], self.onnx.TensorProto):
                raise ModelFormatError(f"{self.path}: {what} holds no tensor")
            self._add_constant(node.output[0], attrs["value"])
            return
        if any(isinstance(value, self.onnx.TensorProto) for value in attrs.values()):
            raise UnsupportedModelError(f"{self.path}: {what} has a tensor as attribute")
        inputs = [self._value(value, what) for value in node.input]
        while inputs and not inputs[-1]:
            inputs.pop()
        outputs = list(node.output)
        while outputs and not outputs[-1]:
            outputs.pop()
        if node.op_type in _PASS_THROUGH and inputs and inputs[0] and len(outputs) == 1:
            self._declare(outputs[0], inputs[0])
            return
        attrs = {k: v for k, v in attrs.items() if _NEUTRAL.get((node.op_type, k), ...) != v}
        if node.op_type == "Cast" and "to" in attrs:
            attrs["to"] = self._dtype(attrs["to"], what)
        while name in self.graph.nodes:
            name += "_"
        added = self.graph.add(node.op_type, inputs, attrs, name=name, outputs=outputs)
        for own, value in zip(outputs, added.outputs, strict=True):
            self._declare(own, value)

    def _attribute(self, what: str, attribute: Any) -> Any:
        kinds = self.onnx.AttributeProto
        if attribute.type == kinds.INT:
            return attribute.i
        if attribute.type == kinds.INTS:
            return tuple(attribute.ints)
        if attribute.type == kinds.FLOAT:
            # The shortest number that is this float32: 1e-12 stays 1e-12.
            return float(str(np.float32(attribute.f)))
        if attribute.type == kinds.STRING:
            return attribute.s.decode("utf-8", "replace")
        if attribute.type == kinds.TENSOR:
            return attribute.t
        raise UnsupportedModelError(
            f"{self.path}: {what}: attribute {attribute.name!r} of kind {attribute.type}"
        )
