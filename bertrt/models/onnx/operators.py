"""What the standard operators of ONNX files become in the IR.

The IR has each operator once, as opset 20 has it. Older spellings (axes as attributes, Softmax over
flattened axes) and shorthands (Gemm, Flatten) are written out here, so that the fusion passes see
one spelling. Contracts of the operators: onnx/onnx ``docs/Operators.md`` and ``docs/Changelog.md``.
"""

from __future__ import annotations

import math

import numpy as np

from bertrt.models.onnx.call import Call, Table

__all__ = ["CONVERSIONS", "gemm"]

CONVERSIONS = Table()

_MOST_PLACES = 1 << 16


@CONVERSIONS.of("Identity", "Dropout")
def _pass_through(call: Call) -> str:
    if call.count > 1:
        call.refuse("its mask is used: it was exported for training")
    if call.input(2) and call.builder.graph.scalar(call.input(2)) != 0:
        call.refuse("it drops while the model runs: it was exported for training")
    return call.inputs[0]


@CONVERSIONS.of("Unsqueeze")
def _unsqueeze(call: Call) -> str:
    axes = call.attrs.pop("axes", None)
    return call.emit("Unsqueeze", call.input(0), call.input(1) if axes is None else call.ints(axes))


@CONVERSIONS.of("Squeeze")
def _squeeze(call: Call) -> str:
    axes = call.attrs.pop("axes", None)
    if axes is not None:
        where = call.ints(axes)
    elif call.input(1):
        where = call.input(1)
    else:
        where = call.ints([i for i, dim in enumerate(call.shape(call.input(0))) if dim == 1])
    return call.emit("Squeeze", call.input(0), where)


@CONVERSIONS.of("Split")
def _split(call: Call) -> list[str]:
    sizes = call.attrs.pop("split", None)
    inputs = [call.input(0)]
    if sizes is not None or call.input(1):
        inputs.append(call.input(1) if sizes is None else call.ints(sizes))
    else:
        call.attrs.setdefault("num_outputs", call.declared)
    return call.builder.emit("Split", inputs, call.attrs, call.name, call.count)


@CONVERSIONS.of("Slice", "DynamicSlice")
def _slice(call: Call) -> str:
    if "starts" not in call.attrs:
        # Exporters wrote DynamicSlice before opset 10, which it has in Slice.
        return call.emit("Slice", *call.inputs, **call.attrs)
    starts, ends = call.attrs.pop("starts"), call.attrs.pop("ends", ())
    axes = call.attrs.pop("axes", tuple(range(len(starts))))
    return call.emit("Slice", call.input(0), *map(call.ints, (starts, ends, axes)), **call.attrs)


@CONVERSIONS.of("Softmax", "LogSoftmax")
def _softmax(call: Call) -> str:
    rank = len(call.shape(call.input(0)))
    if call.builder.opset < 13:
        # All axes from this one on are one: the same thing where only the last is longer than 1.
        axis = call.attrs.setdefault("axis", 1)
        if axis % rank != rank - 1:
            call.refuse(f"axis {axis} of {rank}: before opset 13 it flattens, which is unsupported")
    return call.emit(call.op, call.input(0), **call.attrs)


@CONVERSIONS.of(
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


@CONVERSIONS.of("Clip")
def _clip(call: Call) -> str:
    bounds = [call.attrs.pop(name, None) for name in ("min", "max")]
    if bounds == [None, None]:
        return call.emit("Clip", *call.inputs, **call.attrs)
    numbers = ["" if bound is None else call.number(bound) for bound in bounds]
    return call.emit("Clip", call.input(0), *numbers, **call.attrs)


@CONVERSIONS.of("Reshape")
def _reshape(call: Call) -> str:
    # Sizes are known: a 0 is one only where the file says so, and then there is nothing to run.
    call.expect(allowzero=call.attrs.get("allowzero", 0))
    return call.emit("Reshape", *call.inputs, **call.attrs)


@CONVERSIONS.of("Flatten")
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


@CONVERSIONS.of("Shape")
def _shape(call: Call) -> str:
    start, end = call.attrs.pop("start", 0), call.attrs.pop("end", None)
    call.no_more()
    return call.ints(list(call.shape(call.input(0))[start:end]))


@CONVERSIONS.of("Size")
def _size(call: Call) -> str:
    return call.ints(math.prod(call.shape(call.input(0))))


@CONVERSIONS.of("NonZero")
def _non_zero(call: Call) -> str:
    """So exporters wrote 0, 1, 2, ... before opset 11: the places of a vector of ones."""
    array = call.builder.graph.array(call.input(0))
    if array is None or array.size > _MOST_PLACES:
        call.refuse(
            "the places of what is computed, and of more than 65,536 elements, are not supported, "
            "only those of a constant"
        )
    return call.ints(np.array(np.nonzero(array), np.int64).tolist())


@CONVERSIONS.of("ConstantOfShape")
def _constant_of_shape(call: Call) -> str:
    value = call.attrs.pop("value", np.zeros(1, np.float32))
    if not isinstance(value, np.ndarray) or value.size != 1:
        call.refuse("its value is not one element")
    return call.emit(
        "ConstantOfShape", call.input(0), value=value.ravel()[0].item(), dtype=str(value.dtype)
    )


@CONVERSIONS.of("Cast")
def _cast(call: Call) -> str:
    call.attrs.pop("saturate", None)
    call.attrs.pop("round_mode", None)
    if call.attrs.get("to") == call.builder.dtype(call.input(0)):
        return call.input(0)
    return call.emit("Cast", call.input(0), **call.attrs)


@CONVERSIONS.of("CastLike")
def _cast_like(call: Call) -> str:
    call.given(2, 2)
    to = call.builder.dtype(call.input(1))
    if to == call.builder.dtype(call.input(0)):
        return call.input(0)
    return call.emit("Cast", call.input(0), to=to)


@CONVERSIONS.of("Concat")
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


@CONVERSIONS.of("CumSum")
def _cumsum(call: Call) -> str:
    call.expect(exclusive=0, reverse=0)
    return call.emit("CumSum", *call.inputs, **call.attrs)


@CONVERSIONS.of("GatherND")
def _gather_nd(call: Call) -> str:
    call.expect(batch_dims=0)
    return call.emit("GatherND", *call.inputs, **call.attrs)


@CONVERSIONS.of("Gemm")
def gemm(call: Call) -> str:
    call.given(2, 3)
    call.expect(alpha=1.0, beta=1.0, transA=0)
    weight = call.input(1)
    if call.attrs.pop("transB", 0):
        weight = call.emit("Transpose", weight, perm=(1, 0))
    call.no_more()
    product = call.emit("MatMul", call.input(0), weight)
    return call.emit("Add", product, call.input(2)) if call.input(2) else product


@CONVERSIONS.of("LayerNormalization")
def _layer_norm(call: Call) -> str:
    call.expect(stash_type=1)
    if call.count > 1:
        call.refuse("its mean or deviation is used outside")
    return call.emit("LayerNormalization", *call.inputs, **call.attrs)
