"""Matrix products and attention of the CUDA backend against the double-precision reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bertrt import _native

reference = _native.kernels
EPS = float(np.finfo(np.float32).eps)
TILES = ["small", "medium", "large"]


def draw(rng: np.random.Generator, element, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal values, as the kernels take them and as the float32 that those are."""
    packed = element.pack(rng.normal(size=shape))
    return packed, element.unpack(packed)


def sum_bound(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A sum of n products in fp32 has an error below n * eps times the sum of their magnitudes,
    however it rounds (Higham, Accuracy and Stability of Numerical Algorithms, 3.1)."""
    return (x.shape[1] + 4) * EPS * (np.abs(x) @ np.abs(weight).T + 1.0)


# For tiles of 32, 64 and 128 rows and columns, and 32 inputs at a time.
@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize(
    ("rows", "columns", "depth"),
    [
        (1, 1, 1),
        (1, 33, 7),
        (31, 31, 31),
        (32, 32, 32),
        (33, 33, 33),
        (65, 63, 97),
        (17, 129, 64),
        (127, 9, 160),
        (129, 65, 8),
        (2, 3, 768),
    ],
)
def test_linear_of_awkward_shapes(cuda, rng, element, tiles, rows, columns, depth):
    x, x_values = draw(rng, element, rows, depth)
    weight, weight_values = draw(rng, element, columns, depth)
    found = element.unpack(cuda.kernels.linear(element.name, x, weight, tiles=tiles))
    expected = reference.linear("reference", x_values, weight_values)
    bound = sum_bound(x_values, weight_values)
    bound += element.rounding(np.abs(expected) + bound)
    assert (np.abs(found - expected) <= bound).all()


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("activation", ["none", "relu", "gelu_erf", "gelu_tanh", "tanh"])
def test_linear_with_every_epilogue(cuda, rng, element, tiles, activation):
    x, x_values = draw(rng, element, 35, 40)
    weight, weight_values = draw(rng, element, 43, 40)
    bias = rng.normal(size=43).astype(np.float32)
    residual, residual_values = draw(rng, element, 35, 43)
    expected = reference.linear("reference", x_values, weight_values, bias, activation)
    # No activation is steeper than 1.13 (GELU near x = 1.4). The error function of the device and
    # tanhf are within 2 units in the last place, which counts up to |x| / 2 times.
    before = reference.linear("reference", x_values, weight_values, bias)
    bound = 1.2 * (sum_bound(x_values, weight_values) + EPS * np.abs(before)) + 8 * EPS * (
        1 + np.abs(before)
    )
    for more, more_values in [(None, np.float32(0)), (residual, residual_values)]:
        found = element.unpack(
            cuda.kernels.linear(
                element.name, x, weight, bias, activation, residual=more, tiles=tiles
            ),
        )
        whole = expected + more_values.astype(np.float64)
        limit = bound + EPS * np.abs(whole)
        limit += element.rounding(np.abs(whole) + limit)
        assert (np.abs(found - whole) <= limit).all()


def test_gelu_is_the_error_function_unless_tanh_is_asked_for(cuda, element):
    # Where the two differ by 5 percent: more than any element rounds.
    nothing = element.pack(np.zeros((8, 8)))
    bias = np.full(8, -2.70, np.float32)
    for activation, expected in [("gelu_erf", -9.3608e-3), ("gelu_tanh", -8.8876e-3)]:
        found = cuda.kernels.linear(element.name, nothing, nothing, bias, activation)
        np.testing.assert_allclose(element.unpack(found), expected, rtol=5e-3)


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("first_column", [0, 8, 13])
def test_linear_into_columns_of_wider_rows(cuda, rng, element, tiles, first_column):
    x, _ = draw(rng, element, 37, 24)
    weight, _ = draw(rng, element, 45, 24)
    into, _ = draw(rng, element, 37, 70)
    alone = cuda.kernels.linear(element.name, x, weight, tiles=tiles)
    found = cuda.kernels.linear(
        element.name, x, weight, into=into, first_column=first_column, tiles=tiles
    )
    columns = slice(first_column, first_column + 45)
    np.testing.assert_array_equal(found[:, columns], alone)
    added = cuda.kernels.linear(
        element.name, x, weight, residual=np.ascontiguousarray(into[:, columns]), tiles=tiles
    )
    in_place = cuda.kernels.linear(
        element.name,
        x,
        weight,
        into=into,
        first_column=first_column,
        residual_in_place=True,
        tiles=tiles,
    )
    np.testing.assert_array_equal(in_place[:, columns], added)
    for whole in (found, in_place):
        whole[:, columns] = into[:, columns]
        np.testing.assert_array_equal(whole, into)


def test_linear_rows_have_the_same_bits_in_any_batch_and_tiles(cuda, rng, element):
    x, _ = draw(rng, element, 150, 100)
    weight, _ = draw(rng, element, 75, 100)
    bias = rng.normal(size=75).astype(np.float32)
    residual, _ = draw(rng, element, 150, 75)
    whole = cuda.kernels.linear(element.name, x, weight, bias, "gelu_erf", residual)
    for tiles in TILES:
        for begin, end in [(0, 1), (149, 150), (3, 17), (20, 61), (0, 150)]:
            part = cuda.kernels.linear(
                element.name,
                x[begin:end],
                weight,
                bias,
                "gelu_erf",
                residual[begin:end],
                tiles=tiles,
            )
            np.testing.assert_array_equal(part, whole[begin:end])


@pytest.mark.parametrize("tiles", TILES)
def test_what_is_no_number_stays_in_its_row(cuda, rng, element, tiles):
    x, x_values = draw(rng, element, 70, 40)
    weight, _ = draw(rng, element, 20, 40)
    clean = cuda.kernels.linear(element.name, x, weight, activation="relu", tiles=tiles)
    x_values[5, 39] = np.nan
    x_values[66, 0] = np.inf
    found = cuda.kernels.linear(
        element.name, element.pack(x_values), weight, activation="relu", tiles=tiles
    )
    assert np.isnan(element.unpack(found)[5]).all()
    assert np.isin(element.unpack(found)[66], [0, np.inf]).all()
    others = np.delete(np.arange(70), [5, 66])
    np.testing.assert_array_equal(found[others], clean[others])


def test_linear_of_the_sizes_of_models(cuda, rng, element):
    # A device does in a moment what the emulator would take minutes for.
    emulated = hasattr(cuda, "emulator")
    for rows, columns, depth in (
        [(197, 72, 100)] if emulated else [(1, 2304, 768), (8197, 3072, 768), (515, 1000, 4096)]
    ):
        x, x_values = draw(rng, element, rows, depth)
        weight, weight_values = draw(rng, element, columns, depth)
        bias = rng.normal(size=columns).astype(np.float32)
        found = element.unpack(cuda.kernels.linear(element.name, x, weight, bias))
        expected = x_values.astype(np.float64) @ weight_values.astype(np.float64).T + bias
        bound = sum_bound(x_values, weight_values) + EPS * np.abs(bias)
        assert (
            np.abs(found - expected) <= bound + element.rounding(np.abs(expected) + bound)
        ).all()


def test_the_order_of_threads_does_not_show(emulated, rng, element):
    # A race in global memory would.
    x, _ = draw(rng, element, 70, 40)
    weight, _ = draw(rng, element, 45, 40)
    into, _ = draw(rng, element, 70, 48)
    qkv, _ = draw(rng, element, 70, 3 * 2 * 32)
    results: list[list[np.ndarray]] = []
    for backwards in (False, True):
        emulated.emulator.reset(backwards=backwards)
        kernels = emulated.kernels
        products = [
            kernels.linear(element.name, x, weight, into=into, residual_in_place=True, tiles=tiles)
            for tiles in TILES
        ]
        attended = [
            kernels.attention(element.name, qkv[:, :columns].copy(), offsets([3, 67]), 2, 0.2)
            for columns in (3 * 2 * 32, 3 * 2 * 7)
        ]
        weights = kernels.attention_weights(element.name, qkv, offsets([3, 67]), 2, 0.2)
        results.append([*products, *attended, weights])
    for forwards, backwards in zip(*results, strict=True):
        np.testing.assert_array_equal(forwards, backwards)


def test_linear_of_no_rows(cuda, element):
    x = element.pack(np.zeros((0, 8)))
    assert cuda.kernels.linear(element.name, x, element.pack(np.ones((3, 8)))).shape == (0, 3)


def offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def parts(rows: np.ndarray, heads: int) -> np.ndarray:
    """Query, key and value of one sequence in double precision, each (heads, tokens, head_dim)."""
    head_dim = rows.shape[1] // 3 // heads
    return rows.astype(np.float64).reshape(len(rows), 3, heads, head_dim).transpose(1, 2, 0, 3)


def probabilities(
    rows: np.ndarray, heads: int, scale: float, keys: int, bias: np.ndarray | None = None
) -> np.ndarray:
    """(heads, queries, keys) of one sequence, of which the first `keys` tokens are attended to.
    bias: what scores have added, by distance."""
    query, key, _ = parts(rows, heads)
    scores = query @ key[:, :keys].transpose(0, 2, 1) * scale
    if bias is not None:
        at = np.arange(len(rows))
        scores += bias[:, bias.shape[1] // 2 + at[:keys] - at[:, None]]
    weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-np.inf))
    return weights / weights.sum(-1, keepdims=True)


def attend(element, values, cu_seqlens, heads, scale, attended=None, bias=None):
    """Attention in double precision, and how far a kernel may be from it.

    A score of head_dim products is off by d, about head_dim roundings of their magnitudes; that
    moves weights by 2 d of themselves at most, and so a result by as much of spread, the weighted
    sum of the values' magnitudes. On tensor cores a weight is rounded to the element before it is
    multiplied: relative, and in fp16 by 2^-25 where it is tiny. Then values are summed in fp32,
    and the result is rounded."""
    out = np.zeros((len(values), values.shape[1] // 3))
    bound = np.zeros_like(out)
    for s, (begin, end) in enumerate(itertools.pairwise(cu_seqlens)):
        keys = end - begin if attended is None else attended[s]
        if not keys:
            continue
        rows = values[begin:end]
        query, key, value = parts(rows, heads)
        key, value = key[:, :keys], value[:, :keys]
        weights = probabilities(rows, heads, scale, keys, bias)
        magnitudes = (np.abs(query) @ np.abs(key).transpose(0, 2, 1)).max(-1, keepdims=True)
        if bias is not None:
            magnitudes += np.abs(bias).max() / scale
        off = EPS * (2 * (query.shape[-1] + 8) * scale * magnitudes + keys + 16)
        tiny = 0.0
        if element.name != "fp32":
            off = off + float(element.rounding(1.0))
            tiny = keys * float(element.rounding(0.0)) * np.abs(value).max()
        spread = weights @ np.abs(value)
        for whole, part in [(out, weights @ value), (bound, off * spread + tiny)]:
            whole[begin:end] = part.transpose(1, 0, 2).reshape(end - begin, -1)
    return out, bound + element.rounding(np.abs(out) + bound)


TENSOR_CORE_HEADS = [32, 64, 80, 96, 128]


@pytest.mark.parametrize("head_dim", [*TENSOR_CORE_HEADS, 1, 5, 24, 33, 65, 72, 160])
@pytest.mark.parametrize("lengths", [[2, 0, 17, 1, 0], [63, 64, 65]])
def test_attention(cuda, rng, element, head_dim, lengths):
    cu_seqlens = offsets(lengths)
    heads = 2
    qkv, values = draw(rng, element, int(cu_seqlens[-1]), 3 * heads * head_dim)
    scale = head_dim**-0.5
    found = element.unpack(cuda.kernels.attention(element.name, qkv, cu_seqlens, heads, scale))
    expected, bound = attend(element, values, cu_seqlens, heads, scale)
    assert (np.abs(found - expected) <= bound).all()


def test_attention_of_the_sizes_of_models(cuda, rng, element):
    emulated = hasattr(cuda, "emulator")
    for heads, head_dim in [(3, 32)] if emulated else [(12, 64), (12, 32), (16, 80), (7, 20)]:
        lengths = rng.integers(1, 90 if emulated else 513, 5 if emulated else 65)
        lengths[-1] = 1 if emulated else 512
        cu_seqlens = offsets(lengths)
        qkv, values = draw(rng, element, int(cu_seqlens[-1]), 3 * heads * head_dim)
        scale = head_dim**-0.5
        found = element.unpack(cuda.kernels.attention(element.name, qkv, cu_seqlens, heads, scale))
        expected, bound = attend(element, values, cu_seqlens, heads, scale)
        assert (np.abs(found - expected) <= bound).all()


@pytest.mark.parametrize("head_dim", [64, 40])
def test_attention_streams_over_key_blocks(cuda, rng, element, head_dim):
    # Keys grow, so that the largest score is in the last block and the sums before are scaled down;
    # then they shrink, so that it is in the first.
    tokens = 200
    _, values = draw(rng, element, tokens, 3 * head_dim)
    for growth in (np.linspace(0, 8, tokens), np.linspace(8, 0, tokens)):
        grown = values.copy()
        grown[:, head_dim : 2 * head_dim] *= growth[:, None]
        qkv = element.pack(grown)
        grown = element.unpack(qkv)
        cu_seqlens = offsets([tokens])
        scale = head_dim**-0.5
        found = element.unpack(cuda.kernels.attention(element.name, qkv, cu_seqlens, 1, scale))
        expected, bound = attend(element, grown, cu_seqlens, 1, scale)
        assert (np.abs(found - expected) <= bound).all()


@pytest.mark.parametrize("head_dim", [64, 40])
def test_attention_reads_the_keys_that_are_attended_to(cuda, rng, element, head_dim):
    # Whole tiles of keys, and blocks of them, among the lengths: nothing may round them up.
    cu_seqlens = offsets([70, 5, 0, 3, 66, 70, 40, 20])
    attended = np.array([65, 5, 0, 0, 1, 64, 32, 16], np.int32)
    heads = 2
    qkv, values = draw(rng, element, int(cu_seqlens[-1]), 3 * heads * head_dim)
    # What is not attended to is not even looked at: only its queries are.
    for s, keys in enumerate(attended):
        values[cu_seqlens[s] + keys : cu_seqlens[s + 1], heads * head_dim :] = np.nan
    qkv = element.pack(values)
    scale = head_dim**-0.5
    found = element.unpack(
        cuda.kernels.attention(element.name, qkv, cu_seqlens, heads, scale, attended)
    )
    expected, bound = attend(element, values, cu_seqlens, heads, scale, attended)
    assert (np.abs(found - expected) <= bound).all()
    assert not found[75:78].any()


@pytest.mark.parametrize("head_dim", [32, 128, 7])
def test_attention_of_first_tokens_has_the_bits_of_attention_of_all(cuda, rng, element, head_dim):
    lengths = [3, 0, 70, 1]
    cu_seqlens = offsets(lengths)
    hidden = 2 * head_dim
    qkv, values = draw(rng, element, int(cu_seqlens[-1]), 3 * hidden)
    whole = cuda.kernels.attention(element.name, qkv, cu_seqlens, 2, 0.2)
    first = np.where(np.array(lengths) > 0, cu_seqlens[:-1], 0)
    queries = qkv[first, :hidden].copy()
    # Queries in qkv itself are not read.
    values[:, :hidden] = np.nan
    found = cuda.kernels.attention(
        element.name, element.pack(values), cu_seqlens, 2, 0.2, first_queries=queries
    )
    np.testing.assert_array_equal(found[[0, 2, 3]], whole[first[[0, 2, 3]]])
    assert not found[1].any()


@pytest.mark.parametrize("head_dim", [32, 80, 7])
def test_attention_has_the_same_bits_in_any_batch(cuda, rng, element, head_dim):
    lengths = [5, 66, 1, 64]
    cu_seqlens = offsets(lengths)
    qkv, values = draw(rng, element, int(cu_seqlens[-1]), 3 * 2 * head_dim)
    whole = cuda.kernels.attention(element.name, qkv, cu_seqlens, 2, 0.2)
    for s, length in enumerate(lengths):
        rows = slice(cu_seqlens[s], cu_seqlens[s + 1])
        alone = cuda.kernels.attention(element.name, qkv[rows], offsets([length]), 2, 0.2)
        np.testing.assert_array_equal(alone, whole[rows])
    values[5:71] = np.nan
    found = cuda.kernels.attention(element.name, element.pack(values), cu_seqlens, 2, 0.2)
    np.testing.assert_array_equal(
        np.delete(found, np.s_[5:71], 0), np.delete(whole, np.s_[5:71], 0)
    )


@pytest.mark.parametrize("head_dim", [32, 64, 7])
@pytest.mark.parametrize("lengths", [[1], [2, 0, 17, 1, 0], [63, 64, 65], [130]])
def test_attention_with_a_bias_by_distance(cuda, rng, element, head_dim, lengths):
    """Tables reach no farther than the longest sequence; the emulator stops who reads beyond."""
    cu_seqlens, heads, scale = offsets(lengths), 2, head_dim**-0.5
    qkv, values = draw(rng, element, int(cu_seqlens[-1]), 3 * heads * head_dim)
    bias = 2 * rng.normal(size=(heads, 2 * max(lengths) - 1)).astype(np.float32)
    run = cuda.kernels.attention
    packed = run(element.name, qkv, cu_seqlens, heads, scale, bias=bias)
    expected, bound = attend(element, values, cu_seqlens, heads, scale, None, bias)
    assert (np.abs(element.unpack(packed) - expected) <= bound).all()
    # The same bits alone, and of the first token alone.
    for begin, end in itertools.pairwise(cu_seqlens):
        if end > begin:
            one, rows = offsets([end - begin]), qkv[begin:end]
            alone = run(element.name, rows, one, heads, scale, bias=bias)
            np.testing.assert_array_equal(alone, packed[begin:end])
            query = rows[:1, : heads * head_dim].copy()
            first = run(element.name, rows, one, heads, scale, first_queries=query, bias=bias)
            np.testing.assert_array_equal(first, packed[begin : begin + 1])
    zeros = run(element.name, qkv, cu_seqlens, heads, scale, bias=0 * bias)
    np.testing.assert_array_equal(zeros, run(element.name, qkv, cu_seqlens, heads, scale))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("head_dim", [32, 7])
def test_attention_weights(cuda, rng, element, head_dim, biased):
    lengths = [3, 0, 37, 1, 4]
    cu_seqlens = offsets(lengths)
    heads = 5
    qkv, values = draw(rng, element, int(cu_seqlens[-1]), 3 * heads * head_dim)
    scale = head_dim**-0.5
    # An exponent off by d changes a weight by that part of itself.
    bound = EPS * (head_dim + 64) * (1 + scale * head_dim**0.5 * np.abs(values).max() ** 2)
    bias = rng.normal(size=(heads, 73)).astype(np.float32) if biased else None
    for attended in (None, np.array([3, 0, 33, 1, 0], np.int32)):
        found = cuda.kernels.attention_weights(
            element.name, qkv, cu_seqlens, heads, scale, attended, bias
        )
        assert found.shape == (sum(n * n for n in lengths), heads)
        row = 0
        for s, length in enumerate(lengths):
            keys = length if attended is None else attended[s]
            weights = found[row : row + length * length].reshape(length, length, heads)
            row += length * length
            assert not weights[:, keys:].any()
            if keys:
                rows = values[cu_seqlens[s] : cu_seqlens[s + 1]]
                expected = probabilities(rows, heads, scale, keys, bias).transpose(1, 2, 0)
                assert np.abs(weights[:, :keys] - expected).max() <= bound
