"""By CUDA graphs, in several streams, with two parts under way: always the same bits."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

from bertrt import DeviceError

OUTPUTS = ["sequence_output", "pooled_output", "masked_lm_outputs"]
PRECISIONS = ["fp32", "fp16", "bf16"]
# A workspace keeps so many shapes, an engine so many workspaces.
SHAPES, WORKSPACES = 48, 8


def engine_of(cuda: Any, made: Any, precision: str = "fp16", **options: Any) -> Any:
    return cuda.Engine(cuda.Model(*made, precision, 0), **options)


def grown(engine: Any, handmade: Any, rng: np.random.Generator) -> Any:
    """An engine that has the memory that a test's batches need: growing makes graphs anew."""
    engine.run(*handmade.batch_of(rng, [60, 40]), OUTPUTS)
    return engine


def plainly(cuda: Any, made: Any, batches: list[Any], precision: str = "fp16") -> list[Any]:
    """What batches give without graphs, each launch made for exactly their sizes."""
    engine = engine_of(cuda, made, precision, graphs=False)
    found = [engine.run(*batch, OUTPUTS) for batch in batches]
    assert engine.launches()["by_graph"] == engine.launches()["captured"] == 0
    return found


def assert_same(found: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert found.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(found[name], want[name], name)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_graph_gives_the_bits_of_plain_launches(cuda, made, handmade, rng, precision):
    batches = [handmade.batch_of(rng, lengths) for lengths in ([9], [3, 20, 1], [6] * 5)]
    want = plainly(cuda, made, batches, precision)
    engine = grown(engine_of(cuda, made, precision), handmade, rng)
    for round_ in range(3):
        for batch, expected in zip(batches, want, strict=True):
            assert_same(engine.run(*batch, OUTPUTS), expected)
        done = engine.launches()
        # The first part of a bucket is launched step by step, the second is captured.
        assert (done["captured"], done["by_graph"]) == (
            min(round_, 1) * len(batches),
            round_ * len(batches),
        )
    assert engine.launches()["no_graphs"] == ""


@pytest.mark.parametrize("edge", [16, 32, 64])
def test_at_the_edges_of_buckets(cuda, made, handmade, rng, edge):
    """One graph serves all numbers of tokens up to the edge, and one more has another."""
    engine = grown(engine_of(cuda, made), handmade, rng)
    # In sequences of at most 60 tokens, which the model has positions for.
    sizes = [edge - 1, edge, edge + 1]
    batches = [handmade.batch_of(rng, [size // 2, size - size // 2]) for size in sizes]
    want = plainly(cuda, made, batches)
    captured = []
    for which in (0, 1, 2, 0, 2):
        assert_same(engine.run(*batches[which], OUTPUTS), want[which])
        captured.append(engine.launches()["captured"])
    assert captured == [0, 1, 1, 1, 2]
    assert engine.launches()["by_graph"] == 3


def test_at_the_edges_of_buckets_of_sequences(cuda, made, handmade, rng):
    engine = grown(engine_of(cuda, made), handmade, rng)
    counts = [3, 4, 5, 4, 3, 8, 5, 1, 2, 1]  # buckets of 1, 2, 4 and 8
    batches = [handmade.batch_of(rng, [2] * count) for count in counts]
    for batch, expected in zip(batches, plainly(cuda, made, batches), strict=True):
        assert_same(engine.run(*batch, OUTPUTS), expected)
    assert engine.launches()["by_graph"] == len(counts) - 4


def test_a_larger_batch_leaves_nothing_in_a_smaller_one(cuda, made, handmade, rng):
    """What a graph read and wrote for a batch that filled the bucket does not show in the next."""
    engine = engine_of(cuda, made)
    full = handmade.batch_of(rng, [8, 8, 8, 8])
    small = handmade.batch_of(rng, [22, 7])
    (want,) = plainly(cuda, made, [small])
    for batch in (full, full, full):
        engine.run(*batch, OUTPUTS)
    for _ in range(3):
        assert_same(engine.run(*small, OUTPUTS), want)


def test_what_is_asked_for_has_a_graph_of_its_own(cuda, made, handmade, rng):
    engine = grown(engine_of(cuda, made), handmade, rng)
    batch = handmade.batch_of(rng, [5, 9, 4])
    want = plainly(cuda, made, [batch])[0]
    for _ in range(3):
        for names in (["pooled_output"], ["sequence_output"], OUTPUTS, OUTPUTS[::-1]):
            found = engine.run(*batch, names)
            assert_same(found, {name: want[name] for name in names})
    assert engine.launches()["captured"] == 4


def test_empty_sequences_and_padding_that_attends(cuda, made, handmade, rng):
    ids, types, ends, _ = handmade.batch_of(rng, [6, 11, 3])
    cases = [
        (ids, types, ends, None, OUTPUTS[:2], np.array([2, 11, 0], np.int32)),
        (ids, types, ends, None, OUTPUTS[:2], None),
        (ids, types, np.array([0, 0, 20, 20], np.int32), None, OUTPUTS[:2], None),
        (ids[:0], types[:0], np.zeros(4, np.int32), None, OUTPUTS[:2], None),
        (ids, types, ends, None, OUTPUTS[:2], np.array([6, 1, 3], np.int32)),
    ]
    plain, engine = engine_of(cuda, made, graphs=False), engine_of(cuda, made)
    want = [plain.run(*case) for case in cases]
    for _ in range(3):
        for case, expected in zip(cases, want, strict=True):
            assert_same(engine.run(*case), expected)
    assert engine.launches()["by_graph"] >= 10


def test_attention_weights_run_by_no_graph(cuda, made, handmade, rng):
    plan, arrays = made
    step = {"op": "attention_weights", "inputs": ["qkv0"], "heads": 3, "head_dim": 12}
    step |= {"name": "weights", "output": "weights", "weights": {}, "scale": 12**-0.5}
    plan["steps"].append({**step, "mask": "valid_length"})
    plan["outputs"]["weights"] = "weights"
    engine, plain = engine_of(cuda, (plan, arrays)), engine_of(cuda, (plan, arrays), graphs=False)
    names = ["weights", "pooled_output"]
    for lengths in ([4, 9], [9, 4], [4, 9]):
        batch = handmade.batch_of(rng, lengths)
        assert_same(engine.run(*batch, names), plain.run(*batch, names))
    assert engine.launches()["by_graph"] == 0


def test_memory_that_grows_takes_its_graphs_along(cuda, made, handmade, rng):
    """A graph has the addresses of its capture: with new memory it is made anew."""
    engine = engine_of(cuda, made)
    small, large = handmade.batch_of(rng, [7, 8]), handmade.batch_of(rng, [60] * 4)
    want = plainly(cuda, made, [small, large])
    for _ in range(3):
        assert_same(engine.run(*small, OUTPUTS), want[0])
    assert engine.launches()["captured"] == 1
    assert_same(engine.run(*large, OUTPUTS), want[1])
    for _ in range(2):
        assert_same(engine.run(*small, OUTPUTS), want[0])
    assert engine.launches()["captured"] == 2


def test_their_number_is_bounded_and_the_oldest_go(emulated, made, handmade, rng):
    engines = [engine_of(emulated, made, "fp32")]
    alive = emulated.emulator.graphs_alive

    def run(seqs: int, masks: int) -> int:
        """A run of a shape; how many graphs have been made."""
        ids, types, ends, _ = handmade.batch_of(rng, [1] * seqs)
        engines[0].run(ids, types, ends, np.zeros((seqs, masks), np.int32), ["pooled_output"])
        return engines[0].launches()["captured"]

    shapes = [(seqs, masks) for masks in range(17) for seqs in (4, 2, 1)]
    assert len(shapes) > SHAPES
    for count, shape in enumerate(shapes):
        run(*shape)
        assert run(*shape) == count + 1
        assert alive() == min(count + 1, SHAPES)
    # The last one is there; the first has gone, and has to be seen twice again.
    assert run(*shapes[-1]) == len(shapes)
    assert run(*shapes[0]) == len(shapes)
    assert run(*shapes[0]) == len(shapes) + 1
    assert alive() == SHAPES
    engines.clear()
    gc.collect()
    assert alive() == 0
    assert emulated.emulator.bytes_in_use(0) == 0


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("cudaStreamBeginCapture", "a graph's beginning"),
        ("launch in a capture", "a kernel cannot run"),
        ("cudaStreamEndCapture", "a graph's end"),
        ("cudaGraphInstantiate", "a graph's making"),
        ("cudaGraphLaunch", "a graph's launch"),
    ],
)
def test_where_no_graph_can_be_made_it_is_launched_plainly(
    emulated, made, handmade, rng, call, reason
):
    batch = handmade.batch_of(rng, [3, 4])
    want = plainly(emulated, made, [batch])[0]
    engine = engine_of(emulated, made)
    assert_same(engine.run(*batch, OUTPUTS), want)
    emulated.emulator.reset(fails=call)
    for _ in range(3):
        assert_same(engine.run(*batch, OUTPUTS), want)
    done = engine.launches()
    assert reason in done["no_graphs"]
    assert done["by_graph"] == 0
    assert emulated.emulator.graphs_alive() == 0
    # The reason stands, and the engine goes on.
    emulated.emulator.reset()
    assert_same(engine.run(*batch, OUTPUTS), want)
    assert engine.launches()["no_graphs"] == done["no_graphs"]


def test_a_failed_replay_falls_back_too(emulated, made, handmade, rng):
    batch = handmade.batch_of(rng, [5, 9, 4])
    engine = engine_of(emulated, made)
    want = [engine.run(*batch, OUTPUTS) for _ in range(3)][-1]
    assert emulated.emulator.graphs_alive() == 1
    emulated.emulator.reset(fails="cudaGraphLaunch")
    assert_same(engine.run(*batch, OUTPUTS), want)
    assert emulated.emulator.graphs_alive() == 0


def test_steps_that_are_measured_run_by_no_graph(cuda, made, handmade, rng):
    engine = engine_of(cuda, made, trace=True)
    batch = handmade.batch_of(rng, [5, 9])
    for _ in range(3):
        engine.run(*batch, OUTPUTS)
    done = engine.launches()
    assert (done["parts"], done["by_graph"], done["overlap"]) == (3, 0, False)
    assert "measured" in done["no_graphs"]


def test_more_threads_than_workspaces(cuda, made, handmade, rng):
    engine = engine_of(cuda, made)
    batches = [
        handmade.batch_of(rng, rng.integers(1, 9, int(rng.integers(1, 4))).tolist())
        for _ in range(5)
    ]
    want = plainly(cuda, made, batches)
    failures: list[BaseException] = []
    start = threading.Barrier(WORKSPACES + 2)

    def work(seed: int) -> None:
        own = np.random.default_rng(seed)
        try:
            start.wait()
            for which in own.integers(0, len(batches), 4):
                assert_same(engine.run(*batches[which], OUTPUTS), want[which])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(WORKSPACES + 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert engine.launches()["parts"] == 4 * (WORKSPACES + 2)


@pytest.mark.parametrize("limit", [1, 12, 30])
def test_two_parts_under_way(cuda, made, handmade, rng, limit):
    batch = handmade.batch_of(rng, [7, 3, 20, 1, 10, 9])
    want = plainly(cuda, made, [batch])[0]
    engine = engine_of(cuda, made, part_tokens=limit)
    assert engine.part_tokens == limit
    for _ in range(2):
        assert_same(engine.run(*batch, OUTPUTS), want)


def test_memory_for_one_part_at_a_time_is_enough(emulated, made, handmade, rng):
    """Where the second one's memory is not there, it waits for the first."""
    in_use = emulated.emulator.bytes_in_use
    batch = handmade.batch_of(rng, [15] * 8)
    want = plainly(emulated, made, [batch])[0]
    gc.collect()
    engine = engine_of(emulated, made, part_tokens=30)
    one = handmade.batch_of(rng, [15, 15])
    before = in_use(0)
    engine.run(*one, OUTPUTS)
    taken = in_use(0) - before
    emulated.emulator.reset(memory_bytes=in_use(0) + taken // 2)
    assert_same(engine.run(*batch, OUTPUTS), want)


def test_a_part_is_smaller_where_memory_is(emulated, made):
    assert engine_of(emulated, made).part_tokens == 16384
    emulated.emulator.reset(memory_bytes=emulated.emulator.bytes_in_use(0) + (32 << 20))
    small = engine_of(emulated, made).part_tokens
    assert 512 <= small < 16384


def test_a_fault_while_two_parts_are_under_way(emulated, made, handmade, rng):
    """The error comes out, and a new engine works once the device does."""
    engine = engine_of(emulated, made, part_tokens=40)
    batch = handmade.batch_of(rng, [30, 30])
    want = engine.run(*batch, OUTPUTS)
    with pytest.raises(DeviceError, match=r"no barrier between|nothing has been written"):
        emulated.probes.run("no_barrier", np.zeros(64, np.float32))
    with pytest.raises(DeviceError):
        engine.run(*batch, OUTPUTS)
    emulated.emulator.reset()
    assert_same(engine_of(emulated, made).run(*batch, OUTPUTS), want)
