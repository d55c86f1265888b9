"""Kernels over rows against the double-precision oracle, and their bits."""

from __future__ import annotations

import numpy as np
import pytest

from bertrt import _native

EPS = np.finfo(np.float32).eps

# Around the vectors of 16 bytes, what a warp reads at once, and what its lanes hold.
HIDDEN = [1, 2, 7, 8, 9, 31, 33, 97, 255, 257, 312, 767, 768, 769, 1024, 1025, 1531, 2049]


def norm_bound(x, gamma, hidden):
    """Of LayerNorm in fp32: an error of the mean by ulps of the row's magnitude counts in units of
    its deviation."""
    spread = np.abs(x).max(1) / x.astype(np.float64).std(1)
    return 8 * EPS * (1 + spread[:, None]) * (1 + np.abs(gamma) * np.sqrt(hidden)) + 4 * EPS


@pytest.mark.parametrize("eps", [1e-12, 1e-5])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_layer_norm(cuda, element, rng, hidden, with_residual, eps):
    x = rng.normal(size=(7, hidden)) * 3 + 1
    x[1] *= 1e-3
    x[2] += 100
    x = element.round(x)
    gamma, beta = rng.normal(size=(2, hidden)).astype(np.float32)
    residual = element.round(rng.normal(size=x.shape)) if with_residual else None
    found = element.unpack(
        cuda.kernels.layer_norm(
            element.name,
            element.pack(x),
            gamma,
            beta,
            eps,
            element.pack(residual) if with_residual else None,
        )
    )
    expected = _native.kernels.layer_norm("reference", x, gamma, beta, eps, residual)
    if hidden == 1:
        # The variance is exactly zero: what is left is beta.
        np.testing.assert_array_equal(found, element.round(np.broadcast_to(beta, x.shape)))
        return
    if with_residual:
        x = x + residual
    bound = norm_bound(x, gamma, hidden)
    assert (np.abs(found - expected) <= bound + element.rounding(np.abs(expected) + bound)).all()


def test_layer_norm_keeps_a_tiny_epsilon(cuda, element):
    # Deviations of 2^-23 have a variance of 1.4e-14: eps 1e-12 decides the result, eps 0 would not.
    x = np.array([[2.0**-23, -(2.0**-23)] * 8], np.float32)
    ones = np.ones(16, np.float32)
    found = element.unpack(
        cuda.kernels.layer_norm(element.name, element.pack(x), ones, 0 * ones, 1e-12)
    )
    expected = x / np.sqrt(2.0**-46 + 1e-12)
    assert (np.abs(found - expected) <= element.rounding(expected) + 4 * EPS).all()


def test_layer_norm_adds_in_fp32(cuda, element):
    # The sums are beyond fp16, and have bits that neither fp16 nor bf16 keeps.
    x = element.round(np.tile([[60000.0, 50000.0]], (3, 20)))
    residual = element.round(np.tile([[60000.0, 60032.0, 3.0, 5.0]], (3, 10)))
    ones = np.ones(40, np.float32)
    found = element.unpack(
        cuda.kernels.layer_norm(
            element.name, element.pack(x), ones, 0 * ones, 1e-12, element.pack(residual)
        )
    )
    expected = _native.kernels.layer_norm("reference", x, ones, 0 * ones, 1e-12, residual)
    bound = norm_bound(x + residual, ones, 40)
    assert (np.abs(found - expected) <= bound + element.rounding(np.abs(expected) + bound)).all()


@pytest.mark.parametrize("hidden", [9, 384, 1000, 1029])
def test_a_row_has_the_same_bits_anywhere(cuda, element, rng, hidden):
    x, residual = (element.pack(rng.normal(size=(11, hidden))) for _ in range(2))
    gamma, beta = rng.normal(size=(2, hidden)).astype(np.float32)
    found = cuda.kernels.layer_norm(element.name, x, gamma, beta, 1e-12, residual)
    again = cuda.kernels.layer_norm(element.name, x, gamma, beta, 1e-12, residual, in_place=True)
    np.testing.assert_array_equal(again, found)
    order = rng.permutation(11)
    again = cuda.kernels.layer_norm(element.name, x[order], gamma, beta, 1e-12, residual[order])
    np.testing.assert_array_equal(again, found[order])
    for row in range(11):
        alone = slice(row, row + 1)
        again = cuda.kernels.layer_norm(element.name, x[alone], gamma, beta, 1e-12, residual[alone])
        np.testing.assert_array_equal(again, found[alone])


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("hidden", [384, 768, 1024])
def test_more_rows_than_warps(cuda, element, rng, hidden, with_residual):
    # The emulator has two multiprocessors, which hold up to four blocks of four warps: a warp has
    # three rows and more, one after the other.
    rows = 101 if hasattr(cuda, "emulator") else 20_001
    x = element.round(rng.normal(size=(rows, hidden)) * rng.uniform(0.1, 10, (rows, 1)))
    residual = element.round(rng.normal(size=x.shape)) if with_residual else None
    gamma, beta = rng.normal(size=(2, hidden)).astype(np.float32)

    def run(chosen, **more):
        added = element.pack(residual[chosen]) if with_residual else None
        packed = element.pack(x[chosen])
        return cuda.kernels.layer_norm(element.name, packed, gamma, beta, 1e-12, added, **more)

    found = run(slice(None))
    np.testing.assert_array_equal(run(slice(None), in_place=True), found)
    for row in (0, 31, 32, 33, 95, 96, 100):
        np.testing.assert_array_equal(run(slice(row, row + 1)), found[row : row + 1])
    expected = _native.kernels.layer_norm("reference", x, gamma, beta, 1e-12, residual)
    bound = norm_bound(x + residual if with_residual else x, gamma, hidden)
    bound += element.rounding(np.abs(expected) + bound)
    assert (np.abs(element.unpack(found) - expected) <= bound).all()


def test_the_order_of_threads_does_not_show(emulated, element, rng):
    x = element.pack(rng.normal(size=(9, 777)))
    gamma, beta = rng.normal(size=(2, 777)).astype(np.float32)
    found = []
    for backwards in (False, True):
        emulated.emulator.reset(backwards=backwards)
        found.append(
            emulated.kernels.layer_norm(element.name, x, gamma, beta, 1e-12, x, in_place=True)
        )
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("with_type", [True, False])
@pytest.mark.parametrize("hidden", [1, 7, 64, 768, 1025])
def test_embed_layer_norm(cuda, element, rng, hidden, with_type):
    tables = [element.round(rng.normal(size=(rows, hidden))) for rows in (30, 2, 12)]
    gamma, beta = rng.normal(size=(2, hidden)).astype(np.float32)
    ids, types, positions = (rng.integers(0, rows, 13).astype(np.int32) for rows in (30, 2, 12))
    ids[:2] = 0, 29
    word, kind, position = (element.pack(table) for table in tables)
    found = cuda.kernels.embed_layer_norm(
        element.name,
        word,
        kind if with_type else None,
        position,
        gamma,
        beta,
        1e-12,
        ids,
        types,
        positions,
    )
    # Word, then type, then position, in fp32: for rows of fp32 this has LayerNorm's own bits.
    rows = tables[0][ids] + tables[1][types] if with_type else tables[0][ids]
    rows = rows + tables[2][positions]
    if element.name == "fp32":
        again = cuda.kernels.layer_norm("fp32", rows, gamma, beta, 1e-12)
        np.testing.assert_array_equal(found, again)
    expected = _native.kernels.layer_norm("reference", rows, gamma, beta, 1e-12)
    if hidden == 1:
        np.testing.assert_array_equal(
            element.unpack(found), element.round(np.broadcast_to(beta, rows.shape))
        )
        return
    bound = norm_bound(rows, gamma, hidden)
    error = np.abs(element.unpack(found) - expected)
    assert (error <= bound + element.rounding(np.abs(expected) + bound)).all()


@pytest.mark.parametrize("cols", [1, 5, 8, 127, 128, 129, 1000])
def test_gather_rows(cuda, element, rng, cols):
    x = rng.normal(size=(6, cols))
    x[1, 0] = np.inf
    index = np.array([5, -1, 0, 0, 1, -7, 2], np.int32)
    packed = element.pack(x)
    expected = np.where(index[:, None] < 0, 0, element.unpack(packed)[np.maximum(index, 0)]).astype(
        np.float32
    )
    for out_element in {element.name, "fp32"}:
        for stride in (None, cols, cols + 3):
            found = cuda.kernels.gather_rows(element.name, packed, index, out_element, stride)
            if out_element != "fp32":
                found = element.unpack(found)
            np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        cuda.kernels.gather_rows(element.name, packed), element.unpack(packed)
    )


def test_no_rows(cuda, element):
    none = element.pack(np.zeros((0, 24)))
    ones = np.ones(24, np.float32)
    index = np.zeros(0, np.int32)
    assert cuda.kernels.layer_norm(element.name, none, ones, ones, 1e-12).shape == (0, 24)
    assert cuda.kernels.gather_rows(element.name, none, index).shape == (0, 24)
    table = element.pack(np.zeros((2, 24)))
    found = cuda.kernels.embed_layer_norm(
        element.name, table, None, table, ones, ones, 1e-12, index, index, index
    )
    assert found.shape == (0, 24)
