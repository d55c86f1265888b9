"""What the operators of ONNX files become in the IR.

The IR has each operator once, as opset 20 has it. Older spellings (axes as attributes, Softmax over
flattened axes), shorthands (Gemm, Flatten) and the fused operators that onnxruntime's optimizer
leaves (``com.microsoft``) are written out here, so that the fusion passes see one spelling.
Contracts of the operators: onnx/onnx ``docs/Operators.md`` and ``docs/Changelog.md``;
microsoft/onnxruntime ``docs/ContribOperators.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np

from bertrt.errors import UnsupportedModelError

__all__ = ["DOMAINS", "Builder", "Call", "convert"]

MICROSOFT = "com.microsoft"
DOMAINS = ("", "ai.onnx", MICROSOFT)


class Builder(Protocol):
    """What a conversion may ask of the reader."""

    opset: int

    def emit(
        self, op: str, inputs: Sequence[str], attrs: dict[str, Any] | None, name: str, count: int
    ) -> list[str]:
        """The results of an operator of the IR: a node, or constants where all is known."""
        ...

    def literal(self, values: Any, dtype: str) -> str:
        """A constant with these values."""
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
    attrs: dict[str, Any]
    count: int  # of results that are used

    def refuse(self, reason: str) -> NoReturn:
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

    def given(self, first: int, last: int) -> None:
        """Refuse anything but this number of inputs."""
        if not first <= len(self.inputs) <= last or "" in self.inputs[:first]:
            self.refuse(f"{len(self.inputs)} inputs, expected {first} to {last}")

    def only(self, *indices: int) -> None:
        """Refuse inputs other than these."""
        for index, value in enumerate(self.inputs):
            if value and index not in indices:
                self.refuse(f"its input {index} ({value!r}) is not supported")

    def shape(self, value: str) -> tuple[int, ...]:
        return self.builder.shape(value)

    def ints(self, values: Any) -> str:
        return self.builder.literal(values, "int64")

    def emit(self, op: str, *inputs: str, **attrs: Any) -> str:
        return self.builder.emit(op, inputs, attrs, self.name, 1)[0]

    def number(self, value: float) -> str:
        return self.builder.literal(value, "float32")


def convert(call: Call) -> list[str]:
    """Add what a node means to the graph; returns the values of its results.

    Raises UnsupportedModelError for an operator or a setting that is not known, and what the
    typing of the IR raises.
    """
    function = _CONVERSIONS.get(call.op)
    if function is None:
        if call.op.startswith(f"{MICROSOFT}."):
            call.refuse(f"operator {call.op} is not supported")
        return call.builder.emit(call.op, call.inputs, call.attrs, call.name, call.count)
    result = function(call)
    return result if isinstance(result, list) else [result]


_CONVERSIONS: dict[str, Callable[[Call], str | list[str]]] = {}


def _conversion(*ops: str) -> Callable[[Any], Any]:
    def register(function: Callable[[Call], Any]) -> Callable[[Call], Any]:
        _CONVERSIONS.update(dict.fromkeys(ops, function))
        return function

    return register


# Older spellings and shorthands


@_conversion("Identity", "Dropout")
def _pass_through(call: Call) -> str:
    if call.count != 1:
        call.refuse("its mask is used: it was exported for training")
    return call.inputs[0]


@_conversion("Unsqueeze")
def _unsqueeze(call: Call) -> str:
    axes = call.attrs.pop("axes", None)
    return call.emit("Unsqueeze", call.input(0), call.input(1) if axes is None else call.ints(axes))


@_conversion("Squeeze")
def _squeeze(call: Call) -> str:
    axes = call.attrs.pop("axes", None)
    if axes is not None:
        where = call.ints(axes)
    elif call.input(1):
        where = call.input(1)
    else:
        where = call.ints([i for i, dim in enumerate(call.shape(call.input(0))) if dim == 1])
    return call.emit("Squeeze", call.input(0), where)


@_conversion("Split")
def _split(call: Call) -> list[str]:
    sizes = call.attrs.pop("split", None)
    inputs = [call.input(0)]
    if sizes is not None or call.input(1):
        inputs.append(call.input(1) if sizes is None else call.ints(sizes))
    else:
        call.attrs.setdefault("num_outputs", call.count)
    return call.builder.emit("Split", inputs, call.attrs, call.name, call.count)


@_conversion("Slice")
def _slice(call: Call) -> str:
    if "starts" not in call.attrs:
        return call.emit("Slice", *call.inputs, **call.attrs)
    starts, ends = call.attrs.pop("starts"), call.attrs.pop("ends", ())
    axes = call.attrs.pop("axes", tuple(range(len(starts))))
    return call.emit("Slice", call.input(0), *map(call.ints, (starts, ends, axes)), **call.attrs)


@_conversion("Softmax", "LogSoftmax")
def _softmax(call: Call) -> str:
    rank = len(call.shape(call.input(0)))
    if call.builder.opset < 13:
        # All axes from this one on are one: the same thing where only the last is longer than 1.
        axis = call.attrs.setdefault("axis", 1)
        if axis % rank != rank - 1:
            call.refuse(f"axis {axis} of {rank}: before opset 13 it flattens, which is unsupported")
    return call.emit(call.op, call.input(0), **call.attrs)


@_conversion(
    "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"
)
def _reduce(call: Call) -> str:
    axes = call.attrs.pop("axes", None)
    inputs = [value for value in call.inputs if value]
    if axes is not None:
        inputs.append(call.ints(axes))
    if call.attrs.pop("noop_with_empty_axes", 0) and len(inputs) == 1:
        return inputs[0]
    return call.emit(call.op, *inputs, **call.attrs)


@_conversion("Clip")
def _clip(call: Call) -> str:
    bounds = [call.attrs.pop(name, None) for name in ("min", "max")]
    if bounds == [None, None]:
        return call.emit("Clip", *call.inputs, **call.attrs)
    numbers = ["" if bound is None else call.number(bound) for bound in bounds]
    return call.emit("Clip", call.input(0), *numbers, **call.attrs)


@_conversion("Reshape")
def _reshape(call: Call) -> str:
    # Sizes are known: a 0 is one only where the file says so, and then there is nothing to run.
    call.expect(allowzero=call.attrs.get("allowzero", 0))
    return call.emit("Reshape", *call.inputs, **call.attrs)


@_conversion("Flatten")
def _flatten(call: Call) -> str:
    axis = call.attrs.pop("axis", 1)
    shape = call.shape(call.input(0))
    axis = axis + len(shape) if axis < 0 else axis
    return call.emit(
        "Reshape",
        call.input(0),
        call.ints([math.prod(shape[:axis]), math.prod(shape[axis:])]),
        **call.attrs,
    )


@_conversion("Shape")
def _shape(call: Call) -> str:
    start, end = call.attrs.pop("start", 0), call.attrs.pop("end", None)
    call.no_more()
    return call.ints(list(call.shape(call.input(0))[start:end]))


@_conversion("Size")
def _size(call: Call) -> str:
    return call.ints(math.prod(call.shape(call.input(0))))


@_conversion("ConstantOfShape")
def _constant_of_shape(call: Call) -> str:
    value = call.attrs.pop("value", np.zeros(1, np.float32))
    if not isinstance(value, np.ndarray) or value.size != 1:
        call.refuse("its value is not one element")
    return call.emit(
        "ConstantOfShape", call.input(0), value=value.ravel()[0].item(), dtype=str(value.dtype)
    )


@_conversion("Cast")
def _cast(call: Call) -> str:
    call.attrs.pop("saturate", None)
    call.attrs.pop("round_mode", None)
    if call.attrs.get("to") == call.builder.dtype(call.input(0)):
        return call.input(0)
    return call.emit("Cast", call.input(0), **call.attrs)


@_conversion("CastLike")
def _cast_like(call: Call) -> str:
    call.given(2, 2)
    to = call.builder.dtype(call.input(1))
    if to == call.builder.dtype(call.input(0)):
        return call.input(0)
    return call.emit("Cast", call.input(0), to=to)


@_conversion("Concat")
def _concat(call: Call) -> str:
    inputs = list(call.inputs)
    ranks = [len(call.shape(value)) if value else -1 for value in inputs]
    if set(ranks) == {0, 1}:
        # Not in the standard, but in files of tools that shrank weights of one element to none.
        axes = call.ints([0])
        inputs = [
            value if rank else call.emit("Unsqueeze", value, axes)
            for value, rank in zip(inputs, ranks, strict=True)
        ]
    return call.emit("Concat", *inputs, **call.attrs)


@_conversion("CumSum")
def _cumsum(call: Call) -> str:
    call.expect(exclusive=0, reverse=0)
    return call.emit("CumSum", *call.inputs, **call.attrs)


@_conversion("GatherND")
def _gather_nd(call: Call) -> str:
    call.expect(batch_dims=0)
    return call.emit("GatherND", *call.inputs, **call.attrs)


@_conversion("Gemm")
def _gemm(call: Call) -> str:
    call.given(2, 3)
    call.expect(alpha=1.0, beta=1.0, transA=0)
    weight = call.input(1)
    if call.attrs.pop("transB", 0):
        weight = call.emit("Transpose", weight, perm=(1, 0))
    call.no_more()
    product = call.emit("MatMul", call.input(0), weight)
    return call.emit("Add", product, call.input(2)) if call.input(2) else product


@_conversion("LayerNormalization")
def _layer_norm(call: Call) -> str:
    call.expect(stash_type=1)
    if call.count != 1:
        call.refuse("its mean or deviation is used outside")
    return call.emit("LayerNormalization", *call.inputs, **call.attrs)


@_conversion("Attention")
def _attention(call: Call) -> str:
    """Opset 23: (batch, heads, sequence, head_dim) each, or with the heads side by side."""
    call.only(0, 1, 2, 3)
    call.expect(is_causal=0, softcap=0.0, qk_matmul_output_mode=0)
    call.attrs.pop("softmax_precision", None)
    query, key, value = call.inputs[:3]
    flat = len(call.shape(query)) == 3
    heads = call.attrs.pop("q_num_heads", None)
    if call.attrs.pop("kv_num_heads", heads) != heads or call.count != 1:
        call.refuse("grouped heads, or a result beside the first, are not supported")
    if flat:
        query, key, value = (_by_head(call, v, heads) for v in (query, key, value))
    scale = call.attrs.pop("scale", None) or 1 / math.sqrt(call.shape(query)[-1])
    call.no_more()
    mask = call.input(3)
    if mask and call.builder.dtype(mask) == "bool":
        mask = call.emit("Where", mask, call.number(0.0), call.number(-np.inf))
    context = _attend(call, query, key, value, scale, mask)
    return _side_by_side(call, context) if flat else context


def _by_head(call: Call, value: str, heads: Any) -> str:
    """(batch, sequence, hidden) as (batch, heads, sequence, head_dim)."""
    shape = call.shape(value)
    if not isinstance(heads, int) or heads < 1 or len(shape) != 3 or shape[2] % heads:
        call.refuse(f"{heads} heads of a value of shape {shape}")
    split = call.ints([shape[0], shape[1], heads, shape[2] // heads])
    return call.emit("Transpose", call.emit("Reshape", value, split), perm=(0, 2, 1, 3))


def _attend(call: Call, query: str, key: str, value: str, scale: float, bias: str) -> str:
    if not len(call.shape(query)) == len(call.shape(key)) == len(call.shape(value)) == 4:
        call.refuse("query, key and value must have four axes")
    scores = call.emit("MatMul", query, call.emit("Transpose", key, perm=(0, 1, 3, 2)))
    scores = call.emit("Mul", scores, call.number(scale))
    if bias:
        scores = call.emit("Add", scores, bias)
    return call.emit("MatMul", call.emit("Softmax", scores, axis=3), value)


def _side_by_side(call: Call, context: str) -> str:
    batch, heads, length, head_dim = call.shape(context)
    turned = call.emit("Transpose", context, perm=(0, 2, 1, 3))
    return call.emit("Reshape", turned, call.ints([batch, length, heads * head_dim]))


# What onnxruntime's optimizer leaves


@_conversion(f"{MICROSOFT}.Gelu", f"{MICROSOFT}.BiasGelu", f"{MICROSOFT}.FastGelu")
def _gelu(call: Call) -> str:
    call.no_more()
    x = call.emit("Add", *call.inputs) if call.input(1) else call.input(0)
    kind = "tanh" if call.op.endswith("FastGelu") else "none"
    return call.emit("Gelu", x, approximate=kind)


@_conversion(f"{MICROSOFT}.FusedMatMul")
def _fused_matmul(call: Call) -> str:
    call.expect(transBatchA=0, transBatchB=0)
    alpha = call.attrs.pop("alpha", 1.0)
    operands = list(call.inputs)
    for index, attribute in enumerate(("transA", "transB")):
        if call.attrs.pop(attribute, 0):
            rank = len(call.shape(operands[index]))
            perm = (*range(rank - 2), rank - 1, rank - 2)
            operands[index] = call.emit("Transpose", operands[index], perm=perm)
    call.no_more()
    product = call.emit("MatMul", *operands)
    return product if alpha == 1.0 else call.emit("Mul", product, call.number(alpha))


@_conversion(f"{MICROSOFT}.FusedGemm")
def _fused_gemm(call: Call) -> str:
    activation = call.attrs.pop("activation", None)
    if activation not in ("Relu", "Tanh"):
        call.refuse(f"activation {activation!r}, supported are Relu and Tanh")
    return call.emit(activation, _gemm(call))


@_conversion(f"{MICROSOFT}.SkipLayerNormalization")
def _skip_layer_norm(call: Call) -> str:
    call.given(4, 5)
    x, skip, gamma, beta = call.inputs[:4]
    if call.count != 1:
        call.refuse("a result beside the first is used")
    if call.input(4):
        x = call.emit("Add", x, call.input(4))
    total = call.emit("Add", x, skip)
    return call.emit("LayerNormalization", total, gamma, beta, epsilon=_epsilon(call))


@_conversion(f"{MICROSOFT}.EmbedLayerNormalization")
def _embed_layer_norm(call: Call) -> list[str]:
    """Its second result is the number of tokens that its mask shows, of each sequence."""
    call.given(7, 9)
    ids, types, word, position, kind, gamma, beta = call.inputs[:7]
    mask, positions = call.input(7), call.input(8)
    call.expect(mask_index_type=call.attrs.get("mask_index_type", 0))
    length = call.shape(ids)[1]
    positions = positions or call.ints([list(range(length))])
    total = call.emit("Gather", word, ids, axis=0)
    total = call.emit("Add", total, call.emit("Gather", position, positions, axis=0))
    if types:
        total = call.emit("Add", total, call.emit("Gather", kind, types, axis=0))
    result = call.emit("LayerNormalization", total, gamma, beta, epsilon=_epsilon(call))
    if call.count == 1:
        return [result]
    if not mask or call.count > 2:
        call.refuse("a result is used that needs a mask, or the sum before normalisation")
    return [result, call.emit("ReduceSum", mask, call.ints([1]), keepdims=0)]


def _epsilon(call: Call) -> float:
    epsilon = call.attrs.pop("epsilon", 1e-12)
    call.no_more()
    return float(epsilon)


@_conversion(f"{MICROSOFT}.Attention")
def _fused_attention(call: Call) -> str:
    """Query, key and value are one product, side by side."""
    call.only(0, 1, 2, 3, 5)
    x, weight, bias = call.inputs[:3]
    heads = call.attrs.pop("num_heads", None)
    call.expect(unidirectional=0, do_rotary=0, past_present_share_buffer=0)
    filter_value, scale = call.attrs.pop("mask_filter_value", -10000.0), call.attrs.pop("scale", 0)
    call.no_more()
    product = call.emit("MatMul", x, weight)
    qkv = call.emit("Add", product, bias) if bias else product
    parts = call.builder.emit("Split", [qkv], {"axis": 2, "num_outputs": 3}, call.name, 3)
    query, key, value = (_by_head(call, part, heads) for part in parts)
    mask = _additive(call, call.input(3), call.input(5), filter_value)
    scale = scale or 1 / math.sqrt(call.shape(query)[-1])
    return _side_by_side(call, _attend(call, query, key, value, scale, mask))


@_conversion(f"{MICROSOFT}.MultiHeadAttention")
def _multi_head_attention(call: Call) -> str:
    """Query, key and value as three values, with one bias for the three of them."""
    call.given(3, 10)
    call.only(0, 1, 2, 3, 4, 5)
    heads = call.attrs.pop("num_heads", None)
    call.expect(unidirectional=0)
    filter_value, scale = call.attrs.pop("mask_filter_value", -10000.0), call.attrs.pop("scale", 0)
    call.no_more()
    if call.count != 1:
        call.refuse("a result beside the first is used")
    parts = list(call.inputs[:3])
    if call.input(3):
        sizes = call.ints([call.shape(part)[-1] for part in parts])
        biases = call.builder.emit("Split", [call.input(3), sizes], {"axis": 0}, call.name, 3)
        parts = [call.emit("Add", *pair) for pair in zip(parts, biases, strict=True)]
    query, key, value = (_by_head(call, part, heads) for part in parts)
    mask = _additive(call, call.input(4), call.input(5), filter_value)
    scale = scale or 1 / math.sqrt(call.shape(query)[-1])
    return _side_by_side(call, _attend(call, query, key, value, scale, mask))


def _additive(call: Call, mask: str, bias: str, filter_value: float) -> str:
    """What is added to the scores: a mask by length or by position, and a bias."""
    if not mask:
        return bias
    batch, length = call.shape(call.input(0))[:2]
    shape = call.shape(mask)
    if shape == (batch,):
        positions = call.builder.literal([list(range(length))], call.builder.dtype(mask))
        ends = call.emit("Unsqueeze", mask, call.ints([1]))
        mask, shape = call.emit("Less", positions, ends), (batch, length)
    if shape not in ((batch, length), (batch, length, length)):
        call.refuse(
            f"a mask of shape {shape}, supported are (batch,), (batch, sequence) and "
            "(batch, sequence, sequence)"
        )
    axes = call.ints([1, 2] if len(shape) == 2 else [1])
    shown = call.emit("Cast", call.emit("Unsqueeze", mask, axes), to="float32")
    hidden = call.emit("Sub", call.number(1.0), shown)
    added = call.emit("Mul", hidden, call.number(filter_value))
    return call.emit("Add", added, bias) if bias else added
