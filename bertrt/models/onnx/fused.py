"""What the other operators that onnxruntime's optimizer leaves become in the IR.

Contracts: microsoft/onnxruntime ``docs/ContribOperators.md``.
"""

from __future__ import annotations

from bertrt.models.onnx.call import MICROSOFT, Call, Table
from bertrt.models.onnx.operators import gemm

__all__ = ["CONVERSIONS", "embed_layer_norm"]

CONVERSIONS = Table()


@CONVERSIONS.of(f"{MICROSOFT}.Gelu", f"{MICROSOFT}.BiasGelu", f"{MICROSOFT}.FastGelu")
def _gelu(call: Call) -> str:
    call.no_more()
    x = call.emit("Add", *call.inputs) if call.input(1) else call.input(0)
    kind = "tanh" if call.op.endswith("FastGelu") else "none"
    return call.emit("Gelu", x, approximate=kind)


@CONVERSIONS.of(f"{MICROSOFT}.FusedMatMul")
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


@CONVERSIONS.of(f"{MICROSOFT}.FusedGemm")
def _fused_gemm(call: Call) -> str:
    activation = call.attrs.pop("activation", None)
    if activation not in ("Relu", "Tanh"):
        call.refuse(f"activation {activation!r}, supported are Relu and Tanh")
    return call.emit(activation, gemm(call))


@CONVERSIONS.of(f"{MICROSOFT}.SkipLayerNormalization")
def _skip_layer_norm(call: Call) -> str:
    call.given(4, 5)
    x, skip, gamma, beta = call.inputs[:4]
    if call.count > 1:
        call.refuse("a result beside the first is used")
    if call.input(4):
        x = call.emit("Add", x, call.input(4))
    total = call.emit("Add", x, skip)
    return call.emit("LayerNormalization", total, gamma, beta, epsilon=_epsilon(call))


@CONVERSIONS.of(f"{MICROSOFT}.EmbedLayerNormalization")
def embed_layer_norm(call: Call) -> list[str]:
    """Its second result is the number of tokens that its mask shows, of each sequence."""
    call.given(7, 9, but=(1, 4))
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
    if call.count <= 1:
        return [result]
    if not mask or call.count > 2:
        call.refuse("a result is used that needs a mask, or the sum before normalisation")
    return [result, call.emit("ReduceSum", mask, call.ints([1]), keepdims=0)]


def _epsilon(call: Call) -> float:
    epsilon = call.attrs.pop("epsilon", 1e-12)
    call.no_more()
    return float(epsilon)
