"""Write an exported symbol as ONNX.

The symbol is read into bertrt's IR, whose operators are ONNX's and where equal nodes exist once;
what is left to do here is to fold the little that depends on parameters only, and to serialise.
Weights are not copied: the ONNX file refers to the bytes of the ``.params`` file beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.compiler.ir import Graph
from bertrt.compiler.outputs import output_names
from bertrt.compiler.passes import gelu
from bertrt.compiler.pipeline import apply_pass
from bertrt.compiler.types import product
from bertrt.errors import InvalidInputError, MissingDependencyError
from bertrt.host.writing import write_bytes
from bertrt.models.symbol.reader import read_mxnet
from bertrt.plan.weights import Constant

__all__ = ["import_onnx", "symbol_to_onnx"]

_OPSET = 20  # the first with Gelu
_IR_VERSION = 9  # that of opset 20
_MAX_FOLDED_BYTES = 1 << 16


def import_onnx() -> Any:
    """The module onnx.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(
            "writing ONNX files needs the onnx package: pip install bertrt[export]"
        ) from error
    return onnx


def symbol_to_onnx(symbol_path: str | Path, params_path: str | Path, onnx_path: str | Path) -> Path:
    """Write the model of a ``*-symbol.json`` and its ``*.params`` as an ONNX file.

    Inputs are int64 and named ``token_ids`` and ``token_types`` (batch, sequence),
    ``valid_length`` (batch,) and ``masked_positions`` (batch, num_masked), as far as the model has
    them; outputs are named ``sequence_output``, ``pooled_output``, ``logits``,
    ``next_sentence_classifier_output`` and ``masked_lm_outputs``. Anything else that the model
    returns keeps the name it has in the symbol.

    ``params_path`` must lie in the directory of ``onnx_path``, because the file refers to it.

    Returns ``onnx_path``. Raises what :func:`bertrt.models.symbol.reader.read_mxnet` raises,
    InvalidInputError for a ``.params`` file elsewhere, MissingDependencyError without onnx and
    WriteError.
    """
    onnx = import_onnx()
    onnx_path = Path(onnx_path)
    params = Path(params_path).resolve()
    if params.parent != onnx_path.parent.resolve():
        raise InvalidInputError(
            f"{params_path} must lie beside {onnx_path}: the ONNX file refers to its weights"
        )
    graph = read_mxnet(symbol_path, params_path)
    apply_pass(graph, gelu)
    _fold_vectors(graph)
    write_bytes(onnx_path, _serialise(graph, onnx).SerializeToString())
    return onnx_path


def _fold_vectors(graph: Graph) -> None:
    """Compute the vectors that depend on parameters only, such as interleaved biases.

    Matrices stay expressions of the stored weights, so that no weight is stored twice; runtimes
    fold them when they load the model.
    """
    known = {name: constant.array for name, constant in graph.constants.items()}
    for node in list(graph.nodes.values()):
        compute = _EVALUATE.get(node.op)
        if compute is None or not all(value in known for value in node.inputs):
            continue
        kind = graph.types[node.output]
        # What depends on parameters only has extents that are all known.
        size = product(kind.shape)
        if isinstance(size, int) and size * np.dtype(kind.dtype).itemsize <= _MAX_FOLDED_BYTES:
            known[node.output] = compute(node.attrs, *(known[value] for value in node.inputs))
    for node in list(graph.nodes.values()):
        if node.name in graph.nodes and node.output in known and known[node.output].ndim == 1:
            array = np.ascontiguousarray(known[node.output])
            graph.replace_by_constant(node, Constant(node.output, array))
    graph.prune()


_EVALUATE: dict[str, Callable[..., np.ndarray]] = {
    "Reshape": lambda attrs, x, shape: x.reshape(
        [x.shape[axis] if dim == 0 else dim for axis, dim in enumerate(shape.tolist())]
    ),
    "Unsqueeze": lambda attrs, x, axes: np.expand_dims(x, tuple(axes.tolist())),
    "Concat": lambda attrs, *parts: np.concatenate(parts, axis=attrs["axis"]),
}


def _serialise(graph: Graph, onnx: Any) -> Any:
    helper = onnx.helper
    names = output_names(graph)

    def element_type(dtype: str) -> int:
        return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def value_info(value: str, name: str) -> Any:
        kind = graph.types[value]
        return helper.make_tensor_value_info(name, element_type(kind.dtype), kind.shape)

    nodes = []
    for node in graph.nodes.values():
        attrs = dict(node.attrs)
        if node.op == "Cast":
            attrs["to"] = element_type(attrs["to"])
        inputs, outputs = ([names.get(v, v) for v in side] for side in (node.inputs, node.outputs))
        nodes.append(helper.make_node(node.op, inputs, outputs, name=node.name, **attrs))
    proto = helper.make_graph(
        nodes,
        Path(graph.origin).stem,
        [value_info(value, value) for value in graph.inputs],
        [value_info(value, name) for value, name in names.items()],
        [_tensor(constant, onnx) for constant in graph.constants.values()],
    )
    return helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="bertrt",
    )


def _tensor(constant: Constant, onnx: Any) -> Any:
    if constant.file is None:
        return onnx.numpy_helper.from_array(constant.array, constant.name)
    tensor = onnx.TensorProto(name=constant.name, dims=constant.array.shape)
    tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(constant.array.dtype)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    where = {
        "location": constant.file.name,
        "offset": constant.offset,
        "length": constant.array.nbytes,
    }
    for key, value in where.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor
