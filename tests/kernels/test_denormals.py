"""Denormals are zeros, as operands and as results, and what is nearly one is still right."""

from __future__ import annotations

import platform

import numpy as np
import pytest

from bertrt import _native
from bertrt.plan.quantized import quantize_outputs

kernels = _native.kernels
FLOAT32 = np.float32
EPS = float(np.finfo(FLOAT32).eps)
TINY = float(np.finfo(FLOAT32).tiny)  # the smallest number that is not a denormal
PRECISIONS = ["fp32", "bf16", "int8"]

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64", "arm64"),
    reason="denormals are flushed on x86-64 and 64-bit Arm only",
)


def flushed(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < TINY, np.copysign(FLOAT32(0), x), x)


def with_denormals(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """A third ordinary numbers, a third denormals, a third such as denormals are products of; and a
    first row of denormals alone, so that they are all that a sum has."""
    exponents = rng.choice([0, -40, -20], shape)
    exponents[0] = -40
    return (rng.normal(size=shape).clip(-3, 3) * 10.0**exponents).astype(FLOAT32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_denormal_operands_of_a_product_are_zeros(isa, rng, precision):
    x, weight, bias = (with_denormals(rng, *s) for s in [(29, 70), (45, 70), (45,)])
    for activation in ("none", "relu", "gelu_erf", "gelu_tanh", "tanh"):
        run = [
            kernels.linear(isa, *arrays, activation, 2, precision)
            for arrays in ((x, weight, bias), (flushed(x), flushed(weight), flushed(bias)))
        ]
        np.testing.assert_array_equal(*run)
        np.testing.assert_array_equal(run[0], flushed(run[0]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_denormal_results_of_a_product_are_zeros(isa, precision):
    def product(x: float, weight: float, bias: float = 0.0) -> float:
        arrays = [np.full(shape, v, FLOAT32) for shape, v in [((1, 1), x), ((1, 1), weight)]]
        found = kernels.linear(isa, *arrays, np.array([bias], FLOAT32), precision=precision)
        return float(found[0, 0])

    assert product(1e-40, 1e30) == 0.0
    assert product(1e30, 1e-40) == 0.0
    assert product(2.0**-70, 2.0**-70) == 0.0
    assert product(0.0, 1.0, 1e-40) == 0.0
    assert product(1.0, 1.0, 1e-40) == 1.0
    if precision != "int8":
        assert product(2.0**-63, 2.0**-63) == TINY


@pytest.mark.parametrize("precision", PRECISIONS)
def test_denormals_are_zeros_in_attention(isa, rng, precision):
    qkv = with_denormals(rng, 37, 3 * 2 * 24)
    ends = np.array([0, 1, 37], np.int32)
    bias = with_denormals(rng, 2, 75)
    for scale, distances in [(0.2, None), (1e-40, None), (0.2, bias)]:
        run = [
            kernels.attention(isa, x, ends, 2, scale, 2, precision, b)
            for x, b in [
                (qkv, distances),
                (flushed(qkv), None if distances is None else flushed(distances)),
            ]
        ]
        np.testing.assert_array_equal(*run)
        assert np.isfinite(run[0]).all()
        np.testing.assert_array_equal(run[0], flushed(run[0]))


def test_softmax_weights_too_small_to_multiply_are_zeros(isa):
    # Scores of 0 and -80: the second key's weight is 1.8e-35, and its values are 1e-5.
    qkv = np.zeros((2, 3, 16), FLOAT32)
    qkv[:, 0] = 1.0
    qkv[1, 1] = -5.0
    qkv[1, 2] = 1e-5
    found = kernels.attention(isa, qkv.reshape(2, 48), np.array([0, 2], np.int32), 1, 1.0)
    np.testing.assert_array_equal(found, np.zeros((2, 16), FLOAT32))


def test_denormals_are_zeros_in_layer_norm_and_activations(isa, rng):
    x, gamma, beta = (with_denormals(rng, *shape) for shape in [(20, 70), (70,), (70,)])
    found = kernels.layer_norm(isa, x, gamma, beta, 1e-12, residual=x[::-1].copy())
    arrays = [flushed(a) for a in (x, gamma, beta)]
    flushed_first = kernels.layer_norm(isa, *arrays, 1e-12, residual=arrays[0][::-1].copy())
    np.testing.assert_array_equal(found, flushed_first)
    np.testing.assert_array_equal(found, flushed(found))
    for name in ("relu", "gelu_erf", "gelu_tanh", "tanh"):
        run = [kernels.activation(isa, name, a.ravel()) for a in (x, flushed(x))]
        # A largest number that keeps its sign may be the denormal itself.
        np.testing.assert_array_equal(*(flushed(a) for a in run))


def test_avx2_and_all_above_it_give_the_same_bits_of_denormals(rng):
    if "avx512" not in _native.supported_isas():
        pytest.skip("needs a CPU with AVX-512")
    x, weight = with_denormals(rng, 37, 333), with_denormals(rng, 83, 333)
    qkv, row = with_denormals(rng, 37, 3 * 5 * 24), with_denormals(rng, 333)
    ends = np.array([0, 5, 37], np.int32)
    for run in (
        lambda isa: kernels.linear(isa, x, weight, None, "gelu_erf"),
        lambda isa: kernels.linear(isa, x, weight, None, "gelu_erf", precision="int8"),
        lambda isa: kernels.attention(isa, qkv, ends, 5, 0.2),
        lambda isa: kernels.attention(isa, qkv, ends, 5, 0.2, precision="int8"),
        lambda isa: kernels.layer_norm(isa, x, row, row, 1e-12),
    ):
        for isa in _native.supported_isas():
            if isa != "portable":
                np.testing.assert_array_equal(run("avx2"), run(isa), err_msg=isa)


# From the smallest denormal past all numbers whose steps are denormals or have infinite inverses.
MAGNITUDES = [1e-45, 1e-40, 1e-38, 2e-38, 3e-37, 6e-37, 1e-36, 3e-36, 1e-35, 1e-34, 1e-33, 1e-30]


@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_int8_products_of_tiny_numbers_are_right_to_what_is_flushed(isa, rng, magnitude):
    x = rng.uniform(-1, 1, (7, 70)).astype(FLOAT32)
    weight = rng.uniform(-1, 1, (33, 70)).astype(FLOAT32)
    tiny = FLOAT32(magnitude)
    for rows, columns in [
        (x * tiny, weight),
        (x, weight * tiny),
        (x * FLOAT32(1e20), weight * tiny),
    ]:
        found = kernels.linear(isa, rows, columns, precision="int8")
        exact = rows.astype(np.float64) @ columns.T.astype(np.float64)
        largest = [np.abs(a).max(1).astype(np.float64) for a in (rows, columns)]
        largest[0] = largest[0][:, None]
        # A row is rounded to 255ths of its range, a column to 254ths; a step below 1.2e-38 is zero,
        # as is what a step of a row is worth times one of a column.
        steps = [2 * largest[0] / 255, largest[1] / 127]
        row, column = (np.where(step < 2 * TINY, 255 * step, step / 2) for step in steps)
        bound = 70 * (row * largest[1] + largest[0] * column + row * column + 255 * 127 * TINY)
        assert (np.abs(found - exact) <= 1.001 * bound).all()


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("part", [0, 1, 2])
def test_int8_attention_of_tiny_numbers_is_right_to_what_is_flushed(isa, rng, magnitude, part):
    qkv = rng.normal(size=(19, 3, 2, 16)).astype(FLOAT32)
    qkv[:, part] *= FLOAT32(magnitude)
    flat, ends = qkv.reshape(19, 96), np.array([0, 19], np.int32)
    found = kernels.attention(isa, flat, ends, 2, 0.25, precision="int8")
    expected = kernels.attention("reference", flat, ends, 2, 0.25)
    # Values whose steps are denormals are zeros: there are 32,767 steps at most.
    assert (np.abs(found - expected) <= 4e-3 * np.abs(qkv[:, 2]).max() + 32768 * TINY).all()


@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_weights_quantised_beforehand_are_those_quantised_at_load(isa, rng, magnitude):
    weight = (rng.uniform(-1, 1, (33, 70)) * magnitude).astype(FLOAT32)
    steps, scale = quantize_outputs(weight)
    assert ((scale == 0) | (scale >= TINY)).all()
    assert (steps[scale == 0] == 0).all()
    assert (np.abs(steps).max(1)[scale > 0] == 127).all()
    x = np.eye(70, dtype=FLOAT32) * FLOAT32(2**70)
    found = kernels.linear(isa, x, weight, precision="int8")
    # 255 steps of a row with one value that is not 0 are exact to a rounding.
    expected = 2.0**70 * steps.astype(np.float64).T * scale.astype(np.float64)
    assert (np.abs(found - expected) <= 4 * EPS * np.abs(expected)).all()


@pytest.mark.parametrize("deviation", [1e-10, 1e-14, 1e-16, 1e-18, 1e-20, 1e-25, 1e-30, 1e-35])
@pytest.mark.parametrize("eps", [0.0, 1e-45, 1e-38, 1e-33, 1e-12])
@pytest.mark.parametrize("with_residual", [False, True])
def test_layer_norm_of_small_deviations(isa, rng, deviation, eps, with_residual):
    x = (rng.normal(size=(5, 70)) * deviation).astype(FLOAT32)
    gamma, beta = (rng.normal(size=70).astype(FLOAT32) for _ in range(2))
    residual = x[::-1].copy() if with_residual else None
    found = kernels.layer_norm(isa, x, gamma, beta, eps, residual)
    expected = kernels.layer_norm("reference", x, gamma, beta, eps, residual)
    # A value off by less than the smallest number is so many deviations off.
    bound = 2e-6 * (1 + np.abs(expected)) + 4 * TINY / deviation * np.abs(gamma)
    assert (np.abs(found - expected) <= bound).all()


@pytest.mark.parametrize("eps", [1e-45, 1e-38, 1e-33, 1e-12])
@pytest.mark.parametrize("value", [0.0, 1e-40, 0.5])
def test_layer_norm_of_a_constant_row_is_its_beta(isa, rng, eps, value):
    gamma, beta = (rng.normal(size=64).astype(FLOAT32) for _ in range(2))
    found = kernels.layer_norm(isa, np.full((1, 64), value, FLOAT32), gamma, beta, eps)
    np.testing.assert_array_equal(found[0], beta)
