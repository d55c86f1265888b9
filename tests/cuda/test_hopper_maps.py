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


def test_phases_of_the_ring(maps):
    # "mbarrier.test_wait": a wait for a parity ends when the phase of that parity has; a barrier
    # begins in phase 0, and the one before, of parity 1, counts as over.
    assert [maps.ring_place(step, 3) for step in range(7)] == [
        *[(0, 0, 1), (1, 0, 1), (2, 0, 1)],
        *[(0, 1, 0), (1, 1, 0), (2, 1, 0)],
        (0, 0, 1),
    ]
