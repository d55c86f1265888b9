"""Products by TMA and wgmma: on the emulator, and on a GPU of compute capability 9.0.

Only small shapes: the emulator runs 384 threads a block, and a tile is 128 x 128 x 64."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

from bertrt import _native
from bertrt.errors import DeviceError, InvalidInputError

EPS = float(np.finfo(np.float32).eps)


def draw(rng, half, *shape):
    packed = half.pack(rng.normal(size=shape))
    return packed, half.unpack(packed)


@pytest.mark.parametrize(
    ("rows", "columns", "depth", "activation"),
    [
        (1, 1, 1, "none"),  # all of it zeros beyond
        (3, 7, 70, "relu"),  # a step and six inputs
        (258, 136, 72, "gelu_erf"),  # three tiles down, two across, by two blocks
        (65, 40, 328, "gelu_tanh"),  # more steps than stages
        (9, 129, 64, "tanh"),  # a column in a tile of its own
        (130, 136, 72, "gelu_erf"),  # wide tiles, eight columns in their second halves
        (130, 388, 72, "relu"),  # the same, and more across
    ],
)
def test_products(hopper, rng, half, rows, columns, depth, activation):
    compare_with_double_precision(hopper, rng, half, rows, columns, depth, activation)


def compare_with_double_precision(hopper, rng, half, rows, columns, depth, activation):
    x, x_values = draw(rng, half, rows, depth)
    weight, weight_values = draw(rng, half, columns, depth)
    bias = rng.normal(size=columns).astype(np.float32)
    residual, residual_values = draw(rng, half, rows, columns)
    found = half.unpack(
        hopper.kernels.linear(
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


def test_a_row_has_the_same_bits_in_any_batch(hopper, rng, half):
    x, _ = draw(rng, half, 300, 136)
    weight, _ = draw(rng, half, 24, 136)
    residual, _ = draw(rng, half, 300, 24)

    def product(rows):
        return hopper.kernels.linear(
            half.name, x[rows], weight, None, "gelu_erf", residual[rows], tiles="hopper"
        )

    whole = product(slice(0, 300))
    for count in (1, 2, 15, 16, 17, 127, 128, 129):
        np.testing.assert_array_equal(product(slice(0, count)), whole[:count])
    np.testing.assert_array_equal(product(slice(131, 150)), whole[131:150])


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_wide_tiles_that_share_their_weights(emulated, rng, half, backwards):
    """Two, three and eight tiles down: the same bits as alone, and as in narrow tiles."""
    x, _ = draw(rng, half, 1000, 136)
    weight, _ = draw(rng, half, 512, 136)
    bias = rng.normal(size=512).astype(np.float32)
    residual, _ = draw(rng, half, 1000, 512)

    def product(rows, outputs, multiprocessors, wide, shared):
        emulated.emulator.reset(backwards=backwards, multiprocessors=multiprocessors)
        down, across = -(-rows // 128), -(-outputs // 256)
        assert emulated.hopper.wide_tiles(down, outputs, multiprocessors) is wide
        if wide:
            assert emulated.hopper.shared_weights(down, across, multiprocessors) is shared
        return emulated.kernels.linear(
            *(half.name, x[:rows], weight[:outputs], bias[:outputs], "gelu_erf"),
            np.ascontiguousarray(residual[:rows, :outputs]),
            tiles="hopper",
        )

    whole = product(1000, 512, 4, True, True)
    blocks = emulated.kernels.linear(
        *(half.name, x, weight, bias, "gelu_erf", residual), tiles="hopper blocks"
    )
    np.testing.assert_array_equal(blocks, whole)
    for rows, outputs, multiprocessors, wide, shared in (
        (130, 256, 2, True, True),
        (300, 256, 4, True, True),  # three tiles down: nothing comes of a fourth
        (300, 512, 2, True, False),  # which would be another turn
        (100, 512, 2, True, False),  # one down
        (300, 256, 2, False, False),
    ):
        found = product(rows, outputs, multiprocessors, wide, shared)
        np.testing.assert_array_equal(found, whole[:rows, :outputs])


def test_a_row_has_the_same_bits_in_wide_tiles(emulated, rng, half):
    counts = {1: False, 128: False, 129: True, 257: False, 400: True}
    for count, wide in counts.items():
        assert emulated.hopper.wide_tiles((count + 127) // 128, 256, 2) is wide
    x, _ = draw(rng, half, max(counts), 72)
    weight, _ = draw(rng, half, 256, 72)
    bias = rng.normal(size=256).astype(np.float32)
    results = {
        count: emulated.kernels.linear(half.name, x[:count], weight, bias, tiles="hopper")
        for count in counts
    }
    for count, found in results.items():
        np.testing.assert_array_equal(found, results[400][:count])


@pytest.fixture(params=[2, 64], ids=["a block", "a cluster"])
def walked(request, hopper):
    """Where a block walks all parts of a deep layer, or each block of a cluster one of them."""
    if hasattr(hopper, "emulator"):
        hopper.emulator.reset(multiprocessors=request.param)
        for tiles in (1, 8):
            in_clusters = hopper.hopper.parts_in_clusters(tiles, 2048, request.param)
            assert in_clusters is (request.param == 64)
    elif request.param == 2:
        pytest.skip("a GPU has the multiprocessors that it has")
    return hopper


@pytest.mark.parametrize(
    ("rows", "columns", "depth", "activation"),
    [
        (1, 1, 2048, "none"),
        (3, 7, 2050, "relu"),  # 33 steps, the last of two inputs
        (130, 136, 2168, "gelu_erf"),  # parts of eight and nine steps; four tiles
        (17, 9, 3072, "gelu_tanh"),
        (65, 40, 2047, "tanh"),  # one part
    ],
)
def test_deep_layers(walked, rng, half, rows, columns, depth, activation):
    compare_with_double_precision(walked, rng, half, rows, columns, depth, activation)


def test_parts_are_added_in_their_order(walked, half):
    # A part's sum is 2**26, which takes a one beside it in, or one: by its first input, or its
    # second.
    big = 2.0**26
    sums = np.array(list(itertools.product((-big, -1.0, 1.0, big), repeat=4)), np.float32)

    def added(sums, order):
        return functools.reduce(np.add, (sums[:, part] for part in order))

    sums = sums[np.abs(added(sums, range(4))) <= 4]
    for order in itertools.permutations(range(4)):
        same = (added(sums, order) == added(sums, range(4))).all()
        assert same == (order[2:] == (2, 3))
    assert (added(sums, [0, 1]) + added(sums, [2, 3]) != added(sums, range(4))).any()
    x = np.zeros((len(sums), 3072), np.float32)
    firsts = np.array([0, 768, 1536, 2304])
    large = np.abs(sums) > 1
    x[:, firsts] = np.where(large, sums / 2**13, 0)
    x[:, firsts + 1] = np.where(large, 0, sums)
    weight = np.zeros((3, 3072), np.float32)
    weight[1, firsts], weight[1, firsts + 1] = 2.0**13, 1.0
    found = walked.kernels.linear(half.name, half.pack(x), half.pack(weight), tiles="hopper")
    np.testing.assert_array_equal(half.unpack(found)[:, 1], added(sums, range(4)))


@pytest.mark.parametrize("activation", ["none", "relu", "gelu_erf", "gelu_tanh", "tanh"])
def test_a_block_and_a_cluster_make_the_same_bits(emulated, rng, half, activation):
    x, _ = draw(rng, half, 5, 2056)
    weight, _ = draw(rng, half, 13, 2056)
    bias = rng.normal(size=13).astype(np.float32)
    residual, _ = draw(rng, half, 5, 13)
    into, _ = draw(rng, half, 5, 30)
    results = []
    for multiprocessors in (2, 4):  # none, or one cluster
        emulated.emulator.reset(multiprocessors=multiprocessors)
        assert emulated.hopper.parts_in_clusters(1, 2056, multiprocessors) is (multiprocessors == 4)
        results.append(
            [
                emulated.kernels.linear(
                    *(half.name, x, weight, some_bias, activation, more),
                    **({"into": into, "first_column": first} if first else {}),
                    tiles="hopper",
                )
                for some_bias, more, first in itertools.product(
                    (None, bias), (None, residual), (0, 8, 13)
                )
            ]
        )
    for by_block, by_cluster in zip(*results, strict=True):
        np.testing.assert_array_equal(by_block, by_cluster)


def test_a_deep_layer_s_row_has_the_same_bits_in_any_batch(emulated, rng, half):
    x, _ = draw(rng, half, 1000, 2056)
    weight, _ = draw(rng, half, 24, 2056)
    bias = rng.normal(size=24).astype(np.float32)

    def product(rows, multiprocessors):
        emulated.emulator.reset(multiprocessors=multiprocessors)
        return emulated.kernels.linear(half.name, x[rows], weight, bias, tiles="hopper")

    whole = product(slice(0, 1000), 2)
    for count in (1, 2, 15, 16, 17, 127, 128, 129, 300, 1000):
        tiles = -(-count // 128)
        assert emulated.hopper.parts_in_clusters(tiles, 2056, 32)
        np.testing.assert_array_equal(product(slice(0, count), 32), whole[:count])
    np.testing.assert_array_equal(product(slice(131, 150), 32), whole[131:150])
    np.testing.assert_array_equal(product(slice(131, 150), 2), whole[131:150])


@pytest.mark.parametrize("multiprocessors", [2, 8])
def test_the_order_of_a_cluster_s_threads_does_not_show(emulated, rng, half, multiprocessors):
    x, _ = draw(rng, half, 131, 2048)
    weight, _ = draw(rng, half, 9, 2048)
    results = []
    for backwards in (False, True):
        emulated.emulator.reset(backwards=backwards, multiprocessors=multiprocessors)
        results.append(emulated.kernels.linear(half.name, x, weight, tiles="hopper"))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(("columns", "depth"), [(768, 3072), (3072, 768)])
def test_a_row_has_the_same_bits_at_sizes_of_models(hopper, rng, columns, depth, element_by_name):
    if hasattr(hopper, "emulator"):
        pytest.skip("the emulator takes an hour for as many rows")
    bf16 = element_by_name("bf16")
    counts = [1, 2, 15, 16, 17, 127, 128, 129, 1000, 20000]
    x, _ = draw(rng, bf16, counts[-1], depth)
    weight, _ = draw(rng, bf16, columns, depth)
    whole = hopper.kernels.linear("bf16", x, weight, tiles="hopper")
    for count, tiles in itertools.product(counts, ("hopper", "hopper blocks")):
        found = hopper.kernels.linear("bf16", x[:count], weight, tiles=tiles)
        np.testing.assert_array_equal(found, whole[:count])


def test_into_columns_of_wider_rows(hopper, rng, half):
    x, _ = draw(rng, half, 37, 24)
    weight, _ = draw(rng, half, 45, 24)
    into, _ = draw(rng, half, 37, 70)
    alone = hopper.kernels.linear(half.name, x, weight, tiles="hopper")
    for first in (8, 13):
        found = hopper.kernels.linear(
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


def test_seconds_of_a_product(hopper, half):
    ones = half.pack(np.ones((9, 72)))
    for tiles in (None, "hopper", "hopper blocks"):
        assert hopper.kernels.linear_seconds(half.name, ones, ones, tiles, repeats=2) >= 0
    with pytest.raises(InvalidInputError, match="repeats must be above 0"):
        hopper.kernels.linear_seconds(half.name, ones, ones, repeats=0)


def test_not_in_fp32(hopper):
    ones = np.ones((1, 8), np.float32)
    with pytest.raises(DeviceError, match="fp16 and bf16 only"):
        hopper.kernels.linear("fp32", ones, ones, tiles="hopper")


# What the emulator says of a kernel that breaks a rule of TMA, mbarriers or wgmma.
FAULTS = {
    "fewer bytes": "expects 16368 bytes and gets 16384",
    "more bytes": "wait for an mbarrier",
    "no init": "no mbarrier has been initialised there",
    "init again": "is initialised again",
    "no wait for the tile": "for whose mbarrier it has not waited",
    "no wait of one thread": "thread 77: a wgmma of bytes for whose mbarrier it has not waited",
    "tile misplaced": "must be a multiple of 1024",
    "step misplaced": "between two steps of the depth",
    "other swizzle": "of another swizzle",
    "other stride": "are not 1,024 bytes apart",
    "no fence": "without a wgmma.fence",
    "no commit": "belongs to no group",
    "no wait for the product": "that have not been released",
    "other products": "do different wgmma",
    "reuse without release": "that have not been released",
    "reuse without wait for release": "that have not been released",
    "release before the product": "that have not been released",
    "too many arrivals": "gets more arrivals",
    "two copies": "have not landed",
    "never arrives": "wait for an mbarrier",
}


def test_a_tile_and_its_product(emulated, rng, element_by_name):
    fp16 = element_by_name("fp16")
    tile, values = draw(rng, fp16, 128, 64)
    found = emulated.probes.run_hopper("nothing", tile)
    np.testing.assert_allclose(found, values[:, :16] @ values[0, :16], rtol=1e-5, atol=1e-5)
    assert sorted(emulated.probes.hopper_names()) == sorted([*FAULTS, "nothing"])


@pytest.mark.parametrize("name", FAULTS)
def test_the_emulator_finds_what_a_device_does_not_say(emulated, name):
    with pytest.raises(DeviceError, match=FAULTS[name]):
        emulated.probes.run_hopper(name, np.zeros((128, 64), np.uint16))


# Of two blocks that copy to each other. By either order of the threads, some.
SHARED_FAULTS = {
    "no barrier behind init": "(no mbarrier has been initialised there|an mbarrier of another "
    "block with no barrier of the cluster behind its initialisation)",
    "own bytes only": "a wgmma of bytes that have not landed",
    "to one too many": "reaches for block 2 of a cluster of 2",
    "release to oneself": "wait for an mbarrier",
    "wait for oneself": "a copy by TMA to where products read that have not been released",
    "release to one too many": "reaches for block 2 of a cluster of 2",
    "no barrier at the end": "(the block ends, and another has reached its shared memory|"
    "reaches for block . of its cluster, which has ended)",
}


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_blocks_that_share_a_tile(emulated, rng, element_by_name, backwards):
    emulated.emulator.reset(backwards=backwards)
    tile, values = draw(rng, element_by_name("fp16"), 128, 64)
    found = emulated.probes.run_multicast("nothing", tile)
    np.testing.assert_allclose(found, values[:, :16] @ values[0, :16], rtol=1e-5, atol=1e-5)
    assert sorted(emulated.probes.multicast_names()) == sorted([*SHARED_FAULTS, "nothing"])


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("name", SHARED_FAULTS)
def test_the_emulator_finds_what_blocks_do_to_each_other(emulated, name, backwards):
    emulated.emulator.reset(backwards=backwards)
    with pytest.raises(DeviceError, match=SHARED_FAULTS[name]):
        emulated.probes.run_multicast(name, np.zeros((128, 64), np.uint16))
