"""Products by TMA and wgmma: on the emulator, and on a GPU of compute capability 9.0.

Only small shapes: the emulator runs 384 threads a block, and a tile is 128 x 128 x 64."""

from __future__ import annotations

import numpy as np
import pytest

from bertrt import _native
from bertrt.errors import DeviceError

EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(autouse=True)
def on_hopper(cuda):
    if not hasattr(cuda, "emulator") and cuda.devices()[0].arch != "sm_90":
        pytest.skip("Hopper's products need a GPU of compute capability 9.0")


@pytest.fixture(params=["fp16", "bf16"])
def half(request, element_by_name):
    return element_by_name(request.param)


def draw(rng, half, *shape):
    packed = half.pack(rng.normal(size=shape))
    return packed, half.unpack(packed)


@pytest.mark.parametrize(
    ("rows", "columns", "depth", "activation"),
    [
        (1, 1, 1, "none"),  # all of it zeros beyond
        (3, 7, 70, "relu"),  # a step and six inputs
        (130, 136, 72, "gelu_erf"),  # two tiles each way, by two blocks
        (65, 40, 328, "gelu_tanh"),  # more steps than stages
    ],
)
def test_products(cuda, rng, half, rows, columns, depth, activation):
    x, x_values = draw(rng, half, rows, depth)
    weight, weight_values = draw(rng, half, columns, depth)
    bias = rng.normal(size=columns).astype(np.float32)
    residual, residual_values = draw(rng, half, rows, columns)
    found = half.unpack(
        cuda.kernels.linear(
            half.name, x, weight, bias, activation, residual=residual, tiles="hopper"
        )
    )
    reference = _native.kernels
    expected = reference.linear("reference", x_values, weight_values, bias, activation)
    before = reference.linear("reference", x_values, weight_values, bias)
    # Tensor cores add the 16 products of a step without rounding each to nearest; test_products.py
    # has the bound.
    bound = (depth + 4) * EPS * (np.abs(x_values) @ np.abs(weight_values).T + 1.0)
    bound = 1.2 * (bound + EPS * np.abs(before)) + 8 * EPS * (1 + np.abs(before))
    whole = expected + residual_values.astype(np.float64)
    bound += EPS * np.abs(whole)
    bound += half.rounding(np.abs(whole) + bound)
    assert (np.abs(found - whole) <= bound).all()


def test_a_row_has_the_same_bits_in_any_batch(cuda, rng, half):
    x, _ = draw(rng, half, 300, 136)
    weight, _ = draw(rng, half, 24, 136)
    residual, _ = draw(rng, half, 300, 24)

    def product(rows):
        return cuda.kernels.linear(
            half.name, x[rows], weight, None, "gelu_erf", residual[rows], tiles="hopper"
        )

    whole = product(slice(0, 300))
    for count in (1, 2, 15, 16, 17, 127, 128, 129):
        np.testing.assert_array_equal(product(slice(0, count)), whole[:count])
    np.testing.assert_array_equal(product(slice(131, 150)), whole[131:150])


def test_into_columns_of_wider_rows(cuda, rng, half):
    x, _ = draw(rng, half, 37, 24)
    weight, _ = draw(rng, half, 45, 24)
    into, _ = draw(rng, half, 37, 70)
    alone = cuda.kernels.linear(half.name, x, weight, tiles="hopper")
    for first in (8, 13):
        found = cuda.kernels.linear(
            half.name, x, weight, into=into, first_column=first, tiles="hopper"
        )
        columns = slice(first, first + 45)
        np.testing.assert_array_equal(found[:, columns], alone)
        found[:, columns] = into[:, columns]
        np.testing.assert_array_equal(found, into)


def test_the_order_of_threads_does_not_show(emulated, rng, half):
    x, _ = draw(rng, half, 140, 200)
    weight, _ = draw(rng, half, 9, 200)
    results = []
    for backwards in (False, True):
        emulated.emulator.reset(backwards=backwards)
        results.append(emulated.kernels.linear(half.name, x, weight, tiles="hopper"))
    np.testing.assert_array_equal(*results)


def test_not_in_fp32(cuda):
    ones = np.ones((1, 8), np.float32)
    with pytest.raises(DeviceError, match="fp16 and bf16 only"):
        cuda.kernels.linear("fp32", ones, ones, tiles="hopper")
