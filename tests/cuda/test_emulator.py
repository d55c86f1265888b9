"""The emulator itself: what is right runs, and each rule that a kernel can break is found."""

from __future__ import annotations

import numpy as np
import pytest

from bertrt.errors import DeviceError

pytestmark = pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])

X = np.linspace(-4, 4, 64, dtype=np.float32)

RIGHT = {
    "neighbour": np.roll(X, -1),
    "neighbour_in_warp": X.reshape(32, 2)[:, ::-1].ravel(),
    "pipeline": X.reshape(4, 16)[:, ::-1].ravel(),
    "zero_fill": np.where(np.arange(64) < 60, X, 0),
}

# By both orders of the threads: in one of them a race may look like a read of what nobody wrote.
RACE = r"(which (thread \d+|other threads) ha(s|ve) (written|read) with no barrier between|"
RACE += r"to which nothing has been written)"
ON_ITS_WAY = r"to which a cp.async of thread \d+ is on its way"
WRONG = {
    "barrier_of_some": "divergence: threads 0 to 31 wait at the barrier .*, "
    "threads 32 to 63 have ended",
    "two_barriers": "divergence: thread .* is at the barrier probes.cu:.*, thread .* at the one of",
    "shuffle_of_some": "divergence: .* wait at shuffle probes.cu:.* have ended",
    "two_sums": "divergence: thread .* is at shuffle probes.cu:.*, others of its warp at shuffle",
    "no_barrier": RACE,
    "no_barrier_in_warp": RACE,
    "barrier_of_warp_only": RACE,
    "overwritten": RACE,
    "both_write": r"writes byte .* which thread \d+ has written with no barrier between",
    "unwritten": "thread 5 reads byte 20 of shared memory, to which nothing has been written",
    "no_wait": ON_ITS_WAY,
    "waits_for_too_few": ON_ITS_WAY,
    "no_commit": ON_ITS_WAY,
    "waits_without_barrier": RACE,
    "never_waits": "a cp.async that nobody has waited for",
    "cp_async_unaligned": "must be a multiple of 16",
    "reads_past_end": "thread 63 reads .* which is no device memory in use",
    "reads_before_begin": "thread 0 reads .* which is no device memory in use",
    "writes_past_end": "thread 63 writes .* which is no device memory in use",
    "reads_unwritten_global": r"thread \d+ reads at .*, to which nothing has been written",
    "copies_unwritten_global": r"thread \d+ reads at .*, to which nothing has been written",
    "writes_past_shared": "past the end of shared memory",
    "reads_unaligned": "must be a multiple of 16",
}


@pytest.fixture
def probes(emulated, backwards):
    emulated.emulator.reset(backwards=backwards)
    return emulated.probes


def test_every_probe_is_tested(probes):
    assert set(probes.names()) == {*RIGHT, *WRONG, "sums"}


@pytest.mark.parametrize("name", RIGHT)
def test_right(probes, name):
    np.testing.assert_array_equal(probes.run(name, X), RIGHT[name])


def test_sums_of_a_warp_have_the_same_bits_in_every_lane(probes):
    found = probes.run("sums", X)
    expected = X[:32].copy()
    while len(expected) > 1:
        expected = expected[: len(expected) // 2] + expected[len(expected) // 2 :]
    np.testing.assert_array_equal(found[:32], np.full(32, expected[0]))
    np.testing.assert_array_equal(found[32:], np.full(32, X.max()))


@pytest.mark.parametrize("name", WRONG)
def test_wrong(emulated, probes, name):
    with pytest.raises(DeviceError, match=WRONG[name]):
        probes.run(name, X)
    # As on a device, nothing works from there on.
    with pytest.raises(DeviceError, match=WRONG[name]):
        probes.run("neighbour", X)
    emulated.emulator.reset()
    np.testing.assert_array_equal(probes.run("neighbour", X), RIGHT["neighbour"])
    assert emulated.emulator.bytes_in_use() == 0


@pytest.mark.parametrize("name", ["waits", "reads_and_waits", "copies_and_waits"])
def test_a_kernel_that_overlaps_the_one_before_reads_weights_at_once(probes, name):
    np.testing.assert_array_equal(probes.run_overlapping(name, X, weights=True), X)
    np.testing.assert_array_equal(probes.run_overlapping("waits", X), X)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("some_wait", "thread 40 ends and has not waited for the kernels before"),
        ("writes_and_waits", "writes at .* has not waited for the kernels before"),
        ("reads_and_waits", "reads at .* has not waited for the kernels before"),
        ("copies_and_waits", "reads at .* has not waited for the kernels before"),
    ],
)
def test_a_kernel_that_does_not_wait_for_the_one_before(probes, name, reason):
    with pytest.raises(DeviceError, match=reason):
        probes.run_overlapping(name, X)


@pytest.mark.parametrize(
    ("memory", "reason"),
    [
        ("host", "which is no device memory in use"),
        ("freed", "which is no device memory in use"),
        ("another", "the memory of device 0"),
    ],
)
def test_memory_that_is_not_the_kernels(probes, memory, reason):
    with pytest.raises(DeviceError, match=reason):
        probes.run_misplaced("neighbour", X, memory)


def test_a_copy_past_the_end(probes):
    with pytest.raises(DeviceError, match="cudaErrorInvalidValue"):
        probes.copy_too_much(X)


def test_a_copy_of_what_nobody_has_written(emulated, probes):
    probes.copy_back(bytes=24, written=24)
    with pytest.raises(DeviceError, match="a copy of 24 bytes to the host reads byte 17, to"):
        probes.copy_back(bytes=24, written=17)
    emulated.emulator.reset()
    assert emulated.emulator.bytes_in_use() == 0


def test_a_stream_runs_when_it_is_waited_for(probes):
    before, after = probes.run_in_stream("neighbour", X)
    assert np.isnan(before).all()
    np.testing.assert_array_equal(after, RIGHT["neighbour"])


def test_out_of_memory_is_an_error_and_no_more(emulated, backwards):
    emulated.emulator.reset(memory_bytes=1 << 10, backwards=backwards)
    with pytest.raises(DeviceError, match=r"out of device memory: 0\.0 MiB were asked for"):
        emulated.probes.run("neighbour", np.zeros(1024, np.float32))
    np.testing.assert_array_equal(emulated.probes.run("neighbour", X), RIGHT["neighbour"])
    assert emulated.emulator.bytes_in_use() == 0


@pytest.mark.parametrize(
    ("blocks", "threads", "shared_bytes"),
    [(0, 32, 0), (1, 0, 0), (1, 33, 0), (1, 1056, 0), (1, 32, 227 * 1024 + 1), (2**31, 32, 0)],
)
def test_what_no_device_starts(probes, blocks, threads, shared_bytes):
    with pytest.raises(DeviceError, match="cannot run: cudaErrorInvalidConfiguration"):
        probes.start(blocks, threads, shared_bytes)
    probes.start(2, 1024, 227 * 1024)


@pytest.mark.parametrize(("blocks", "cluster"), [(9, 9), (16, 16), (6, 4), (1, 2), (4, 0)])
def test_clusters_that_no_device_starts(probes, blocks, cluster):
    with pytest.raises(DeviceError, match="cannot run: cudaErrorInvalidClusterSize"):
        probes.start(blocks, 32, 0, cluster)
    probes.start(8, 1024, 227 * 1024, 8)


# By both orders again: who reads may come before who writes, or ends, and after.
CLUSTER_RACE = r"thread \d+ reads byte \d+ of another block's shared memory, (which its "
CLUSTER_RACE += r"thread \d+ has written with no barrier of the cluster between|"
CLUSTER_RACE += "to which nothing has been written)"
WRONG_IN_CLUSTERS = {
    "no barrier": CLUSTER_RACE,
    "a block's barrier": CLUSTER_RACE,
    "a barrier of some": r"threads 0 to 32 of block 2 wait at the cluster's barrier .*, "
    "threads 33 to 33 of block 2 have ended",
    "a barrier of one block": "threads 0 to 63 of block 0 have ended, threads 0 to 63 of block 1 "
    "wait at the cluster's barrier",
    "no barrier at the end": "(the block ends, and another has reached its shared memory with no "
    r"barrier of the cluster between|reaches for block \d of its cluster, which has ended)",
    "a reader is late": r"thread \d+ reaches for block 0 of its cluster, which has ended",
    "overwritten": r"(writes byte \d+ of shared memory, which block \d of the cluster has read "
    "with no barrier of the cluster between|which its thread .* has written with no barrier of)",
    "unwritten": "reads byte 20 of another block's shared memory, to which nothing has been "
    "written",
    "no such rank": "reaches for block 4 of a cluster of 4",
    "unaligned": "must be a multiple of 16",
    "past the end": "past the end of shared memory",
    "not shared": "which is not shared memory",
}


def test_blocks_of_a_cluster_read_each_other(probes, rng):
    x = rng.normal(size=512).astype(np.float32)
    found = probes.run_cluster("nothing", x)
    np.testing.assert_array_equal(found.reshape(2, 4, 64), np.roll(x.reshape(2, 4, 64), -1, axis=1))
    assert set(probes.cluster_names()) == {"nothing", *WRONG_IN_CLUSTERS}


@pytest.mark.parametrize("name", WRONG_IN_CLUSTERS)
def test_wrong_in_clusters(emulated, probes, name):
    x = np.arange(512, dtype=np.float32)
    with pytest.raises(DeviceError, match=WRONG_IN_CLUSTERS[name]):
        probes.run_cluster(name, x)
    emulated.emulator.reset()
    probes.run_cluster("nothing", x)


@pytest.mark.parametrize("transposed", [False, True], ids=["ldmatrix", "ldmatrix.trans"])
@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_product(probes, element_by_name, name, transposed, rng):
    # Small integers: every product and sum is exact, so that a wrong place in a fragment shows.
    element = element_by_name(name)
    a, b = rng.integers(-8, 9, (16, 16)), rng.integers(-8, 9, (8, 16))
    sums = rng.integers(-100, 101, (16, 8)).astype(np.float32)
    given = np.ascontiguousarray(b.T) if transposed else b
    found = probes.product(name, element.pack(a), element.pack(given), sums)
    np.testing.assert_array_equal(found, sums + a @ b.T)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_conversions(probes, element_by_name, name, rng):
    element = element_by_name(name)
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = element.unpack(bits)
    np.testing.assert_array_equal(probes.widen(name, bits)[0], wide)
    finite = np.sort(wide[np.isfinite(wide)])
    with np.errstate(over="ignore"):
        x = np.concatenate(
            [
                finite,
                (finite[1:].astype(np.float64) + finite[:-1]) / 2,  # ties
                rng.normal(size=10_000) * 10.0 ** rng.uniform(-44, 38, 10_000),
                [np.inf, -np.inf, 65519.99, 65520, 1e-30, -0.0],
            ]
        ).astype(np.float32)
        expected = element.pack(x)
    np.testing.assert_array_equal(probes.narrow(name, x)[0], expected)
    assert np.isnan(element.unpack(probes.narrow(name, np.array([np.nan], np.float32)))).all()
