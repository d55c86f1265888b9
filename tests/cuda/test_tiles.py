"""Tiles of products: the widest, deep layers' parts, and which are chosen for what."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from bertrt import DeviceError, Engine, _native

EPS = float(np.finfo(np.float32).eps)
DEEP = 2048  # inputs from which on a layer's depth has four parts
ONE_PART = ["small", "medium", "large", "wide"]
SEVERAL = ["small", "medium", "large"]


def draw(rng, half, *shape):
    packed = half.pack(rng.normal(size=shape))
    return packed, half.unpack(packed)


def bound_of(half, x, weight, expected):
    """As in test_products.py: n + 4 roundings of the sum of the products' magnitudes."""
    bound = (x.shape[1] + 4) * EPS * (np.abs(x) @ np.abs(weight).T + 1.0)
    bound = 1.2 * bound + 16 * EPS * (1 + np.abs(expected))
    return bound + half.rounding(np.abs(expected) + bound)


# Of 128 x 256, four stages of 32 inputs; 64 rows are laid out at a time.
@pytest.mark.parametrize(
    ("rows", "columns", "depth", "activation"),
    [
        (1, 1, 1, "none"),
        (63, 255, 40, "relu"),
        (65, 257, 97, "gelu_erf"),
        (129, 40, 200, "gelu_tanh"),
        (5, 129, 2047, "tanh"),
    ],
)
def test_the_widest(cuda, rng, half, rows, columns, depth, activation):
    x, x_values = draw(rng, half, rows, depth)
    weight, weight_values = draw(rng, half, columns, depth)
    weight_values /= 8
    weight = half.pack(weight_values)
    bias = rng.normal(size=columns).astype(np.float32)
    residual, residual_values = draw(rng, half, rows, columns)
    found = cuda.kernels.linear(half.name, x, weight, bias, activation, residual, tiles="wide")
    expected = _native.kernels.linear("reference", x_values, weight_values, bias, activation)
    expected = expected + residual_values.astype(np.float64)
    bound = bound_of(half, x_values, weight_values, expected)
    assert (np.abs(half.unpack(found) - expected) <= bound).all()
    small = cuda.kernels.linear(half.name, x, weight, bias, activation, residual, tiles="small")
    np.testing.assert_array_equal(found, small)


@pytest.mark.parametrize("first_column", [0, 8, 13])
def test_the_widest_into_columns_of_wider_rows(cuda, rng, half, first_column):
    x, _ = draw(rng, half, 70, 24)
    weight, _ = draw(rng, half, 145, 24)
    into, _ = draw(rng, half, 70, 170)
    columns = slice(first_column, first_column + 145)
    alone = cuda.kernels.linear(half.name, x, weight, tiles="small")
    found = cuda.kernels.linear(
        half.name, x, weight, into=into, first_column=first_column, tiles="wide"
    )
    np.testing.assert_array_equal(found[:, columns], alone)
    found[:, columns] = into[:, columns]
    np.testing.assert_array_equal(found, into)


@pytest.mark.parametrize("tiles", ONE_PART)
def test_each_tile_is_computed(cuda, rng, half, tiles):
    """In more than one band of eight tiles down: who is left out would be NaN."""
    down, across = {"small": (32, 32), "medium": (64, 64), "large": (128, 128), "wide": (128, 256)}[
        tiles
    ]
    rows, columns = 8 * down + 3, 2 * across + 1
    x, _ = draw(rng, half, rows, 8)
    weight, _ = draw(rng, half, columns, 8)
    want = cuda.kernels.linear(half.name, x, weight, tiles="small")
    found = cuda.kernels.linear(half.name, x, weight, tiles=tiles)
    np.testing.assert_array_equal(found, want)
    one = cuda.kernels.linear(half.name, x[-1:], weight[-1:], tiles=tiles)
    np.testing.assert_array_equal(one, want[-1:, -1:])


@pytest.mark.parametrize("tiles", SEVERAL)
@pytest.mark.parametrize(
    ("rows", "columns", "depth"),
    [
        (33, 70, DEEP),
        (3, 33, DEEP + 1),  # 33 steps of 64 inputs, the last of one
        (2, 5, 2176 - 23),  # parts of 8, 9, 8 and 9 steps, the last of 41
        (1, 1, 3080),
    ],
)
def test_deep_layers(cuda, rng, half, tiles, rows, columns, depth):
    x, x_values = draw(rng, half, rows, depth)
    weight, weight_values = draw(rng, half, columns, depth)
    bias = rng.normal(size=columns).astype(np.float32)
    residual, residual_values = draw(rng, half, rows, columns)
    found = cuda.kernels.linear(half.name, x, weight, bias, "relu", residual, tiles=tiles)
    expected = _native.kernels.linear("reference", x_values, weight_values, bias, "relu")
    expected = expected + residual_values.astype(np.float64)
    bound = bound_of(half, x_values, weight_values, expected)
    assert (np.abs(half.unpack(found) - expected) <= bound).all()


def test_deep_rows_have_the_same_bits_in_any_batch_and_tiles(cuda, rng, half):
    counts, columns, depth = [1, 2, 15, 16, 17, 127, 128, 129, 300, 1000], 200, 3100
    if hasattr(cuda, "emulator"):
        counts, columns, depth = counts[:-1], 3, 2100
    x, _ = draw(rng, half, counts[-1], depth)
    weight, _ = draw(rng, half, columns, depth)
    bias = rng.normal(size=columns).astype(np.float32)
    whole = cuda.kernels.linear(half.name, x, weight, bias, "gelu_erf", tiles="small")
    for tiles, count in itertools.product(SEVERAL, counts):
        found = cuda.kernels.linear(half.name, x[:count], weight, bias, "gelu_erf", tiles=tiles)
        np.testing.assert_array_equal(found, whole[:count])
    for tiles in SEVERAL:
        found = cuda.kernels.linear(half.name, x[-3:], weight, bias, "gelu_erf", tiles=tiles)
        np.testing.assert_array_equal(found, whole[-3:])


@pytest.mark.parametrize("tiles", SEVERAL)
def test_parts_begin_at_zero_and_are_added_in_order(cuda, half, tiles):
    """Sums that are exact, or lost, by the order alone: 1, twice 2^-24, 2^-25 and -1."""
    parts = [[1.0], [2.0**-24, 2.0**-24], [2.0**-25], [-1.0]]
    x = np.zeros((1, DEEP), np.float32)
    for part, terms in enumerate(parts):
        x[0, DEEP // 4 * part : DEEP // 4 * (part + 1) : 40][: len(terms)] = terms
    # The weights' share of a power of two, so that fp16 holds both.
    weight = np.where(np.abs(x) < 1, 2.0**-12, 1).astype(np.float32)
    x = np.where(np.abs(x) < 1, x * 2.0**12, x)
    found = cuda.kernels.linear(half.name, half.pack(x), half.pack(weight), tiles=tiles)
    # Without parts, 2^-24 is lost beside 1, twice; in another order 2^-25 is not.
    np.testing.assert_array_equal(half.unpack(found), [[2.0**-23]])


def test_the_depth_before_the_first_deep_layer_is_one_part(cuda, half):
    x = np.zeros((1, DEEP - 1), np.float32)
    x[0, [0, 600, 700, 2000]] = [1, 2.0**-12, 2.0**-12, -1]
    weight = np.where((x > 0) & (x < 1), 2.0**-12, 1).astype(np.float32)
    for tiles in ONE_PART:
        found = cuda.kernels.linear(half.name, half.pack(x), half.pack(weight), tiles=tiles)
        np.testing.assert_array_equal(half.unpack(found), [[0]])


@pytest.mark.parametrize("tiles", [*SEVERAL, "wide"])
def test_deep_layers_in_8_bit_integers(cuda, rng, tiles):
    """Exact sums in any tiles: those of one part, beside each other, and the CPU's."""
    x = rng.normal(size=(18, 2113)).astype(np.float32)
    x = x.astype(np.float16).astype(np.float32)
    values = rng.integers(-127, 128, (35, 2113)).astype(np.int8)
    values[:, 0] = 127
    scale = rng.uniform(0.5, 2, 35).astype(np.float32) / 127
    weight = values * scale[:, None]
    want = _native.kernels.linear("portable", x, weight, None, "none", 1, "int8")
    bits = np.ascontiguousarray(x, np.float16).view(np.uint16)
    limit = np.abs(weight).max(axis=1)
    steps = (limit / np.float32(127)).astype(np.float32)
    found = cuda.kernels.linear_s8(bits, values, steps, tiles=tiles)
    np.testing.assert_array_equal(found, want.astype(np.float16).view(np.uint16))


def test_the_order_of_threads_does_not_show(emulated, rng, half):
    results: list[list[np.ndarray]] = []
    shapes = [(SEVERAL, draw(rng, half, 9, DEEP)[0], draw(rng, half, 5, DEEP)[0])]
    shapes += [(["wide"], draw(rng, half, 130, 40)[0], draw(rng, half, 9, 40)[0])]
    for backwards in (False, True):
        emulated.emulator.reset(backwards=backwards)
        results.append(
            [
                emulated.kernels.linear(half.name, x, weight, tiles=tile)
                for tiles, x, weight in shapes
                for tile in tiles
            ]
        )
    for forwards, backwards in zip(*results, strict=True):
        np.testing.assert_array_equal(forwards, backwards)


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 0.02), ("bf16", 0.15), ("int8", 0.5)])
def test_a_whole_model_of_deep_layers(cuda, hugging, monkeypatch, precision, bound):
    """Kernels that overlap too: by a graph and without, alone and in a batch."""
    monkeypatch.setitem(sys.modules, "bertrt._cuda", cuda)
    config = {**hugging.config, "hidden_size": 32, "num_attention_heads": 1}
    config["intermediate_size"] = DEEP + 8
    path = hugging.write(config, hugging.weights(config))
    texts = [np.random.default_rng(i).integers(4, 9, count) for i, count in enumerate((1, 9, 3))]
    with Engine.load(path) as cpu:
        want = cpu.run(texts)
    with Engine.load(path, device="cuda", precision=precision) as engine:
        together = engine.run(texts)
        for name, exact in want.items():
            for found, own in zip(together[name], exact, strict=True):
                np.testing.assert_allclose(found, own, atol=bound)
        for _ in range(3):  # the second captures a graph, the third runs by it
            for i, ids in enumerate(texts):
                for name, value in engine.run([ids]).items():
                    np.testing.assert_array_equal(value[0], together[name][i], name)
        if hasattr(cuda, "emulator"):
            assert "kernels overlap" in engine.explain()


def test_tiles_that_there_are_not(cuda, half):
    deep = half.pack(np.ones((1, DEEP)))
    with pytest.raises(DeviceError, match="2048 inputs has no tiles of 128 x 256"):
        cuda.kernels.linear(half.name, deep, deep, tiles="wide")
    ones = np.ones((1, 8), np.float32)
    with pytest.raises(DeviceError, match="fp32 has no tiles of 128 x 256"):
        cuda.kernels.linear("fp32", ones, ones, tiles="wide")
    with pytest.raises(DeviceError, match="fp8 has no tiles of 128 x 256"):
        cuda.kernels.linear_e4m3(
            np.ones((1, 8), np.uint16), np.ones((1, 8), np.uint8), ones[:, 0], tiles="wide"
        )


# On 132 multiprocessors. The rows of inputs that one of them reads, in tiles of 32 x 32, 64 x 64,
# 128 x 128 and 128 x 256:
CHOICES = [
    ("bf16", 1, 768, 768, "small"),  # 24 tiles: 64, 128, 256, 384
    ("bf16", 128, 768, 768, "small"),  # 96, 24, 6, 3 tiles: as before
    ("bf16", 128, 2304, 768, "medium"),  # 288 of 32 x 32 are three each, 192; 72 are one, 128
    ("bf16", 128, 3072, 768, "medium"),
    ("bf16", 384, 768, 768, "medium"),  # 288 and 72
    ("bf16", 1024, 768, 768, "medium"),  # 192 are two each, 256; as much as one of 128 x 128
    ("bf16", 1024, 3072, 768, "wide"),  # 192 of 128 x 128 are two each, 512; 96 wide, 384
    ("bf16", 1152, 1792, 768, "large"),  # 126 of 128 x 128, 256; 63 wide ones, 384
    ("bf16", 16384, 768, 768, "wide"),
    ("bf16", 61000, 4096, 1024, "wide"),
    ("fp16", 61000, 4096, 1024, "wide"),
    ("int8", 61000, 4096, 1024, "wide"),
    # Nothing wide for deep layers in 16 bits, in fp32 and in fp8.
    ("bf16", 128, 768, 3072, "small"),
    ("bf16", 61000, 1024, 4096, "large"),
    ("bf16", 61000, 1024, 2047, "wide"),
    ("bf16", 61000, 1024, 2048, "large"),
    ("int8", 61000, 1024, 4096, "wide"),
    ("fp8", 61000, 4096, 1024, "large"),
    ("fp32", 61000, 4096, 1024, "large"),
    ("fp32", 1, 768, 768, "small"),
    ("fp32", 384, 768, 768, "small"),  # 72 of 64 x 64 are too few
    ("fp32", 1024, 768, 768, "medium"),  # 192 are enough; 96 of 128 x 64 are not
    ("fp32", 1056, 960, 768, "large"),  # 135
]


@pytest.mark.parametrize(("kind", "rows", "outputs", "inputs", "want"), CHOICES)
def test_the_choice(emulated, kind, rows, outputs, inputs, want):
    assert emulated.kernels.choose_tiles(kind, rows, outputs, inputs, 132) == want


def test_the_choice_asks_the_device(emulated):
    """60 tiles of 64 x 64 are one for each of 60 multiprocessors and two for each of 30."""
    choose = emulated.kernels.choose_tiles
    assert choose("bf16", 640, 384, 768, 60) == "medium"
    assert choose("bf16", 640, 384, 768, 15) == "large"


def test_the_table_of_tiles(cuda, table_of_tiles):
    """As gpu-check makes it."""
    found = table_of_tiles.compare(cuda.kernels, 132, (24, 80), (3, 40), repeats=1)
    assert list(found) == ["3 x 24 x 80", "40 x 24 x 80"]
    for row in found.values():
        assert row["chosen"] == "small" and row["best"] in ONE_PART and row["loses"] >= 0
