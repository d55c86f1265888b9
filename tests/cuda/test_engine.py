"""The executor on plans made by hand: numbers, bits, devices, memory, bad batches."""

from __future__ import annotations

import copy
import gc
import itertools
import threading
import weakref
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bertrt import DeviceError, InvalidInputError, ModelFormatError, _native

OUTPUTS = ["sequence_output", "pooled_output", "masked_lm_outputs"]
PRECISIONS = ["fp32", "fp16", "bf16"]
# The largest relative error of rounding to an element.
ROUNDING = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}


@pytest.fixture
def batch(handmade, rng):
    return handmade.batch_of(rng, [1, 5, 40, 17, 2])


def new_engine(
    cuda: ModuleType,
    made: tuple[dict[str, Any], dict[str, np.ndarray]],
    precision: str = "fp32",
    device: int = 0,
    **options: Any,
) -> Any:
    return cuda.Engine(cuda.Model(*made, precision, device), **options)


def on_cpu(made: tuple[dict[str, Any], dict[str, np.ndarray]]) -> _native.Engine:
    return _native.Engine(_native.Model(*made, "fp32", 1), 1)


def with_step(made: tuple[dict, dict], output: str, **step: Any) -> tuple[dict, dict]:
    """The plan with one more step, whose value is one more output, and the last."""
    plan, weights = copy.deepcopy(made[0]), made[1]
    plan["steps"].append({"name": output, "output": output, "weights": {}, **step})
    plan["outputs"][output] = output
    return plan, weights


def test_numbers(cuda, made, handmade, batch):
    ids, types, ends, _ = batch
    found = new_engine(cuda, made).run(*batch, OUTPUTS)
    exact = on_cpu(made).run(*batch, OUTPUTS)
    for i, (begin, end) in enumerate(itertools.pairwise(ends)):
        want = handmade.expected(*made, ids[begin:end], types[begin:end])
        np.testing.assert_allclose(
            found["sequence_output"][begin:end], want["sequence_output"], atol=5e-6
        )
        np.testing.assert_allclose(found["pooled_output"][i], want["pooled_output"][0], atol=5e-6)
    np.testing.assert_allclose(found["masked_lm_outputs"], exact["masked_lm_outputs"], atol=5e-6)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_numbers_in_lower_precision(cuda, made, batch, precision):
    exact = on_cpu(made).run(*batch, OUTPUTS)
    found = new_engine(cuda, made, precision).run(*batch, OUTPUTS)
    # Two layers round eight arrays each, whose rows have a deviation of about 1; the errors are
    # independent and do not all add up.
    bound = 16 * ROUNDING[precision]
    for name in OUTPUTS:
        error = np.abs(found[name] - exact[name])
        assert 0 < error.max() < bound * max(1.0, np.abs(exact[name]).max()), name
        assert error.mean() < bound / 8, name


@pytest.mark.parametrize("precision", [*PRECISIONS, "int8"])
def test_a_sequence_has_the_same_bits_in_any_batch(cuda, made, handmade, rng, precision):
    engine = new_engine(cuda, made, precision)
    in_parts = new_engine(cuda, made, precision, part_tokens=20)
    lengths = [3, 1, 33, 20, 7]
    ids, types, ends, masked = handmade.batch_of(rng, lengths)
    together = engine.run(ids, types, ends, masked, OUTPUTS)
    parts = in_parts.run(ids, types, ends, masked, OUTPUTS)
    for name in OUTPUTS:
        np.testing.assert_array_equal(parts[name], together[name], name)
    order = [4, 2, 0, 3, 1]
    rows = [slice(*ends[i : i + 2]) for i in range(len(lengths))]
    new_ends = np.concatenate([[0], np.cumsum([lengths[i] for i in order])]).astype(np.int32)
    shuffled = engine.run(
        np.concatenate([ids[rows[i]] for i in order]),
        np.concatenate([types[rows[i]] for i in order]),
        new_ends,
        masked[order],
        OUTPUTS,
    )
    for place, i in enumerate(order):
        alone = engine.run(
            ids[rows[i]].copy(),
            types[rows[i]].copy(),
            np.array([0, lengths[i]], np.int32),
            masked[i : i + 1].copy(),
            OUTPUTS,
        )
        for found, sequence, at in (
            (alone, slice(None), 0),
            (shuffled, slice(*new_ends[place : place + 2]), place),
        ):
            for name, own, here in (
                ("sequence_output", rows[i], sequence),
                ("pooled_output", slice(i, i + 1), slice(at, at + 1)),
                ("masked_lm_outputs", slice(2 * i, 2 * i + 2), slice(2 * at, 2 * at + 2)),
            ):
                np.testing.assert_array_equal(found[name][here], together[name][own], name)


@pytest.mark.parametrize("precision", [*PRECISIONS, "int8"])
def test_a_pooled_row_has_the_same_bits_when_nothing_else_is_asked_for(
    cuda, made, batch, precision
):
    engine = new_engine(cuda, made, precision)
    everything = engine.run(*batch, OUTPUTS)["pooled_output"]
    alone = engine.run(*batch, ["pooled_output"])["pooled_output"]
    np.testing.assert_array_equal(alone, everything)


def test_only_what_is_asked_for_is_computed(cuda, made, batch):
    engine = new_engine(cuda, made, trace=True)
    assert not any(seconds for _, _, seconds, _, _ in engine.steps())
    engine.run(*batch, ["pooled_output"])
    steps = {name: (kernel, done, moved) for name, kernel, _, done, moved in engine.steps()}
    hidden, tokens, seqs = 36, 65, 5
    assert steps["decoder"][1:] == (0, 0)
    assert steps["layer0.qkv"][1] == 2 * tokens * hidden * 3 * hidden
    # Of the last layer, keys and values for all tokens, and everything else for the first ones.
    assert steps["layer1.qkv"][1] == 2 * tokens * hidden * 2 * hidden
    assert steps["layer1.attention"][1] == 2 * hidden * (seqs * hidden + 2 * tokens)
    assert steps["layer1.ffn"][1] == 2 * seqs * hidden * 50
    assert steps["embeddings"][0] == "embed_layer_norm_fp32"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_empty_sequences(cuda, made, handmade, rng, precision):
    engine = new_engine(cuda, made, precision)
    ids, types, ends, _ = handmade.batch_of(rng, [4, 9])
    full = engine.run(ids, types, ends, None, OUTPUTS[:2])
    with_empty = np.array([0, 0, 4, 4, 13, 13], np.int32)
    found = engine.run(ids, types, with_empty, None, OUTPUTS[:2])
    np.testing.assert_array_equal(found["sequence_output"], full["sequence_output"])
    np.testing.assert_array_equal(found["pooled_output"][[1, 3]], full["pooled_output"])
    # The pooler of a row of zeros.
    bias = np.tanh(made[1]["pooler.bias"])
    np.testing.assert_allclose(found["pooled_output"][[0, 2, 4]], np.stack([bias] * 3), atol=1e-6)
    none = np.zeros(0, np.int32)
    nothing = engine.run(none, none, np.zeros(3, np.int32), None, OUTPUTS[:2])
    assert nothing["sequence_output"].shape == (0, 36)
    np.testing.assert_array_equal(nothing["pooled_output"], found["pooled_output"][[0, 2]])


def test_padding_that_is_seen_to_attend(cuda, made, handmade, rng):
    ids, types, ends, _ = handmade.batch_of(rng, [6, 11, 3])
    attended = np.array([2, 11, 0], np.int32)
    found = new_engine(cuda, made).run(ids, types, ends, None, OUTPUTS[:2], attended)
    want = on_cpu(made).run(ids, types, ends, None, OUTPUTS[:2], attended)
    for name in OUTPUTS[:2]:
        np.testing.assert_allclose(found[name], want[name], atol=5e-6)


def test_a_role_that_a_step_does_not_have(cuda, made):
    plan, weights = copy.deepcopy(made[0]), made[1]
    plan["steps"][11]["weights"] = {"weight": ["pooler"]}
    with pytest.raises(ModelFormatError, match=r"'first' \(first_token\): role 'weight', which"):
        new_engine(cuda, (plan, weights))


def test_first_queries_of_a_layer_wider_than_its_attention(cuda, handmade, made, rng):
    made = handmade.narrow(made, rng)
    ids, types, ends, _ = handmade.batch_of(rng, [3] * 20)
    engine = new_engine(cuda, made)
    whole = engine.run(ids, types, ends, None, ["pooled_output", "logits"])
    np.testing.assert_array_equal(whole["pooled_output"], whole["logits"][::3])
    alone = engine.run(ids, types, ends, None, ["pooled_output"])
    np.testing.assert_array_equal(alone["pooled_output"], whole["pooled_output"])
    want = on_cpu(made).run(ids, types, ends, None, ["pooled_output"])
    np.testing.assert_allclose(alone["pooled_output"], want["pooled_output"], atol=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_attention_weights(cuda, made, batch, precision):
    shape = {"op": "attention_weights", "inputs": ["qkv0"], "heads": 3, "head_dim": 12}
    made = with_step(made, "weights", **shape, scale=12**-0.5, mask="valid_length")
    found = new_engine(cuda, made, precision).run(*batch, ["weights", "pooled_output"])
    want = on_cpu(made).run(*batch, ["weights", "pooled_output"])
    assert found["weights"].shape == want["weights"].shape
    # Scores of a deviation of about 1, of queries and keys that are rounded.
    np.testing.assert_allclose(
        found["weights"], want["weights"], atol=max(1e-6, 4 * ROUNDING[precision])
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_layers_that_share_weights_and_a_bias_by_distance(cuda, handmade, rng, precision):
    """The bits of layers with copies, and the numbers of the CPU."""
    plan, weights = handmade.make_plan(rng)
    weights["distances"] = rng.normal(size=(3, 127)).astype(np.float32)
    layer = plan["steps"][1:6]
    for step, other in zip(layer, plan["steps"][6:11], strict=True):
        if step["op"] == "attention":
            step["weights"] = {"bias": ["distances"]}
        for key in ("weights", "transposed", "weight_layout", "bias_layout"):
            if key in step:
                other[key] = copy.deepcopy(step[key])
    apart, copies = copy.deepcopy(plan), {}
    for step in apart["steps"]:
        for role, names in step["weights"].items():
            step["weights"][role] = [f"{step['name']}.{name}" for name in names]
            copies |= {f"{step['name']}.{name}": weights[name].copy() for name in names}
    batch = handmade.batch_of(rng, [1, 5, 64, 17, 2])
    found = new_engine(cuda, (plan, weights), precision).run(*batch, OUTPUTS)
    others = new_engine(cuda, (apart, copies), precision).run(*batch, OUTPUTS)
    want = on_cpu((plan, weights)).run(*batch, OUTPUTS)
    for name in OUTPUTS:
        np.testing.assert_array_equal(found[name], others[name])
        if precision == "fp32":
            np.testing.assert_allclose(found[name], want[name], atol=1e-5)
        else:
            assert np.abs(found[name] - want[name]).mean() < 8 * ROUNDING[precision]
    ids, types, ends, masked = batch
    rows = slice(ends[2], ends[3])
    one = np.array([0, 64], np.int32)
    alone = new_engine(cuda, (plan, weights), precision).run(
        ids[rows], types[rows], one, masked[2:3], OUTPUTS
    )
    np.testing.assert_array_equal(alone["sequence_output"], found["sequence_output"][rows])


def test_tables_of_distances_that_come_to_the_same_memory(cuda, handmade, rng):
    """One after the other, as where they are read from a file: each layer has its own."""
    plan, weights = handmade.make_plan(rng)
    tables = [f"distances{number}" for number in range(2)]
    for step, name in zip(
        (s for s in plan["steps"] if s["op"] == "attention"), tables, strict=True
    ):
        step["weights"] = {"bias": [name]}
        weights[name] = rng.normal(size=(3, 127)).astype(np.float32)
    room = np.empty((3, 127), np.float32)
    shown = []

    def fetch(wanted):
        arrays = []
        for one in wanted:
            assert all(reference() is None for reference in shown)
            room[...] = one.array
            arrays.append(room[...])
            shown.append(weakref.ref(arrays[-1]))
        return arrays

    stored = weights | {
        name: SimpleNamespace(dtype=array.dtype, shape=array.shape, array=array)
        for name, array in weights.items()
        if name in tables
    }
    batch = handmade.batch_of(rng, [1, 5, 64, 17, 2])
    want = new_engine(cuda, (plan, weights)).run(*batch, OUTPUTS)
    found = cuda.Engine(cuda.Model(plan, stored, "fp32", 0, fetch)).run(*batch, OUTPUTS)
    assert len(shown) == 2
    for name in OUTPUTS:
        np.testing.assert_array_equal(found[name], want[name])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_head_over_tokens_stays_in_fp32(cuda, made, rng, batch, precision):
    made[1]["tags"] = rng.normal(size=(5, 36)).astype(np.float32)
    tags = {"op": "linear", "inputs": ["x2"], "weights": {"weight": ["tags"]}}
    made = with_step(made, "logits", **tags, transposed=False, activation="none")
    engine = new_engine(cuda, made, precision)
    found = engine.run(*batch, ["logits", "sequence_output"])
    kernels = {name: kernel for name, kernel, *_ in engine.steps()}
    assert kernels["logits"].startswith("linear_fp32"), kernels["logits"]
    assert kernels["layer0.ffn"].startswith(f"linear_{precision}"), kernels["layer0.ffn"]
    want = found["sequence_output"].astype(np.float64) @ made[1]["tags"].T
    np.testing.assert_allclose(found["logits"], want, atol=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_value_that_is_returned_and_read_is_no_head(cuda, made, rng, batch, precision):
    made[1]["w"] = rng.normal(size=(36, 36)).astype(np.float32) / 6
    linear = {"op": "linear", "transposed": False, "activation": "none"}
    made = with_step(made, "once", **linear, inputs=["x2"], weights={"weight": ["w"]})
    made = with_step(made, "twice", **linear, inputs=["once"], weights={"weight": ["w"]})
    found = new_engine(cuda, made, precision).run(*batch, ["once", "twice"])
    want = on_cpu(made).run(*batch, ["once", "twice"])
    for name in ("once", "twice"):
        bound = max(1e-5, 32 * ROUNDING[precision])
        np.testing.assert_allclose(found[name], want[name], atol=bound)


def test_a_model_without_token_types(cuda, made, batch):
    plan, weights = copy.deepcopy(made[0]), made[1]
    plan["architecture"]["type_vocab_size"] = 0
    del plan["steps"][0]["weights"]["type"]
    found = new_engine(cuda, (plan, weights)).run(*batch, OUTPUTS)
    want = on_cpu((plan, weights)).run(*batch, OUTPUTS)
    for name in OUTPUTS:
        np.testing.assert_allclose(found[name], want[name], atol=5e-6)


def test_batches_that_do_not_fit_are_refused_and_the_engine_goes_on(cuda, made, batch):
    engine = new_engine(cuda, made)
    want = engine.run(*batch, OUTPUTS)
    ids, types, ends, masked = batch
    for value in (-1, 40):
        bad = ids.copy()
        bad[7] = value
        with pytest.raises(InvalidInputError, match=f"token id {value} at token 7"):
            engine.run(bad, types, ends, masked, OUTPUTS)
    with pytest.raises(InvalidInputError, match="token type 2 at token 0"):
        engine.run(ids, types * 0 + 2, ends, masked, OUTPUTS)
    with pytest.raises(InvalidInputError, match="has length 65"):
        engine.run(ids, types, np.array([0, 65], np.int32), None, OUTPUTS[:1])
    with pytest.raises(InvalidInputError, match="needs masked_positions"):
        engine.run(ids, types, ends, None, OUTPUTS)
    with pytest.raises(InvalidInputError, match="'logits' is not one of"):
        engine.run(*batch, ["logits"])
    again = engine.run(*batch, OUTPUTS)
    for name in OUTPUTS:
        np.testing.assert_array_equal(again[name], want[name])


def test_broken_plans_are_refused(cuda, made):
    plan, weights = copy.deepcopy(made[0]), made[1]
    plan["steps"][1]["heads"] = 4
    with pytest.raises(ModelFormatError, match=r"layer0\.qkv"):
        cuda.Model(plan, weights)
    with pytest.raises(InvalidInputError, match="int4"):
        cuda.Model(*made, "int4")


def test_calls_from_several_threads(cuda, made, handmade, rng):
    engine = new_engine(cuda, made, "fp16")
    batches = [handmade.batch_of(rng, [n, 3]) for n in (1, 9, 30)]
    want = [engine.run(*batch, OUTPUTS) for batch in batches]
    failures: list[BaseException] = []

    def work(which: int) -> None:
        try:
            for _ in range(2):
                found = engine.run(*batches[which], OUTPUTS)
                for name in OUTPUTS:
                    np.testing.assert_array_equal(found[name], want[which][name])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i % 3,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


# --- devices and memory, which the emulator counts ------------------------------------------------


def test_devices(emulated):
    emulated.emulator.reset(devices=2, memory_bytes=1 << 28)
    found = emulated.devices()
    assert [(gpu.number, gpu.arch, gpu.memory) for gpu in found] == [
        (0, "sm_89", 1 << 28),
        (1, "sm_89", 1 << 28),
    ]
    emulated.emulator.reset(devices=0)
    with pytest.raises(DeviceError, match="finds no GPU"):
        emulated.devices()


def test_a_device_that_is_not_there(emulated, made):
    with pytest.raises(DeviceError, match=r"no device 'cuda:2'.*has 2, cuda:0 to cuda:1"):
        emulated.Model(*made, "fp32", 2)
    emulated.emulator.reset(devices=1)
    with pytest.raises(DeviceError, match=r"no device 'cuda:1'.*has 1, cuda:0$"):
        emulated.Model(*made, "fp32", 1)


def test_each_engine_stays_on_its_device(emulated, made, batch):
    in_use = emulated.emulator.bytes_in_use
    engines = [new_engine(emulated, made, device=number) for number in (0, 1)]
    found = [engine.run(*batch, OUTPUTS) for engine in engines]
    assert [engine.device.number for engine in engines] == [0, 1]
    assert in_use(0) == in_use(1) > 0
    for name in OUTPUTS:
        np.testing.assert_array_equal(found[0][name], found[1][name])
    del engines
    gc.collect()
    assert in_use(0) == in_use(1) == 0


def test_engines_of_one_model_share_its_weights(emulated, made, batch):
    in_use = emulated.emulator.bytes_in_use
    model = emulated.Model(*made, "fp32", 0)
    weights = in_use(0)
    assert weights >= sum(array.nbytes for array in made[1].values())
    engines = [emulated.Engine(model) for _ in range(3)]
    assert in_use(0) == weights
    del model
    engines[0].run(*batch, OUTPUTS)
    assert in_use(0) > weights
    engines.clear()
    gc.collect()
    assert in_use(0) == 0


def test_lower_precision_takes_half_the_memory(emulated, made):
    in_use = emulated.emulator.bytes_in_use
    # Only the layers are, and each array takes 256 bytes at least: tables of a size that counts.
    plan, weights = made
    plan = copy.deepcopy(plan)
    plan["steps"] = plan["steps"][:6]
    plan["outputs"] = {"sequence_output": "x1"}
    full = emulated.Model(plan, weights, "fp32", 0)
    in_fp32 = in_use(0)
    del full
    half = emulated.Model(plan, weights, "fp16", 0)
    assert in_use(0) < 0.6 * in_fp32
    del half


def test_memory_stays_where_it_is(emulated, made, handmade, rng):
    in_use = emulated.emulator.bytes_in_use
    engine = new_engine(emulated, made, "bf16")
    engine.run(*handmade.batch_of(rng, [60, 60]), OUTPUTS)
    before = in_use(0)
    for lengths in ([1], [60], [5, 5, 5], [64, 50], [1, 1, 1, 1, 1]):
        engine.run(*handmade.batch_of(rng, lengths), OUTPUTS)
        engine.run(*handmade.batch_of(rng, lengths), ["pooled_output"])
    assert in_use(0) == before


def test_out_of_memory_is_an_error_and_the_engine_lives_on(emulated, made, handmade, rng):
    in_use = emulated.emulator.bytes_in_use
    engine = new_engine(emulated, made)
    small = handmade.batch_of(rng, [3, 4])
    want = engine.run(*small, OUTPUTS)
    emulated.emulator.reset(memory_bytes=in_use(0) + (1 << 16))
    large = handmade.batch_of(rng, [64] * 8)
    with pytest.raises(DeviceError, match=r"out of device memory: .* MiB were asked for; the GPU"):
        engine.run(*large, OUTPUTS)
    found = engine.run(*small, OUTPUTS)
    for name in OUTPUTS:
        np.testing.assert_array_equal(found[name], want[name])
    before = in_use(0)
    with pytest.raises(DeviceError, match="out of device memory"):
        emulated.Model(*made, "fp32", 0)
    assert in_use(0) == before
    emulated.emulator.reset()
    assert engine.run(*large, OUTPUTS)["sequence_output"].shape == (512, 36)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_order_of_threads_does_not_show(emulated, made, batch, precision):
    forwards = new_engine(emulated, made, precision).run(*batch, OUTPUTS)
    emulated.emulator.reset(backwards=True)
    backwards = new_engine(emulated, made, precision).run(*batch, OUTPUTS)
    for name in OUTPUTS:
        np.testing.assert_array_equal(backwards[name], forwards[name])
