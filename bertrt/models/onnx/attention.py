"""What attention in one operator, of opset 23 and of onnxruntime's optimizer, becomes in the IR.

Contracts: onnx/onnx ``docs/Operators.md``; microsoft/onnxruntime ``docs/ContribOperators.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bertrt.models.onnx.call import MICROSOFT, Call, Table

__all__ = ["CONVERSIONS", "attend_projections"]

CONVERSIONS = Table()


@CONVERSIONS.of("Attention")
def _attention(call: Call) -> str:
    """Opset 23: (batch, heads, sequence, head_dim) each, or with the heads side by side."""
    call.only(0, 1, 2, 3)
    call.expect(is_causal=0, softcap=0.0, qk_matmul_output_mode=0)
    call.attrs.pop("softmax_precision", None)
    query, key, value = call.inputs[:3]
    flat = len(call.shape(query)) == 3
    heads = call.attrs.pop("q_num_heads", None)
    if call.attrs.pop("kv_num_heads", heads) != heads or call.count > 1:
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


@CONVERSIONS.of(f"{MICROSOFT}.Attention")
def _fused_attention(call: Call) -> str:
    """Query, key and value are one product, side by side."""
    call.only(0, 1, 2, 3, 5)
    x, weight, bias = call.inputs[:3]
    product = call.emit("MatMul", x, weight)
    qkv = call.emit("Add", product, bias) if bias else product
    parts = call.builder.emit("Split", [qkv], {"axis": 2, "num_outputs": 3}, call.name, 3)
    return attend_projections(call, parts, call.input(3), call.input(5))


@CONVERSIONS.of(f"{MICROSOFT}.MultiHeadAttention")
def _multi_head_attention(call: Call) -> str:
    """Query, key and value as three values, with one bias for the three of them."""
    call.given(3, 10)
    call.only(0, 1, 2, 3, 4, 5)
    parts = list(call.inputs[:3])
    if call.input(3):
        sizes = call.ints([call.shape(part)[-1] for part in parts])
        biases = call.builder.emit("Split", [call.input(3), sizes], {"axis": 0}, call.name, 3)
        parts = [call.emit("Add", *pair) for pair in zip(parts, biases, strict=True)]
    return attend_projections(call, parts, call.input(4), call.input(5))


def attend_projections(call: Call, parts: Sequence[str], mask: str, bias: str) -> str:
    """The attention of query, key and value, each (batch, sequence, hidden), with what its operator
    says of heads, scale and mask; the heads side by side."""
    heads = call.attrs.pop("num_heads", None)
    call.expect(unidirectional=0, do_rotary=0, past_present_share_buffer=0)
    filter_value, scale = call.attrs.pop("mask_filter_value", -10000.0), call.attrs.pop("scale", 0)
    call.no_more()
    if call.count > 1:
        call.refuse("a result beside the first is used")
    query, key, value = (_by_head(call, part, heads) for part in parts)
    added = _additive(call, mask, bias, filter_value)
    scale = scale or 1 / math.sqrt(call.shape(query)[-1])
    return _side_by_side(call, _attend(call, query, key, value, scale, added))


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
