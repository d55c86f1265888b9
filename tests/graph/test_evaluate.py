"""The compiler's numpy operators against onnxruntime, as files of several opsets have them."""

from __future__ import annotations

import numpy as np
import pytest

from bertrt.compiler.evaluate import evaluate
from bertrt.errors import BertrtError
from bertrt.models.onnx.reader import read_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

X = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
VECTOR = np.array([0.5, 2.0, -1.0, 3.0], np.float32)
MATRIX = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


# name -> (opset, operator, inputs beside x, attributes)
CASES = {
    **{
        f"{op.lower()}": (17, op, (), {})
        for op in ("Abs", "Ceil", "Erf", "Exp", "Floor", "Neg", "Reciprocal", "Relu", "Sigmoid",
                   "Tanh", "Identity", "Shape", "Size")
    },
    **{
        f"{op.lower()}": (17, op, (VECTOR,), {})
        for op in ("Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
                   "Max", "Min", "Mul", "Sub")
    },
    "pow": (17, "Pow", (np.float32(2),), {}),
    "mod": (17, "Mod", (VECTOR,), {"fmod": 1}),
    "gelu": (20, "Gelu", (), {}),
    "gelu tanh": (20, "Gelu", (), {"approximate": "tanh"}),
    "softmax": (17, "Softmax", (), {"axis": 1}),
    "softmax 11": (11, "Softmax", (), {"axis": 2}),
    "log softmax": (17, "LogSoftmax", (), {}),
    "clip": (17, "Clip", (np.float32(-0.5), np.float32(0.5)), {}),
    "clip 10": (10, "Clip", (), {"min": -0.5, "max": 0.25}),
    "mean": (17, "ReduceMean", (), {"axes": [-1], "keepdims": 0}),
    "mean 18": (18, "ReduceMean", (ints(0, 2),), {}),
    "mean of all": (17, "ReduceMean", (), {"keepdims": 0}),
    "sum 11": (11, "ReduceSum", (), {"axes": [1]}),
    "sum 13": (13, "ReduceSum", (ints(1),), {"keepdims": 0}),
    "l2": (17, "ReduceL2", (), {"axes": [1]}),
    "prod": (17, "ReduceProd", (), {"axes": [2]}),
    "max over": (17, "ReduceMax", (), {"axes": [2]}),
    "min over": (17, "ReduceMin", (), {"axes": [0]}),
    "sum of squares": (17, "ReduceSumSquare", (), {"axes": [2]}),
    "cumsum": (17, "CumSum", (np.array(1),), {}),
    "gather": (17, "Gather", (ints(2, -1),), {"axis": 1}),
    "gather elements": (17, "GatherElements", (np.zeros((3, 2, 4), np.int64),), {"axis": 1}),
    "gather nd": (17, "GatherND", (np.array([[0, 1], [2, 4]]),), {}),
    "unsqueeze 11": (11, "Unsqueeze", (), {"axes": [1, 4]}),
    "unsqueeze": (13, "Unsqueeze", (ints(-1),), {}),
    "transpose": (17, "Transpose", (), {"perm": [2, 0, 1]}),
    "transpose all": (17, "Transpose", (), {}),
    "reshape": (17, "Reshape", (ints(0, -1),), {}),
    "flatten": (17, "Flatten", (), {"axis": 2}),
    "flatten back": (17, "Flatten", (), {"axis": -1}),
    "expand": (17, "Expand", (ints(2, 1, 1, 1),), {}),
    "tile": (17, "Tile", (ints(1, 2, 1),), {}),
    "concat": (17, "Concat", (X[:, :2],), {"axis": 1}),
    "slice 9": (9, "Slice", (), {"starts": [1], "ends": [4], "axes": [1]}),
    "slice": (13, "Slice", (ints(0, -3), ints(2, 9), ints(0, 1)), {}),
    "cast": (17, "Cast", (), {"to": 7}),
    "cast half and back": (17, "Cast", (), {"to": 1}),
    "matmul": (17, "MatMul", (MATRIX,), {}),
    "shape from": (17, "Shape", (), {"start": -2}),
}  # fmt: skip


def write(path, opset, op, extra, attrs, outputs=1):
    helper = onnx.helper
    names = [f"c{i}" for i in range(len(extra))]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, ["x", *names], results, name="node", **attrs)
    tensors = [
        onnx.numpy_helper.from_array(np.asarray(array), name)
        for array, name in zip(extra, names, strict=True)
    ]
    # Two free axes of their own, which the file is read for; the value in question is fixed.
    ids = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["batch", "sequence"])
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, X.shape)
    outputs = [onnx.ValueInfoProto(name=name) for name in results]
    model = helper.make_model(
        helper.make_graph([node], "g", [ids, x], outputs, tensors),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("name", CASES)
def test_operator_equals_onnxruntime(tmp_path, name):
    opset, op, extra, attrs = CASES[name]
    path = write(tmp_path / "op.onnx", opset, op, extra, attrs)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": X, "ids": np.zeros((3, 5), np.int64)})
    graph = read_onnx(path)
    (value,) = graph.outputs.values()
    found = evaluate(graph, value, {"x": X})
    assert found.shape == expected.shape == tuple(graph.shape(value))
    assert found.dtype == expected.dtype == np.dtype(graph.types[value].dtype)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


REFUSED = {
    "softmax over two axes": (11, "Softmax", (), {"axis": 1}, "before opset 13 it flattens"),
    "reverse cumsum": (17, "CumSum", (np.array(1),), {"reverse": 1}, "reverse is 1"),
    "unknown operator": (17, "Selu", (), {}, "operator 'Selu'"),
    "unknown shape": (17, "NonZero", (), {}, "only those of a constant"),
    "misfit": (17, "MatMul", (MATRIX[:3],), {}, "does not fit"),
    "axis": (17, "Gather", (ints(0),), {"axis": 7}, "axis 7"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    *case, message = REFUSED[name]
    with pytest.raises(BertrtError, match=message) as caught:
        read_onnx(write(tmp_path / "op.onnx", *case))
    assert "node" in str(caught.value)
