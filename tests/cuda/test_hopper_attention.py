"""Attention by wgmma: on the emulator, and on a GPU of compute capability 9.0."""

from __future__ import annotations

import numpy as np
import pytest

from bertrt.errors import DeviceError, InvalidInputError

LENGTHS = [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 384, 512]


@pytest.fixture(params=[32, 64])
def head_dim(request):
    return request.param


@pytest.fixture
def attend(hopper, half):
    """attend(qkv, lengths, heads, **more): the kernel's result, in half's bits."""

    def run(qkv, lengths, heads, **more):
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        scale = (qkv.shape[1] / 3 / heads) ** -0.5
        return hopper.kernels.attention(
            half.name, qkv, cu_seqlens, heads, scale, kernel="hopper", **more
        )

    return run


def require_close(products, half, found, values, lengths, heads, attended=None):
    cu_seqlens = products.offsets(lengths)
    scale = (values.shape[1] / 3 / heads) ** -0.5
    expected, bound = products.attend(half, values, cu_seqlens, heads, scale, attended)
    assert (np.abs(half.unpack(found) - expected) <= bound).all()


@pytest.mark.parametrize(
    ("heads", "lengths"),
    [
        (1, [1]),
        (1, [5, 64] * 10),  # one warpgroup has a head, and the ring goes round
        (2, [2, 0, 17, 1, 0]),  # both warpgroups have a head
        (3, [63, 64, 65]),  # the last head has no other beside it
        (2, [127, 0, 129, 5]),  # a second block of queries, of one alone
        (2, [400]),  # more stages than the ring has, of one stream of keys and of two
    ],
)
def test_attention(attend, products, rng, half, head_dim, heads, lengths):
    qkv, values = products.draw(rng, half, sum(lengths), 3 * heads * head_dim)
    found = attend(qkv, lengths, heads)
    require_close(products, half, found, values, lengths, heads)


def test_no_text_has_a_token(attend, half):
    assert attend(half.pack(np.zeros((0, 3 * 64))), [0, 0], 1).shape == (0, 64)
    assert attend(half.pack(np.zeros((0, 3 * 64))), [], 1).shape == (0, 64)


def test_scores_that_grow_and_shrink(attend, products, rng, half, head_dim):
    # The largest score is in the last block, and the sums before are scaled down; or in the first.
    tokens = 200
    _, values = products.draw(rng, half, tokens, 3 * head_dim)
    for growth in (np.linspace(0, 8, tokens), np.linspace(8, 0, tokens)):
        grown = values.copy()
        grown[:, head_dim : 2 * head_dim] *= growth[:, None]
        qkv = half.pack(grown)
        require_close(products, half, attend(qkv, [tokens], 1), half.unpack(qkv), [tokens], 1)


def test_reads_the_keys_that_are_attended_to(attend, products, rng, half, head_dim):
    lengths, heads = [70, 5, 0, 3, 66, 70, 40, 130], 2
    attended = np.array([65, 5, 0, 0, 1, 64, 32, 0], np.int32)
    cu_seqlens = products.offsets(lengths)
    _, values = products.draw(rng, half, sum(lengths), 3 * heads * head_dim)
    for s, keys in enumerate(attended):
        values[cu_seqlens[s] + keys : cu_seqlens[s + 1], heads * head_dim :] = np.nan
    qkv = half.pack(values)
    found = attend(qkv, lengths, heads, attended=attended)
    require_close(products, half, found, values, lengths, heads, attended)
    # Queries without keys have zeros, whatever they are.
    assert not found[75:78].any() and not found[-130:].any()


def test_first_tokens_have_the_bits_of_all(attend, products, rng, half, head_dim):
    lengths, heads = [3, 0, 70, 1, 200], 3
    hidden = heads * head_dim
    qkv, values = products.draw(rng, half, sum(lengths), 3 * hidden)
    whole = attend(qkv, lengths, heads)
    there = np.array(lengths) > 0
    first = np.where(there, products.offsets(lengths)[:-1], 0)
    values[:, :hidden] = np.nan  # queries in qkv itself are not read
    found = attend(half.pack(values), lengths, heads, first_queries=qkv[first, :hidden].copy())
    np.testing.assert_array_equal(found[there], whole[first[there]])
    assert not found[~there].any()


def test_a_text_has_the_same_bits_in_any_batch(attend, products, rng, half, head_dim):
    # Between texts of other lengths, whose keys and values are no numbers or infinite, at the
    # batch's beginning and end, and with a longest text that makes more items.
    heads = 2
    for length in LENGTHS:
        qkv, values = products.draw(rng, half, length, 3 * heads * head_dim)
        alone = attend(qkv, [length], heads)
        require_close(products, half, alone, values, [length], heads)
        for before, after in [([3], [70]), ([64, 0, 1], []), ([], [130, 2])]:
            beside = [np.full((sum(n), qkv.shape[1]), np.nan) for n in (before, after)]
            for rows in beside:
                rows[::2] = np.inf
            batch = np.concatenate([half.pack(beside[0]), qkv, half.pack(beside[1])])
            found = attend(batch, [*before, length, *after], heads)
            mine = slice(sum(before), sum(before) + length)
            np.testing.assert_array_equal(found[mine], alone)


def test_rows_of_one_batch_stand_alone(attend, products, rng, half, head_dim):
    lengths, heads = [129, 16, 64, 1, 65, 128, 17], 3
    cu_seqlens = products.offsets(lengths)
    qkv, _ = products.draw(rng, half, sum(lengths), 3 * heads * head_dim)
    whole = attend(qkv, lengths, heads)
    for s, length in enumerate(lengths):
        rows = slice(cu_seqlens[s], cu_seqlens[s + 1])
        np.testing.assert_array_equal(attend(qkv[rows], [length], heads), whole[rows])


def test_the_order_of_threads_does_not_show(emulated, attend, products, rng, half):
    lengths, heads = [150, 20, 64], 3
    qkv, _ = products.draw(rng, half, sum(lengths), 3 * heads * 32)
    results = []
    for backwards in (False, True):
        emulated.emulator.reset(backwards=backwards)
        results.append(attend(qkv, lengths, heads))
    np.testing.assert_array_equal(*results)


def test_what_it_does_not_take(hopper):
    cu_seqlens = np.array([0, 2], np.int32)
    fits = "fp16 or bf16, heads of 32 or 64 and no bias by distance"
    for name, head_dim, more in [
        ("fp32", 64, {}),
        ("fp16", 80, {}),
        ("bf16", 128, {}),
        ("fp16", 64, {"bias": np.zeros((1, 3), np.float32)}),
    ]:
        qkv = np.zeros((2, 3 * head_dim), np.float32 if name == "fp32" else np.uint16)
        with pytest.raises(DeviceError, match=fits):
            hopper.kernels.attention(name, qkv, cu_seqlens, 1, 0.1, kernel="hopper", **more)
    with pytest.raises(DeviceError, match=fits):  # the largest score would not be the largest
        hopper.kernels.attention(
            "fp16", np.zeros((2, 192), np.uint16), cu_seqlens, 1, -0.1, kernel="hopper"
        )


def test_seconds_of_attention(hopper, half):
    qkv = half.pack(np.ones((9, 96)))
    cu_seqlens = np.array([0, 4, 9], np.int32)
    for kernel in (None, "hopper"):
        found = hopper.kernels.attention_seconds(half.name, qkv, cu_seqlens, 1, 0.2, kernel, 2)
        assert found >= 0
    with pytest.raises(InvalidInputError, match="repeats must be above 0"):
        hopper.kernels.attention_seconds(half.name, qkv, cu_seqlens, 1, 0.2, repeats=0)
    with pytest.raises(InvalidInputError, match="kernel must be hopper"):
        hopper.kernels.attention_seconds(half.name, qkv, cu_seqlens, 1, 0.2, "mma")


# What the emulator says of a kernel that breaks a rule of products of registers, or of copies that
# threads make for wgmma.
FAULTS = {
    "no fence for wgmma": "for whose writer's fence and mbarrier it has not waited",
    "fence before the copies": "for whose writer's fence and mbarrier it has not waited",
    "no wait of the last writer": "for whose writer's fence and mbarrier it has not waited",
    "copies not waited for": "have not landed",
    "operand changes": "left operand changes while it reads it",
    "sums change": "sums change while it adds to them",
    "reuse without release": "a cp.async to where products read that have not been released",
    "reuse without wait for release": "a cp.async to where products read that have not been",
    "rows of another head": "another swizzle|not 1,024 bytes apart, or 512",
    "half a value": "values that are not whole rows|between two steps",
    "other order of products": "do different wgmma",
}


def test_keys_and_values_of_a_tile(emulated, rng, element_by_name):
    fp16 = element_by_name("fp16")
    tile = fp16.pack(rng.normal(size=(64, 64)))
    values = fp16.unpack(tile)
    found = emulated.probes.run_hopper_registers("nothing", tile)
    np.testing.assert_allclose(found[:64], values[:, :16] @ values[0, :16], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[64:], values[0, :16] @ values[:16], rtol=1e-5, atol=1e-5)
    assert sorted(emulated.probes.hopper_register_names()) == sorted([*FAULTS, "nothing"])


@pytest.mark.parametrize("name", FAULTS)
def test_the_emulator_finds_what_a_device_does_not_say(emulated, name):
    with pytest.raises(DeviceError, match=FAULTS[name]):
        emulated.probes.run_hopper_registers(name, np.ones((64, 64), np.uint16))
