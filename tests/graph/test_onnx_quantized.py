"""Quantised ONNX files: their weights exactly, and answers near onnxruntime's."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from bertrt import Engine
from bertrt.errors import BertrtWarning, UnsupportedModelError
from bertrt.models.onnx.plan import compile_onnx
from bertrt.plan.interpret import interpret

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

DIRECTORY = Path(__file__).parents[1] / "data" / "onnx"
EXACT = ("dynamic_int8", "dynamic_channels", "dynamic_optimized", "static_int8", "static_relu")
LENGTHS = np.array([9, 4, 1, 7])
# The last one for Python 3.10 is 1.23.
OLD = tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 24)


def at(name: str) -> Path:
    return DIRECTORY / f"{name}.onnx"


def sample() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    ids = rng.integers(3, 60, (4, 9))
    return {"token_ids": ids, "token_types": rng.integers(0, 2, (4, 9)), "valid_length": LENGTHS}


def run_file(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The first output by onnxruntime, of the tokens that are there."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    values = {
        "input_ids": inputs["token_ids"],
        "token_type_ids": inputs["token_types"],
        "attention_mask": (np.arange(9) < LENGTHS[:, None]).astype(np.int64),
    }
    feeds = {node.name: values[node.name] for node in session.get_inputs()}
    return valid(session.run(None, feeds)[0])


def valid(array: np.ndarray) -> np.ndarray:
    return array[np.arange(9) < LENGTHS[:, None]] if array.ndim == 3 else array


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """The mean difference in units of what is expected."""
    return float(np.abs(found - expected).mean() / np.abs(expected).mean())


def initialisers(path: Path) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("name", EXACT)
def test_integers_that_are_ours_become_int8_steps(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", BertrtWarning)
        plan, _ = compile_onnx(at(name))
    stated = {step.name for step in plan.steps if step.fields.get("precision") == "int8"}
    layers = [f"layer{i}.{part}" for i in (0, 1) for part in
              ("qkv", "attention_output", "ffn", "ffn_output")]  # fmt: skip
    assert stated == set(layers)
    integers = [
        plan.weights[weight].array
        for step in plan.steps if step.name in stated for weight in step.weights["weight"]
    ]  # fmt: skip
    stored = [array for array in initialisers(at(name)).values() if array.dtype == np.int8]
    for array in integers:  # as they are in the file, or a third of one
        assert array.dtype == np.int8
        assert any(
            np.array_equal(array, own)
            or (own.ndim == 2 and own.shape[1] == 3 * array.shape[1]
                and any(np.array_equal(array, part) for part in np.split(own, 3, axis=1)))
            for own in stored
        )  # fmt: skip
    inputs = sample()
    if name == "static_relu":
        inputs["token_types"] *= 0
    with Engine.load(at(name)) as engine:
        assert engine.precision == "int8"
        (found, *_) = engine.run(**inputs).values()
    (exact, *_) = interpret(plan, inputs).values()
    expected = run_file(at(name), inputs)
    # Rounding of what is computed: theirs to a range for all tokens, ours to each token's.
    assert error(valid(found), valid(exact)) < 0.02
    assert error(valid(found), expected) < 0.08


def test_integers_that_are_not_ours_run_dequantised():
    path = at("dynamic_uint8")
    with pytest.warns(BertrtWarning) as caught:
        plan, _ = compile_onnx(path)
    (warning,) = caught
    message = str(warning.message)
    assert str(path) in message and "dequantised, in fp32" in message and "\n" not in message
    assert "beyond 127" in message and "layer0.qkv" in message
    assert plan.precision is None
    # Each weight is what the file's integers, zero point and scale say, to the last bit.
    stored = initialisers(path)
    products = {
        node.output[0]: node.input
        for node in onnx.load(path).graph.node
        if node.op_type == "MatMulInteger"
    }
    dequantised = {name: c.array for name, c in plan.weights.items() if "dequantized" in name}
    assert len(dequantised) >= len(products) > 10
    scales = [array for array in stored.values() if array.dtype == np.float32 and array.size == 1]
    for _, weight, _, zero in products.values():
        integers = stored[weight].astype(np.float32) - stored[zero].astype(np.float32)
        found = dequantised[f"{weight}.dequantized"]
        with np.errstate(over="ignore"):
            assert any(np.array_equal(found, integers * scale) for scale in scales)
    inputs = sample()
    with pytest.warns(BertrtWarning), Engine.load(path) as engine:
        assert engine.precision == "fp32"
        found = engine.run(**inputs)["sequence_output"]
    exact = interpret(plan, inputs)["sequence_output"]
    assert np.abs(valid(found) - valid(exact)).max() < 1e-5
    assert error(valid(found), run_file(path, inputs)) < 0.08


def test_a_relu_that_the_quantizer_took_away():
    """The range of what it clips begins at 0, which is all that is left of it in the file."""
    assert "Relu" not in {node.op_type for node in onnx.load(at("static_relu")).graph.node}
    plan, _ = compile_onnx(at("static_relu"))
    assert [step.fields["activation"] for step in plan.steps if step.op == "linear"] == [
        "gelu_erf", "gelu_erf", "relu", "none"
    ]  # fmt: skip


@pytest.fixture
def changed(tmp_path):
    """``changed(name, edit)``: a copy of a file after ``edit(model)``."""

    def make(name, edit):
        model = onnx.load(str(at(name)))
        edit(model)
        path = tmp_path / "changed.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return make


def first(model, op):
    return next(node for node in model.graph.node if node.op_type == op)


def tensor(model, name):
    return next(t for t in model.graph.initializer if t.name == name)


def lowest(model):
    """A weight of -128, which int8 steps do not have."""
    weight = tensor(model, first(model, "MatMulInteger").input[1])
    array = onnx.numpy_helper.to_array(weight).copy()
    array[0, 0] = -128
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))


def by_input(model):
    """A scale for each input of a product."""
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    node = next(
        n for n in model.graph.node
        if n.op_type == "DequantizeLinear" and weights.get(n.input[0]) == (16, 24)
    )  # fmt: skip
    rows = 16
    for index, dtype in ((1, np.float32), (2, np.int8)):
        name = f"by_input_{index}"
        own = onnx.numpy_helper.to_array(tensor(model, node.input[index]))
        array = np.full(rows, own, dtype)
        if index == 1:
            array = (array * np.linspace(1, 1.2, rows)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        node.input[index] = name
    for attribute in node.attribute:
        if attribute.name == "axis":
            attribute.i = 0
            return
    node.attribute.append(onnx.helper.make_attribute("axis", 0))


@pytest.mark.parametrize(
    ("name", "edit", "reason"),
    [
        ("dynamic_int8", lowest, "integers up to 128 around its zero point, beyond 127"),
        ("static_int8", by_input, "a scale for each of its inputs, not of its outputs"),
    ],
)
def test_why_a_weight_runs_dequantised(changed, name, edit, reason):
    path = changed(name, edit)
    with pytest.warns(BertrtWarning, match=reason):
        plan, _ = compile_onnx(path)
    assert plan.precision is None
    inputs = sample()
    found = interpret(plan, inputs)["sequence_output"]
    if OLD and name == "static_int8":
        pytest.skip("onnxruntime 1.23 makes a QLinearMatMul of it that it cannot run")
    assert error(valid(found), run_file(path, inputs)) < 0.08


def integer_product(model):
    node = first(model, "MatMulInteger")
    node.op_type, node.name = "QLinearMatMul", "product"


def another_left_side(model):
    node = first(model, "MatMulInteger")
    node.name, node.input[0] = "product", node.input[1]


def negative_scale(model):
    node = next(
        n for n in model.graph.node
        if n.op_type == "QuantizeLinear" and not n.input[0].startswith("w")
    )  # fmt: skip
    scale = tensor(model, node.input[1])
    scale.CopyFrom(onnx.numpy_helper.from_array(np.float32(-1).reshape(()), scale.name))


def another_rounding(model):
    """Integers of one scale, read with another: that multiplies."""
    rounded = {n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    node = next(
        n for n in model.graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in rounded
    )  # fmt: skip
    scale = onnx.numpy_helper.to_array(tensor(model, node.input[1])) * np.float32(2)
    model.graph.initializer.append(onnx.numpy_helper.from_array(scale, "twice"))
    node.name, node.input[1] = "twice_as_much", "twice"


def static_integers(model):
    """A scale that is fixed before, and integers that are multiplied by it later."""
    node = first(model, "DynamicQuantizeLinear")
    node.op_type = "QuantizeLinear"
    for name, value in (("fixed", np.float32(0.1)), ("zero", np.uint8(0))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    _, scale, zero = node.output
    del node.output[1:]
    node.input.extend(["fixed", "zero"])
    for other in model.graph.node:
        for own, new in ((scale, "fixed"), (zero, "zero")):
            other.input[:] = [new if value == own else value for value in other.input]


def short_scale(model):
    node = first(model, "DequantizeLinear")
    short = np.ones(3, np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(short, "short"))
    node.input[1] = "short"


REFUSED = {
    "another rounding": ("static_int8", another_rounding, "twice_as_much.*not those of a Quant"),
    "static integers": ("dynamic_int8", static_integers, "not what a DynamicQuantizeLinear gives"),
    "short scale": ("static_int8", short_scale, r"'short' \(3,\)"),
    "QOperator": ("dynamic_int8", integer_product, r"product.*QOperator.*quantise to QDQ"),
    "left side": ("dynamic_int8", another_left_side, "not what a DynamicQuantizeLinear gives"),
    "scale": ("static_int8", negative_scale, "its scale is -1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(changed, name):
    source, edit, message = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        compile_onnx(changed(source, edit))
    assert "changed.onnx" in str(caught.value)


def test_scores_that_rounding_loses_are_refused():
    """With the mask's lowest number in their range, scores become multiples of 1e36: the file
    attends to all tokens alike, and answers something else than its model."""
    with pytest.raises(UnsupportedModelError, match=r"rounds scores to multiples of .*leave Add"):
        compile_onnx(at("static_scores"))
    inputs = sample()
    expected = run_file(at("dynamo18_model"), inputs)
    usual = error(run_file(at("static_int8"), inputs), expected)
    assert error(run_file(at("static_scores"), inputs), expected) > 3 * usual
