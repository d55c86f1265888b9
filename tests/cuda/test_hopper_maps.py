"""The maps of Hopper's tiles, beside tables written from the PTX ISA's text."""

from __future__ import annotations

import itertools

import pytest


@pytest.fixture
def maps(emulated):
    return emulated.hopper


def test_swizzle_of_128_bytes(maps):
    # "Swizzling Modes", 128B: the chunks of 16 bytes of eight rows, as they stand in memory.
    table = ["01234567", "10325476", "23016745", "32107654"]
    table += ["45670123", "54761032", "67452301", "76543210"]
    for row, chunk in itertools.product(range(24), range(8)):
        at = maps.swizzled(row, chunk)
        assert at // 128 == row and at % 16 == 0
        assert table[row % 8][at // 16 % 8] == str(chunk)


def test_descriptor(maps):
    # "Matrix Descriptor Format": 13-0 address / 16, 29-16 leading offset / 16 (unused in a swizzled
    # K-major layout), 45-32 stride offset / 16, 51-49 base offset, 63-62 swizzle, 1 for 128 bytes.
    for address in (0, 1024, 1024 + 96, 0x38400):
        bits = maps.descriptor(address)
        assert (bits & 0x3FFF) << 4 == address
        assert (bits >> 32 & 0x3FFF) << 4 == 8 * 128
        assert bits >> 62 == 1
        assert bits & ~(0x3FFF | 0x3FFF << 16 | 0x3FFF << 32 | 3 << 62) == 0


def test_sums_of_a_warpgroup(maps):
    # "wgmma.mma_async.m64nNk16", the figure of D: warps take 16 rows each, and within a warp T0 has
    # (0, 0), (0, 1), (8, 0), (8, 1), (0, 8), ...; T1 (0, 2); T4 (1, 0); T31 (7, 6).
    first = [maps.sum_place(0, i) for i in range(6)]
    assert first == [(0, 0), (0, 1), (8, 0), (8, 1), (0, 8), (0, 9)]
    assert maps.sum_place(1, 0) == (0, 2)
    assert maps.sum_place(4, 0) == (1, 0)
    assert maps.sum_place(31, 0) == (7, 6)
    assert maps.sum_place(32, 2) == (24, 0)
    assert maps.sum_place(127, 63) == (63, 127)
    everywhere = {maps.sum_place(t, i) for t in range(128) for i in range(64)}
    assert everywhere == set(itertools.product(range(64), range(128)))


@pytest.mark.parametrize(("down", "across"), [(1, 1), (3, 5), (8, 6), (9, 6), (33, 24)])
def test_each_tile_has_its_turn(maps, down, across):
    places = [maps.tile_place(tile, down, across) for tile in range(down * across)]
    assert sorted(places) == list(itertools.product(range(down), range(across)))
    # Neighbours in time share their columns, within a band of eight tiles down.
    for tile, (row, column) in enumerate(places[: min(8, down)]):
        assert (row, column) == (tile, 0)


@pytest.mark.parametrize(
    ("down", "outputs", "wide"),
    [
        (1, 768, False),  # six tiles, or three, for 132 multiprocessors
        (1, 3072, False),
        (11, 1536, False),  # one turn of 132 narrow tiles
        (12, 1536, True),  # two turns of narrow ones, one of 72 wide
        (128, 768, True),  # 768 or 384: six turns, or three
        (128, 3072, True),
        (128, 128, False),  # nothing in its second half
    ],
)
def test_wide_tiles_where_no_block_has_more_to_do(maps, down, outputs, wide):
    assert maps.wide_tiles(down, outputs, 132) is wide


@pytest.mark.parametrize(
    ("down", "across", "shared"),
    [
        (1, 140, False),  # there is no other below
        (12, 6, True),
        (33, 12, False),  # 396 tiles, three turns; 204 pairs in 66 clusters, four
        (128, 3, True),
        (129, 3, True),  # 387, three turns; 195 pairs, three
        (11, 12, False),  # one turn of 132; 72 pairs are two
    ],
)
def test_weights_are_shared_where_no_block_has_more_to_do(maps, down, across, shared):
    assert maps.shared_weights(down, across, 132) is shared
    assert not maps.shared_weights(down, across, 1)


@pytest.mark.parametrize(
    ("tiles", "inputs", "clusters"),
    [
        (6, 3072, True),  # BERT base, up to 128 rows: 12 steps for 48
        (8, 4096, True),
        (66, 3072, True),  # two turns of 33 clusters: 24 steps for 48, and 16 for the exchange
        (67, 3072, False),  # three: 36 and 24
        (133, 3072, False),  # five: 60 and 40, for 96 of two turns of blocks
        (133, 4096, True),  # 80 and 40 for 128
        (768, 3072, False),  # 16,384 rows
        (6, 2049, True),  # nine steps and eight for 33
    ],
)
def test_clusters_where_they_have_fewer_steps_in_turn(maps, tiles, inputs, clusters):
    assert maps.parts_in_clusters(tiles, inputs, 132) is clusters


def test_no_clusters_where_none_fits(maps):
    assert [maps.parts_in_clusters(1, 3072, count) for count in (2, 3, 4)] == [False, False, True]


def test_phases_of_the_ring(maps):
    # "mbarrier.test_wait": a wait for a parity ends when the phase of that parity has; a barrier
    # begins in phase 0, and the one before, of parity 1, counts as over.
    assert [maps.ring_place(step, 3) for step in range(7)] == [
        *[(0, 0, 1), (1, 0, 1), (2, 0, 1)],
        *[(0, 1, 0), (1, 1, 0), (2, 1, 0)],
        (0, 0, 1),
    ]


def test_swizzles_of_heads(maps):
    for row, chunk in itertools.product(range(24), range(8)):
        assert maps.head_swizzled(128, row, chunk) == maps.swizzled(row, chunk)
    # "Swizzling Modes", 64B: two rows in 128 bytes, and the pattern of 32 bytes of them.
    table = ["0123", "0123", "1032", "1032", "2301", "2301", "3210", "3210"]
    for row, chunk in itertools.product(range(24), range(4)):
        at = maps.head_swizzled(64, row, chunk)
        assert at // 64 == row and at % 16 == 0
        assert table[row % 8][at // 16 % 4] == str(chunk)


def test_descriptors_of_heads(maps):
    for row_bytes, mode in ((128, 1), (64, 2)):
        for address in (0, 1024, 1024 + 32, 0x1F000 + 16 * row_bytes):
            bits = maps.head_descriptor(row_bytes, address)
            assert (bits & 0x3FFF) << 4 == address
            assert (bits >> 32 & 0x3FFF) << 4 == 8 * row_bytes
            assert bits >> 62 == mode
            assert bits & ~(0x3FFF | 0x3FFF << 16 | 0x3FFF << 32 | 3 << 62) == 0
    assert maps.head_descriptor(128, 1024) == maps.descriptor(1024)


def test_left_operands_in_registers(maps):
    # "wgmma.mma_async.m64nNk16", the figure of A: T0 has (0, 0), (8, 0), (0, 8) and (8, 8), each
    # with the one behind it.
    assert [maps.left_place(0, i, 0) for i in range(4)] == [(0, 0), (8, 0), (0, 8), (8, 8)]
    assert maps.left_place(0, 0, 1) == (0, 1)
    assert maps.left_place(1, 0, 0) == (0, 2)
    assert maps.left_place(31, 3, 1) == (15, 15)
    assert maps.left_place(32, 0, 0) == (16, 0)
    everywhere = {
        maps.left_place(t, i, half) for t in range(128) for i in range(4) for half in range(2)
    }
    assert everywhere == set(itertools.product(range(64), range(16)))
    # Sums of 64 keys become four such operands, of 16 keys each, without leaving their thread.
    for t, step, i, half in itertools.product(range(128), range(4), range(4), range(2)):
        row, key = maps.sum_place(t, 8 * step + 2 * i + half)
        assert maps.left_place(t, i, half) == (row, key - 16 * step)


@pytest.mark.parametrize(("items", "blocks"), [(1, 1), (240, 132), (42, 41), (5, 7)])
def test_each_item_has_its_turn(maps, items, blocks):
    rounds = range(-(-items // blocks))
    turns = [[maps.item_of(b, r, blocks) for b in range(blocks)] for r in rounds]
    assert sorted(itertools.chain(*turns)) == list(range(len(rounds) * blocks))
    # Of any two rounds, one after the other, a block has items of odd and of even numbers.
    if blocks % 2 == 0:
        for before, after in itertools.pairwise(turns):
            assert all((b - a) % 2 for a, b in zip(before[:-1], after[:-1], strict=True))


@pytest.mark.parametrize("heads", [1, 2, 3, 12])
@pytest.mark.parametrize("longest", [1, 64, 65, 128, 129, 512])
def test_each_query_has_one_warpgroup(maps, heads, longest):
    lengths = sorted({0, 1, 63, 64, longest - 1, longest, longest // 2 + 1})
    lengths = [length for length in lengths if length <= longest]
    found = []
    for item in range(len(lengths) * maps.items_of_text(heads, longest)):
        seq, head, first = maps.item_place(heads, longest, item)
        left = lengths[seq] - first
        shares = [maps.share_of(group, left, head, heads) for group in range(2)]
        assert shares[0][0] == shares[1][0]  # the streams that are copied
        for streams, stream, skipped, queries in shares:
            assert 0 <= queries <= 64
            assert stream < max(streams, 1)
            found += [(seq, head + stream, first + skipped + q) for q in range(queries)]
        if shares[0][0] == 2:
            assert all(share[3] for share in shares)
        if longest <= 64 and lengths[seq]:
            assert shares[0][0]  # no item is empty
    assert sorted(found) == [
        (seq, head, query)
        for seq, length in enumerate(lengths)
        for head in range(heads)
        for query in range(length)
    ]
