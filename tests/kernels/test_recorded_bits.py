"""Results have the bits that are recorded here: on every CPU, and in every version.

What is left out is tanh, which is the C library's, and the sign of a zero.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import test_native_engine as handmade

from bertrt import _native

kernels = _native.kernels

# In fp32 and int8 there are two kinds of instruction sets: those with fused multiply-add, and
# "portable". In bf16 some have instructions that round sums in their own way.
RECORDED = {
    ("fp32", "fused"): "5d82c26fd8445fa0",
    ("fp32", "portable"): "1faa280da3a0fd90",
    ("bf16", "fused"): "14589e8b56de33c9",
    ("bf16", "portable"): "76cad273db066f51",
    ("bf16", "avx512_bf16"): "9e966885d546b310",
    ("bf16", "amx"): "fce72c7c2842e3fa",
    ("bf16", "neon_bf16"): "64aefc66e7ad5e21",
    ("int8", "fused"): "16331d6b65b6776e",
    ("int8", "portable"): "8671fab8e113ccc5",
}
OWN = {"avx512_bf16": "avx512_bf16", "amx": "amx", "amx_emulated": "amx", "neon_bf16": "neon_bf16"}


def numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers that are the same wherever they are drawn."""
    return (rng.integers(-999, 1000, shape) / 512).astype(np.float32)


def results(isa: str, precision: str) -> list[np.ndarray]:
    """Products, attention and LayerNorm beyond all tiles and blocks, and an engine's outputs."""
    rng = np.random.default_rng(22)
    x, weight = numbers(rng, 37, 1601), numbers(rng, 83, 1601) / 32
    qkv, row = numbers(rng, 605, 3 * 2 * 24), numbers(rng, 1601)
    distances, ends = numbers(rng, 2, 1199), np.array([0, 5, 605], np.int32)
    plan, weights = handmade.make_plan(rng)
    weights = {name: numbers(rng, *array.shape) / 4 for name, array in weights.items()}
    batch = handmade.batch_of(rng, [1, 5, 64, 17, 33])
    engine = _native.Engine(_native.Model(plan, weights, precision, 2), 2)
    assert engine.isa == isa
    outputs = ["sequence_output", "masked_lm_outputs"]
    return [
        kernels.linear(isa, x, weight, row[:83], "gelu_erf", 2, precision),
        kernels.linear(isa, x, weight, None, "gelu_tanh", 2, precision),
        kernels.attention(isa, qkv, ends, 2, 0.2, 2, precision),
        kernels.attention(isa, qkv, ends, 2, 0.2, 2, precision, distances),
        kernels.layer_norm(isa, x, row, row[::-1].copy(), 1e-12),
        *(engine.run(*batch, outputs)[name] for name in outputs),
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_recorded_bits(isa, monkeypatch, precision):
    monkeypatch.setenv("BERTRT_ISA", isa)
    found = results(isa, precision)
    assert all(np.isfinite(array).all() for array in found)
    digest = hashlib.sha256(b"".join((array + np.float32(0)).tobytes() for array in found))
    kind = "portable" if isa == "portable" else "fused"
    if precision == "bf16":
        kind = OWN.get(isa, kind)
    assert digest.hexdigest()[:16] == RECORDED[precision, kind]


def test_int8_products_have_the_same_bits_without_fused_multiply_add(rng):
    x, weight = numbers(rng, 37, 1601), numbers(rng, 83, 1601)
    expected = kernels.linear("portable", x, weight, precision="int8")
    for isa in _native.supported_isas():
        found = kernels.linear(isa, x, weight, precision="int8")
        np.testing.assert_array_equal(found, expected, err_msg=isa)
