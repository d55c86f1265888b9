"""What the operators of quantised ONNX files become in the IR: those of float32.

A weight is dequantised, which is exact: ``(q - zero point) * scale``, in float32. Values that are
computed are left as they are: where a file rounds them to 8 bits (``QuantizeLinear``,
``DynamicQuantizeLinear``), the IR has them unrounded, and the scale 1 and the zero point 0 for what
reads them. What rounding cuts off stays cut off where that is the meaning: a range that begins at 0
takes the place of a Relu, which onnxruntime's quantizer removes.

Contracts: onnx/onnx ``docs/Operators.md``; microsoft/onnxruntime ``docs/ContribOperators.md``.
:mod:`bertrt.models.onnx.plan` makes int8 steps of such weights where they are integers as plans
have them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bertrt.compiler.evaluate import evaluate
from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import VIEWS
from bertrt.models.onnx.attention import attend_projections
from bertrt.models.onnx.call import MICROSOFT, Call, Quantized, Table
from bertrt.models.onnx.fused import embed_layer_norm

__all__ = ["CONVERSIONS", "ROUNDING"]

CONVERSIONS = Table()

# What rounds values, which stay unrounded here
ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear")
_PARTS = ("query", "key", "value")
_NONNEGATIVE = (
    "Abs", "Exp", "ReduceL2", "ReduceSumSquare", "Relu", "Sigmoid", "Softmax", "Sqrt"
)  # fmt: skip
# A range as wide as this has BERT's mask in it, which adds -10,000.
_MASKED = 9999.0
_RANGES = {"uint8": (0, 255), "int8": (-128, 127)}


@CONVERSIONS.of("DequantizeLinear", f"{MICROSOFT}.DequantizeLinear")
def _dequantize(call: Call) -> str:
    axis = call.attrs.pop("axis", 1)
    call.expect(block_size=0, output_dtype=0)
    call.given(2, 3)
    x, scale, zero = call.input(0), call.input(1), call.input(2)
    graph = call.builder.graph
    if call.builder.dtype(x) == "float32":  # was not rounded
        _same_rounding(call, scale, zero)
        return x
    views: list[Node] = []
    base = x
    while (node := graph.producer(base)) is not None and node.op in VIEWS and node.op != "Split":
        views.insert(0, node)
        base = node.inputs[0]
    if base not in graph.constants:
        call.refuse("what it reads is neither a weight nor the result of a QuantizeLinear")
    if views and graph.array(scale) is not None and graph.types[scale].shape not in ((), (1,)):
        call.refuse("a scale for each slice of a weight that is turned first is not supported")
    value = _weight(call, base, scale, zero, axis)
    for node in views:
        (value,) = call.builder.emit(node.op, [value, *node.inputs[1:]], node.attrs, call.name, 1)
    return value


@CONVERSIONS.of("QuantizeLinear", f"{MICROSOFT}.QuantizeLinear")
def _quantize(call: Call) -> str:
    axis = call.attrs.pop("axis", 1)
    call.attrs.pop("saturate", None)
    call.expect(block_size=0, precision=0, output_dtype=0)
    call.given(2, 3)
    x, scale, zero = call.input(0), call.input(1), call.input(2)
    graph, dtype = call.builder.graph, call.builder.dtype(call.input(2)) if zero else "uint8"
    if dtype not in _RANGES:
        call.refuse(f"it rounds to {dtype}, supported are {' and '.join(_RANGES)}")
    low, high = _RANGES[dtype]
    if graph.is_parametric(x):
        if graph.scalar(x) is None and not call.builder.is_weight(x):
            return x  # rows of a table, say

        def rounded() -> np.ndarray:
            values = evaluate(graph, x, {})
            steps = np.rint(values / _along(call, scale, values.shape, axis))
            zeros = _along(call, zero, values.shape, axis) if zero else np.int16(0)
            return np.clip(steps + zeros, low, high).astype(dtype)

        if graph.scalar(x) is not None:
            return call.builder.literal(rounded().tolist(), dtype)
        return call.builder.made(f"{x}.quantized", rounded)
    scales, zeros = _array(call, scale), _array(call, zero) if zero else np.zeros((), np.uint8)
    if scales.size != 1 or zeros.size != 1:
        call.refuse("a scale for each part of what is computed is not supported")
    step = float(scales.ravel()[0])
    if not step > 0:
        call.refuse(f"its scale is {step:g}")
    if step * (high - low) >= _MASKED and _of_products(graph, x):
        call.refuse(
            f"it rounds scores to multiples of {step:g}, because the mask is added to them before, "
            "and so loses them: leave Add and Softmax out of the operators that are quantised"
        )
    offset = int(zeros.ravel()[0])
    if offset == low and not _never_negative(graph, x):
        return call.emit("Relu", x)
    if offset == high:
        return call.emit("Clip", x, "", call.number(0.0))
    return x


def _same_rounding(call: Call, scale: str, zero: str) -> None:
    """Refuse a scale or a zero point other than that of what rounded: it would change numbers."""
    maker, own = call.builder.rounded_by(call.names[0])
    if maker == "DynamicQuantizeLinear":
        own = (call.number(1.0), call.builder.literal(0, "uint8"))
    pairs = zip((scale, zero) if zero else (scale,), own, strict=False)
    if (
        not maker
        or len(own) != (2 if zero else 1)
        or not all(a == b or np.array_equal(_array(call, a), _array(call, b)) for a, b in pairs)
    ):
        call.refuse("its scale and zero point are not those of a QuantizeLinear before it")


def _of_products(graph: Graph, value: str) -> bool:
    """Whether products, masked or scaled, are what a value is."""
    node = graph.producer(value)
    if node is None or node.op not in (*VIEWS, "Add", "Div", "MatMul", "Mul", "Sub", "Where"):
        return False
    return node.op == "MatMul" or any(_of_products(graph, own) for own in node.inputs if own)


def _never_negative(graph: Graph, value: str) -> bool:
    node = graph.producer(value)
    if node is None:
        return False
    first = node.inputs[0]
    if node.op in (
        "Abs",
        "Exp",
        "ReduceL2",
        "ReduceSumSquare",
        "Relu",
        "Sigmoid",
        "Softmax",
        "Sqrt",
    ):
        return True
    if node.op in (*VIEWS, "Clip", "ReduceMax", "ReduceMean", "ReduceSum"):
        return _never_negative(graph, first)
    if node.op == "Pow":
        return graph.scalar(node.inputs[1]) == 2
    if node.op == "Mul":
        return first == node.inputs[1]
    if node.op == "Add":
        number = graph.scalar(node.inputs[1])
        maker = graph.producer(first)
        if number is not None and maker is not None and maker.op == "Erf":
            return number >= 1
        return number is not None and number >= 0 and _never_negative(graph, first)
    return False


@CONVERSIONS.of("DynamicQuantizeLinear")
def _dynamic(call: Call) -> list[str]:
    call.given(1, 1)
    return [call.input(0), call.number(1.0), call.builder.literal(0, "uint8")]


@CONVERSIONS.of("MatMulInteger")
def _matmul_integer(call: Call) -> str:
    """The product with the integers; `_mul` finds the scale that it is multiplied by."""
    call.given(2, 4)
    x, weight, zero = call.input(0), call.input(1), call.input(3)
    _unrounded(call, 0, call.input(2))
    graph = call.builder.graph
    if not graph.is_parametric(weight):
        _unrounded(call, 1, zero)
        return call.emit("MatMul", x, weight)
    integers = call.builder.made(
        f"{weight}.integers",
        lambda: _integers(call, weight, zero, 1).astype(np.float32),
    )
    product = call.emit("MatMul", x, integers)
    call.builder.integer_products[product] = (x, weight, zero)
    return product


@CONVERSIONS.of("Mul")
def _mul(call: Call) -> str:
    products, graph = call.builder.integer_products, call.builder.graph
    for value, scale in (call.inputs, call.inputs[::-1]) if len(call.inputs) == 2 else ():
        if value in products and graph.is_parametric(scale):
            x, weight, zero = products[value]
            return call.emit("MatMul", x, _weight(call, weight, scale, zero, 1))
    return call.emit("Mul", *call.inputs, **call.attrs)


@CONVERSIONS.of(f"{MICROSOFT}.DynamicQuantizeMatMul")
def _dynamic_matmul(call: Call) -> str:
    call.given(3, 5)
    x, weight, scale, zero, bias = (call.input(i) for i in range(5))
    product = call.emit("MatMul", x, _weight(call, weight, scale, zero, 1))
    return call.emit("Add", product, bias) if bias else product


@CONVERSIONS.of(f"{MICROSOFT}.MatMulIntegerToFloat")
def _matmul_to_float(call: Call) -> str:
    call.given(4, 7)
    x, weight, x_scale, scale, x_zero, zero, bias = (call.input(i) for i in range(7))
    _unrounded(call, 0, x_zero, x_scale)
    product = call.emit("MatMul", x, _weight(call, weight, scale, zero, 1))
    return call.emit("Add", product, bias) if bias else product


@CONVERSIONS.of(f"{MICROSOFT}.QAttention")
def _attention(call: Call) -> str:
    """Query, key and value are columns of one weight, and become three."""
    call.given(5, 9)
    call.only(0, 1, 2, 3, 4, 5, 6, 7)
    x, weight, bias, x_scale, scale, mask, x_zero, zero = (call.input(i) for i in range(8))
    _unrounded(call, 0, x_zero, x_scale)
    graph = call.builder.graph
    if weight not in graph.constants or call.shape(weight)[1] % 3:
        call.refuse(f"its weight {weight!r} is no parameter of query, key and value side by side")
    whole = _quantized(call, weight, scale, zero, 1)
    scales = np.broadcast_to(whole.scale, (1, whole.integers.shape[1]))
    biases = call.builder.emit("Split", [bias], {"axis": 0, "num_outputs": 3}, call.name, 3)
    parts = []
    for index, (integers, own) in enumerate(
        zip(np.split(whole.integers, 3, axis=1), np.split(scales, 3, axis=1), strict=True)
    ):
        part = _declared(call, f"{weight}.dequantized.{_PARTS[index]}", Quantized(integers, own))
        parts.append(call.emit("Add", call.emit("MatMul", x, part), biases[index]))
    return attend_projections(call, parts, mask, "")


@CONVERSIONS.of(f"{MICROSOFT}.QEmbedLayerNormalization")
def _embed(call: Call) -> list[str]:
    call.given(13, 18, but=(1, 4, 7, 10))
    call.only(*range(18))
    ids, types = call.inputs[:2]
    tables = [
        _weight(call, call.input(i), call.input(i + 6), call.input(i + 11), 1)
        if call.input(i)
        else ""
        for i in range(2, 7)
    ]
    return embed_layer_norm(replace(call, inputs=(ids, types, *tables, call.input(7))))


def _unrounded(call: Call, index: int, zero: str, scale: str = "") -> None:
    """Refuse to compute in integers what a QuantizeLinear has rounded: its scale is applied later,
    and the values that it left unrounded have it already."""
    graph = call.builder.graph
    if (
        call.builder.rounded_by(call.names[index])[0] != "DynamicQuantizeLinear"
        or (zero and graph.scalar(zero) != 0)
        or (scale and graph.scalar(scale) != 1)
    ):
        call.refuse(
            f"its input {index} is not what a DynamicQuantizeLinear gives, which alone is supported"
        )


def _weight(call: Call, value: str, scale: str, zero: str, axis: int) -> str:
    """The float32 values of a quantised parameter."""
    if not call.builder.graph.is_parametric(value):
        call.refuse(f"{value!r} is computed, expected a parameter")
    quantized = _quantized(call, value, scale, zero, axis)
    if quantized.integers.size == 1:
        return call.builder.literal(quantized.values.tolist(), "float32")
    return _declared(call, f"{value}.dequantized", quantized)


def _declared(call: Call, name: str, quantized: Quantized) -> str:
    known = call.builder.quantized.setdefault(name, quantized)
    if known is not quantized and not (
        np.array_equal(known.scale, quantized.scale)
        and np.array_equal(known.integers, quantized.integers)
    ):
        call.refuse(f"a weight with two scales or zero points ({name}) is not supported")
    return call.builder.made(name, lambda: known.values)


def _quantized(call: Call, value: str, scale: str, zero: str, axis: int) -> Quantized:
    integers = _integers(call, value, zero, axis)
    scales = _along(call, scale, integers.shape, axis)
    if not np.isfinite(scales).all():
        call.refuse(f"the scale {scale!r} is not finite")
    return Quantized(integers, scales.astype(np.float32))


def _integers(call: Call, value: str, zero: str, axis: int) -> np.ndarray:
    array = _array(call, value)
    if array.dtype.kind not in "iu":
        call.refuse(f"{value!r} is {array.dtype}, expected integers")
    # Biases are 32 bits wide, and everything else 8, and 9 without its zero point.
    wide = array.astype(np.int64 if array.dtype.itemsize > 1 else np.int16)
    if zero:
        wide = wide - _along(call, zero, wide.shape, axis).astype(wide.dtype)
    return wide


def _along(call: Call, value: str, whole: tuple[int, ...], axis: int) -> np.ndarray:
    """A number, or one for each slice of a whole along an axis, so that it broadcasts."""
    array = _array(call, value)
    if array.size == 1:
        return array.reshape(())
    rank = len(whole)
    fits = -rank <= axis < rank
    shape = tuple(whole[i] if fits and i == axis % rank else 1 for i in range(rank))
    if not fits or array.shape not in (shape, (whole[axis],)):
        call.refuse(f"{value!r} {array.shape} does not fit {whole} along axis {axis}")
    return array.reshape(shape)


def _array(call: Call, value: str) -> np.ndarray:
    graph = call.builder.graph
    if not graph.is_parametric(value):
        call.refuse(f"{value!r} is computed, expected a parameter")
    return np.asarray(evaluate(graph, value, {}))
