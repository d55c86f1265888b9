"""Every kernel on every instruction set against the double-precision reference."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from bertrt import DeviceError, InvalidInputError, ModelFormatError, _native

kernels = _native.kernels
EPS = float(np.finfo(np.float32).eps)

# 1, a tile less one, a tile, a tile more one, several tiles, a prime; for tiles of 3, 6 and 14 rows
# and panels of 16 and 32 columns.
ROWS = [1, 2, 3, 5, 6, 7, 13, 14, 15, 16, 29, 97]
COLUMNS = [1, 15, 16, 17, 31, 32, 33, 64, 97]
DEPTHS = [1, 2, 15, 16, 17, 97, 768]


def linear_bound(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Higham, Accuracy and Stability of Numerical Algorithms, 3.1: a sum of n products has an error
    below n * eps / 2 times the sum of the products' magnitudes (twice that: rounded inputs)."""
    return (x.shape[1] + 4) * EPS * (np.abs(x) @ np.abs(weight).T + 1.0)


def as_bf16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, ties to even, as float32."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_linear_of_every_tile_shape(isa, rng, rows, columns):
    for depth in DEPTHS:
        x = rng.normal(size=(rows, depth)).astype(np.float32)
        weight = rng.normal(size=(columns, depth)).astype(np.float32)
        found = kernels.linear(isa, x, weight)
        expected = kernels.linear("reference", x, weight)
        assert (np.abs(found - expected) <= linear_bound(x, weight)).all(), (rows, columns, depth)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu_erf", "gelu_tanh", "tanh"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("columns", [15, 31, 33, 45, 64])
def test_linear_with_every_epilogue(isa, rng, activation, with_bias, columns):
    x = rng.normal(size=(31, 70)).astype(np.float32)
    weight = rng.normal(size=(columns, 70)).astype(np.float32) / 8
    bias = rng.normal(size=columns).astype(np.float32) if with_bias else None
    found = kernels.linear(isa, x, weight, bias, activation, 2)
    expected = kernels.linear("reference", x, weight, bias, activation)
    # No activation is steeper than 1.13 (GELU near x = 1.4); its own error is below 1e-6.
    bound = 1.2 * (linear_bound(x, weight) + 8 * EPS) + 1e-6
    assert (np.abs(found - expected) <= bound).all()


def test_linear_rows_have_the_same_bits_in_any_batch_and_at_any_thread_count(isa, rng):
    x = rng.normal(size=(61, 100)).astype(np.float32)
    weight = rng.normal(size=(75, 100)).astype(np.float32)
    bias = rng.normal(size=75).astype(np.float32)
    whole = kernels.linear(isa, x, weight, bias, "gelu_erf", 1)
    for threads in (1, 2, 5):
        for begin, end in [(0, 1), (60, 61), (3, 17), (20, 61), (0, 61)]:
            part = kernels.linear(isa, x[begin:end], weight, bias, "gelu_erf", threads)
            np.testing.assert_array_equal(part, whole[begin:end])


def test_avx2_and_all_above_it_give_the_same_bits(rng):
    if "avx512" not in _native.supported_isas():
        pytest.skip("needs a CPU with AVX-512")
    x = rng.normal(size=(37, 333)).astype(np.float32)
    weight = rng.normal(size=(83, 333)).astype(np.float32) / 16
    ends = [0, 5, 37]
    qkv = rng.normal(size=(37, 3 * 5 * 24)).astype(np.float32)
    distances = rng.normal(size=(5, 63)).astype(np.float32)
    row = rng.normal(size=333).astype(np.float32)
    for run in (
        lambda isa: kernels.linear(isa, x, weight, None, "gelu_erf"),
        lambda isa: kernels.linear(isa, x, weight, None, "gelu_tanh"),
        lambda isa: kernels.attention(isa, qkv, np.array(ends, np.int32), 5, 0.2),
        lambda isa: kernels.attention(isa, qkv, np.array(ends, np.int32), 5, 0.2, precision="int8"),
        lambda isa: kernels.attention(isa, qkv, np.array(ends, np.int32), 5, 0.2, bias=distances),
        lambda isa: kernels.layer_norm(isa, x, row, row, 1e-12),
    ):
        for isa in _native.supported_isas():
            if isa != "portable":
                np.testing.assert_array_equal(run("avx2"), run(isa), err_msg=isa)


# Relative to the result's magnitude where that is above 1. The fits stand beside their code.
@pytest.mark.parametrize(
    ("name", "bound"), [("relu", 0.0), ("gelu_erf", 1.5e-6), ("gelu_tanh", 1e-6), ("tanh", 1e-7)]
)
def test_activations(isa, rng, name, bound):
    x = np.concatenate(
        [
            np.linspace(-12, 12, 100_003),
            rng.normal(size=1001) * 100,
            [0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30],
        ]
    ).astype(np.float32)
    found = kernels.activation(isa, name, x)
    expected = kernels.activation("reference", name, x)
    assert np.isfinite(found).all()
    error = np.abs(found - expected) / np.maximum(1.0, np.abs(expected))
    assert error.max() <= bound
    if name == "gelu_erf":
        # An error of one ulp in erf would be one of 1e22 here.
        assert found[-2] == x[-2]
        assert found[-1] == 0.0


def test_gelu_is_within_three_units_in_the_last_place_of_x(isa):
    x = np.arange(0x30000000, 0x41500000, 2003, dtype=np.uint32).view(np.float32)  # to 13
    x = np.concatenate([x, -x])
    # x Phi(x); erfc, since 1 + erf is nothing but rounding where x is far below 0.
    expected = [value / 2 * math.erfc(-value / math.sqrt(2)) for value in x.tolist()]
    error = np.abs(kernels.activation(isa, "gelu_erf", x) - np.array(expected))
    assert (error / np.spacing(np.abs(x))).max() <= 3


@pytest.mark.parametrize("count", [1, 15, 16, 17, 33])
def test_activation_tails_touch_nothing_else(isa, rng, count):
    x = rng.normal(size=count).astype(np.float32)
    whole = kernels.activation(isa, "gelu_erf", np.concatenate([x, np.zeros(40, np.float32)]))
    np.testing.assert_array_equal(kernels.activation(isa, "gelu_erf", x), whole[:count])


@pytest.mark.parametrize("hidden", [1, 2, 15, 16, 17, 31, 48, 97, 312, 768, 1024])
@pytest.mark.parametrize("eps", [1e-12, 1e-5])
@pytest.mark.parametrize("with_residual", [False, True])
def test_layer_norm(isa, rng, hidden, eps, with_residual):
    x = (rng.normal(size=(7, hidden)) * 3 + 1).astype(np.float32)
    x[1] *= 1e-3
    x[2] += 100
    gamma, beta = rng.normal(size=(2, hidden)).astype(np.float32)
    residual = rng.normal(size=x.shape).astype(np.float32) if with_residual else None
    found = kernels.layer_norm(isa, x, gamma, beta, eps, residual)
    expected = kernels.layer_norm("reference", x, gamma, beta, eps, residual)
    if residual is not None:
        x = x + residual
    if hidden == 1:
        # The variance is exactly zero: what is left is beta.
        np.testing.assert_array_equal(found, np.broadcast_to(beta, x.shape))
        return
    # An error of the mean by ulps of the row's magnitude counts in units of its deviation.
    spread = np.abs(x).max(1) / x.astype(np.float64).std(1)
    bound = 8 * EPS * (1 + spread[:, None]) * (1 + np.abs(gamma) * np.sqrt(hidden)) + 4 * EPS
    assert (np.abs(found - expected) <= bound).all()


def test_layer_norm_keeps_a_tiny_epsilon(isa):
    # Deviations of 1e-7 have a variance of 1e-14: eps 1e-12 decides the result, eps 0 would not.
    x = np.array([[1e-7, -1e-7] * 8], np.float32)
    ones = np.ones(16, np.float32)
    found = kernels.layer_norm(isa, x, ones, 0 * ones, 1e-12)
    np.testing.assert_allclose(found, x / np.sqrt(1e-14 + 1e-12), rtol=1e-5)


def attention_bound(qkv: np.ndarray, heads: int, scale: float, precision: str) -> float:
    """How far attention may be off, for values of magnitude up to m = max |qkv|.

    A score that is off by d moves the softmax's weights, and so a result, by at most 2 d m (they
    sum to 1). In fp32 a score of head_dim products is off by about head_dim roundings. So it is in
    bf16, with qkv that bfloat16 holds exactly; a weight is off by 2^-9 of itself. A row of s16
    takes sqrt(2^31 / head_dim) steps either way, and is off by half of one; values take
    2^31 / (8192 tokens), and a weight is off by half a 8192nd of the largest, together no more than
    by tokens / 16384."""
    head_dim = qkv.shape[1] // 3 // heads
    m = float(np.abs(qkv).max())
    tokens = min(len(qkv), 512)
    exact = EPS * (head_dim + 16) * scale * m**2 * m
    if precision == "bf16":
        return exact + 2 * m * 2**-9
    if precision == "int8":
        steps = min(32767, (2**31 / head_dim) ** 0.5 - 1)
        value_steps = min(32767, 2**31 / (8192 * tokens) - 1)
        return (
            exact
            + 2 * m * scale * head_dim * 2 * m**2 / (2 * steps)
            + m / (2 * value_steps)
            + 2 * m * tokens / 16384
        )
    return exact


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("head_dim", [1, 5, 16, 24, 32, 33, 64, 80])
@pytest.mark.parametrize(
    "lengths", [[1], [2, 1, 0, 3], [13, 14, 15, 16, 17], [31, 32, 33], [97, 128]]
)
def test_attention(isa, rng, head_dim, lengths, precision):
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    heads = 3
    qkv = rng.normal(size=(cu_seqlens[-1], 3 * heads * head_dim)).astype(np.float32) * 2
    if precision == "bf16":
        qkv = as_bf16(qkv)
    scale = head_dim**-0.5
    found = kernels.attention(isa, qkv, cu_seqlens, heads, scale, 2, precision)
    expected = kernels.attention("reference", qkv, cu_seqlens, heads, scale)
    bound = attention_bound(qkv, heads, scale, precision)
    assert np.abs(found - expected).max() <= bound
    if precision == "int8":  # worst cases do not meet: what it is in fact
        assert np.sqrt(((found - expected) ** 2).mean()) <= 1e-3 * np.abs(qkv).max()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("tokens", [511, 512, 513, 1025])
def test_attention_streams_over_key_blocks(isa, rng, tokens, precision):
    # A block holds 512 keys; the largest score comes late, so earlier blocks are rescaled.
    qkv = rng.normal(size=(tokens, 3 * 16)).astype(np.float32)
    qkv[-1, 16:32] *= 8
    if precision == "bf16":
        qkv = as_bf16(qkv)
    ends = np.array([0, tokens], np.int32)
    found = kernels.attention(isa, qkv, ends, 1, 0.5, 2, precision)
    expected = kernels.attention("reference", qkv, ends, 1, 0.5)
    assert np.abs(found - expected).max() <= {"fp32": 2e-5, "bf16": 0.02, "int8": 0.02}[precision]


# The last has low bits set, where exp() keeps a power of two.
NANS = [np.float32(np.nan), np.array(0x7FC00001, np.uint32).view(np.float32)[()]]


@pytest.mark.parametrize(
    ("precision", "broken"),
    [(precision, nan) for precision in ("fp32", "bf16", "int8") for nan in NANS]
    # In floats an infinite score has an answer; no steps measure it.
    + [("int8", np.inf), ("int8", -np.inf)],
)
@pytest.mark.parametrize("part", [0, 1, 2])
def test_attention_over_what_is_not_finite_is_not_finite(isa, rng, precision, broken, part):
    qkv = rng.normal(size=(7, 3 * 20)).astype(np.float32)
    qkv[3, part * 20 + 4] = broken
    ends = np.array([0, 7], np.int32)
    found = kernels.attention(isa, qkv, ends, 1, 0.2, precision=precision)
    reached = {0: found[3], 1: found, 2: found[:, 4]}[part]
    assert not np.isfinite(reached).any()


def test_attention_survives_extreme_scores(isa):
    # exp would overflow, and the others' weights underflow, without the maximum subtracted.
    qkv = np.zeros((3, 3 * 16), np.float32)
    qkv[:, :16] = 1e4
    qkv[:, 16:32] = np.array([1.0, 2.0, -3.0], np.float32)[:, None]
    qkv[:, 32:] = np.array([5.0, 7.0, 9.0], np.float32)[:, None]
    found = kernels.attention(isa, qkv, np.array([0, 3], np.int32), 1, 1.0)
    np.testing.assert_array_equal(found, np.full((3, 16), 7.0, np.float32))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_attention_has_the_same_bits_in_any_batch_and_at_any_thread_count(isa, rng, precision):
    lengths = [17, 1, 130, 0, 64, 5]
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    qkv = rng.normal(size=(ends[-1], 3 * 4 * 24)).astype(np.float32)
    whole = kernels.attention(isa, qkv, ends, 4, 0.2, 1, precision)
    for threads in (1, 2, 7):
        for begin, end in itertools.pairwise(ends):
            one = np.array([0, end - begin], np.int32)
            alone = kernels.attention(isa, qkv[begin:end], one, 4, 0.2, threads, precision)
            np.testing.assert_array_equal(alone, whole[begin:end])


def test_an_unknown_instruction_set_is_named():
    x = np.zeros((1, 1), np.float32)
    with pytest.raises(DeviceError, match=r"'avx1024' cannot be used here; usable are: .*portable"):
        kernels.linear("avx1024", x, x)


def test_shapes_are_checked_at_the_border():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(InvalidInputError, match="rows, inputs"):
        kernels.linear("portable", x, np.zeros((4, 5), np.float32))
    with pytest.raises(ModelFormatError, match="activation 'swish' is unknown"):
        kernels.activation("portable", "swish", x[0])


def weight_steps(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each output's weights in 127ths of the largest, as integers, and what a step is worth."""
    largest = np.abs(weight).max(1, keepdims=True)
    return np.rint(weight * (np.float32(127) / largest)).astype(np.int64), largest / np.float32(127)


def row_steps(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row in 255ths of its range, zero included and exact, and what a step is worth."""
    low = np.minimum(x.min(1, keepdims=True), 0)
    span = np.maximum(x.max(1, keepdims=True), 0) - low
    inverse = np.divide(np.float32(255), span, out=np.zeros_like(span), where=span > 0)
    zero = np.floor(-low * inverse + np.float32(0.5))
    return np.clip(np.rint(x * inverse), -zero, 255 - zero).astype(np.int64), span / np.float32(255)


# As above, for tiles of 12, 14 and 16 or 32 rows.
LOW_PRECISION_ROWS = [1, 11, 12, 13, 14, 15, 16, 17, 31, 32, 33, 97]


@pytest.mark.parametrize("rows", LOW_PRECISION_ROWS)
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 97])
def test_linear_in_bf16(isa, rng, rows, columns):
    for depth in (1, 2, 3, 31, 32, 33, 95, 96, 97, 768):
        x = rng.normal(size=(rows, depth)).astype(np.float32)
        weight = rng.normal(size=(columns, depth)).astype(np.float32)
        found = kernels.linear(isa, x, weight, precision="bf16", threads=2)
        # Products of two bfloat16 are exact in float32: what is left is the error of the sums.
        rounded = as_bf16(x), as_bf16(weight)
        expected = rounded[0].astype(np.float64) @ rounded[1].astype(np.float64).T
        assert (np.abs(found - expected) <= linear_bound(*rounded)).all(), depth


@pytest.mark.parametrize("rows", LOW_PRECISION_ROWS)
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 97])
def test_linear_in_int8(isa, rng, rows, columns):
    for depth in (1, 2, 3, 4, 5, 63, 64, 65, 97, 768):
        x = rng.normal(size=(rows, depth)).astype(np.float32)
        weight = rng.normal(size=(columns, depth)).astype(np.float32)
        x[0] = 0  # a row without a range
        x[-1] = np.abs(x[-1])  # and one on one side of zero
        bias = rng.normal(size=columns).astype(np.float32)
        found = kernels.linear(isa, x, weight, bias, precision="int8", threads=2)
        (rows_of, row_scale), (columns_of, column_scale) = row_steps(x), weight_steps(weight)
        sums = (rows_of @ columns_of.T).astype(np.float32)
        np.testing.assert_array_equal(found, sums * (row_scale * column_scale.T) + bias)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_gelu_in_lower_precision(isa, precision):
    # On a product whose value is known: the same without an activation.
    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -60.0, 60.0]]).astype(np.float32)[:, None]
    weight = np.ones((33, 1), np.float32)
    values = kernels.linear(isa, x, weight, precision=precision)
    found = kernels.linear(isa, x, weight, activation="gelu_erf", precision=precision)
    expected = kernels.activation("reference", "gelu_erf", values.ravel()).reshape(values.shape)
    assert np.abs(found - expected)[:-2].max() <= 4.6e-5 + 8 * EPS
    assert (found[-2] == 0).all() and (found[-1] == values[-1]).all()


def test_int8_sums_do_not_saturate(isa):
    # Every product is the largest there is; 16-bit sums of two would overflow.
    x = np.full((3, 4096), 3.0, np.float32)
    weight = np.full((17, 4096), -2.0, np.float32)
    found = kernels.linear(isa, x, weight, precision="int8")
    np.testing.assert_allclose(found, np.full((3, 17), -6.0 * 4096), rtol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(isa, rng, precision, broken):
    x = rng.normal(size=(5, 37)).astype(np.float32)
    weight = rng.normal(size=(20, 37)).astype(np.float32)
    x[2, 36] = broken
    found = kernels.linear(isa, x, weight, precision=precision)
    assert not np.isfinite(found[2]).any()
    assert np.isfinite(found[[0, 1, 3, 4]]).all()
    x[2, 36] = 1
    weight[7, 0] = broken
    found = kernels.linear(isa, x, weight, precision=precision)
    assert not np.isfinite(found[:, 7]).any()
    assert np.isfinite(np.delete(found, 7, 1)).all()


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_rows_have_the_same_bits_in_every_precision(isa, rng, precision):
    x = rng.normal(size=(61, 100)).astype(np.float32)
    weight = rng.normal(size=(75, 100)).astype(np.float32)
    whole = kernels.linear(isa, x, weight, activation="gelu_erf", precision=precision)
    for threads in (1, 2, 5):
        for begin, end in [(0, 1), (60, 61), (3, 17), (20, 61)]:
            part = kernels.linear(
                isa,
                x[begin:end],
                weight,
                activation="gelu_erf",
                threads=threads,
                precision=precision,
            )
            np.testing.assert_array_equal(part, whole[begin:end])


def test_every_path_gives_the_same_bits_in_int8_and_every_widening_one_in_bf16(rng):
    x = rng.normal(size=(37, 333)).astype(np.float32)
    weight = rng.normal(size=(83, 333)).astype(np.float32)
    paths = _native.supported_isas()
    # Whose instructions round sums in their own way.
    own = {"avx512_bf16", "amx", "amx_emulated", "neon_bf16"}
    for precision, same in (("int8", paths), ("bf16", [p for p in paths if p not in own])):
        expected = kernels.linear("portable", x, weight, precision=precision)
        for isa in same:
            found = kernels.linear(isa, x, weight, precision=precision)
            np.testing.assert_array_equal(found, expected, err_msg=isa)
