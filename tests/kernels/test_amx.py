"""AMX's bf16 products bit by bit, on the instructions and on the same instructions written out."""

from __future__ import annotations

import numpy as np
import pytest

from bertrt import _native

linear = _native.kernels.linear
FLOAT32 = np.float32


@pytest.fixture(params=["amx", "amx_emulated"])
def tiles(request) -> str:
    if request.param not in _native.supported_isas():
        pytest.skip(f"{request.param} cannot run on this CPU")
    return request.param


def coarse(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Multiples of 2^-8 up to 2^14 that bfloat16 holds, every third large: float32 has to round
    their sums, and float64 does not, so that rounding its sums is what a fused multiply-add does.
    """
    values = rng.integers(-256, 257, shape) * 2.0 ** rng.integers(-8, -5, shape)
    values[:, ::3] *= 2.0**12
    return values.astype(FLOAT32)


def tile_products(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """TDPBF16PS (Intel SDM volume 2) over 32 inputs at a time: fused multiply-adds over the even
    inputs and over the odd ones, the sum of both, and that added to what was there."""
    depth = -(-x.shape[1] // 32) * 32
    x, weight = (np.pad(a, ((0, 0), (0, depth - a.shape[1]))) for a in (x, weight))
    sums = np.zeros((len(x), len(weight)), FLOAT32)
    for block in range(0, depth, 32):
        parts = []
        for first in (block, block + 1):
            part = np.zeros_like(sums)
            for k in range(first, block + 32, 2):
                product = x[:, k, None].astype(np.float64) * weight[None, :, k]
                part = (part + product).astype(FLOAT32)
            parts.append(part)
        sums = sums + (parts[0] + parts[1])
    return sums


@pytest.mark.parametrize("rows", [1, 16, 17, 70])
@pytest.mark.parametrize("depth", [1, 31, 33, 200])
def test_bf16_sums_have_the_order_of_the_instruction(tiles, rng, rows, depth):
    x, weight = coarse(rng, rows, depth), coarse(rng, 49, depth)
    found = linear(tiles, x, weight, precision="bf16", threads=2)
    np.testing.assert_array_equal(found, tile_products(x, weight))


def test_denormals_are_zeros(tiles):
    def product(x: float, weight: float) -> float:
        one = np.ones((1, 1), FLOAT32)
        return float(linear(tiles, one * FLOAT32(x), one * FLOAT32(weight), precision="bf16")[0, 0])

    assert product(1e30, 1e-40) == 0.0  # an operand
    assert product(1e-40, 1e30) == 0.0
    assert product(2.0**-70, 2.0**-70) == 0.0  # a product
    assert product(2.0**-63, 2.0**-63) == 2.0**-126


def test_what_memory_held_before_does_not_show(tiles, rng):
    x, weight = coarse(rng, 5, 33), coarse(rng, 7, 33)
    expected = tile_products(x, weight)
    for rows in (5, 16, 32):
        broken = np.full((rows, 33 + 31), np.nan, FLOAT32)
        assert np.isnan(linear(tiles, broken, np.ones((7, 64), FLOAT32), precision="bf16")).all()
        found = linear(tiles, x, weight, precision="bf16")
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_instructions_are_what_is_written_out(rng, precision):
    if "amx" not in _native.supported_isas():
        pytest.skip("needs a CPU with AMX, and leave to use it")
    for rows in (1, 15, 16, 17, 33, 97):
        x = rng.normal(size=(rows, 333)).astype(FLOAT32)
        weight = rng.normal(size=(83, 333)).astype(FLOAT32)
        bias = rng.normal(size=83).astype(FLOAT32)
        run, written_out = (
            linear(isa, x, weight, bias, "gelu_erf", 2, precision)
            for isa in ("amx", "amx_emulated")
        )
        np.testing.assert_array_equal(run, written_out)
