"""What attention adds to scores by the distance of a key: kernels and engine, numbers and bits."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import test_kernels as plain
import test_native_engine as handmade

from bertrt import ModelFormatError, _native

kernels = _native.kernels
PRECISIONS = ["fp32", "bf16", "int8"]
OUTPUTS = ["sequence_output", "pooled_output"]


def ends_of(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def attend(qkv: np.ndarray, heads: int, scale: float, bias: np.ndarray) -> np.ndarray:
    """One sequence in double precision."""
    tokens, at = len(qkv), np.arange(len(qkv))
    rows = qkv.astype(np.float64).reshape(tokens, 3, heads, -1)
    scores = np.einsum("qhd,khd->hqk", rows[:, 0], rows[:, 1]) * scale
    scores += bias[:, bias.shape[1] // 2 + at - at[:, None]]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, rows[:, 2]).reshape(tokens, -1)


def test_the_reference(rng):
    qkv = rng.normal(size=(9, 3 * 2 * 5)).astype(np.float32)
    bias = rng.normal(size=(2, 23)).astype(np.float32)
    found = kernels.attention("reference", qkv, ends_of([9]), 2, 0.4, bias=bias)
    np.testing.assert_allclose(found, attend(qkv, 2, 0.4, bias), atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("head_dim", [5, 24, 64])
@pytest.mark.parametrize(
    "lengths", [[1], [2, 1, 0, 3], [13, 14, 15, 16, 17], [31, 32, 33], [97, 128], [512], [513, 7]]
)
def test_attention(isa, rng, head_dim, lengths, precision):
    """Each score is off by a few roundings of its bias more than `attention_bound` has it. Tables
    reach no farther than the longest sequence, so that nothing beyond them may be read."""
    ends, heads = ends_of(lengths), 3
    qkv = rng.normal(size=(ends[-1], 3 * heads * head_dim)).astype(np.float32)
    bias = 2 * rng.normal(size=(heads, 2 * max(lengths) - 1)).astype(np.float32)
    if precision == "bf16":
        qkv = plain.as_bf16(qkv)
    scale = head_dim**-0.5
    found = kernels.attention(isa, qkv, ends, heads, scale, 2, precision, bias)
    expected = kernels.attention("reference", qkv, ends, heads, scale, bias=bias)
    bound = plain.attention_bound(qkv, heads, scale, precision)
    bound += 8 * plain.EPS * float(np.abs(bias).max()) * float(np.abs(qkv).max())
    assert np.abs(found - expected).max() <= bound
    without = kernels.attention(isa, qkv, ends, heads, scale, 2, precision)
    zeros = kernels.attention(isa, qkv, ends, heads, scale, 2, precision, 0 * bias)
    np.testing.assert_array_equal(zeros, without)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_bits_in_any_batch_and_at_any_thread_count(isa, rng, precision):
    lengths = [17, 1, 130, 0, 64, 512, 5]
    ends = ends_of(lengths)
    qkv = rng.normal(size=(ends[-1], 3 * 4 * 24)).astype(np.float32)
    bias = rng.normal(size=(4, 1023)).astype(np.float32)
    whole = kernels.attention(isa, qkv, ends, 4, 0.2, 1, precision, bias)
    for threads in (1, 2, 7):
        for begin, end in itertools.pairwise(ends):
            one = np.array([0, end - begin], np.int32)
            alone = kernels.attention(isa, qkv[begin:end], one, 4, 0.2, threads, precision, bias)
            np.testing.assert_array_equal(alone, whole[begin:end])


def made_with_distances(rng) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The plan of the engine's tests, whose layers read one table."""
    plan, weights = handmade.make_plan(rng)
    shape = (handmade.HEADS, 2 * handmade.LENGTH - 1)
    weights["distances"] = rng.normal(size=shape).astype(np.float32)
    for step in plan["steps"]:
        if step["op"] == "attention":
            step["weights"] = {"bias": ["distances"]}
    return plan, weights


def test_numbers(isa, rng, monkeypatch):
    monkeypatch.setenv("BERTRT_ISA", isa)
    made = made_with_distances(rng)
    ids, types, ends, _ = handmade.batch_of(rng, [1, 5, 64, 17, 33])
    found = handmade.new_engine(*made, threads=2).run(ids, types, ends, None, OUTPUTS)
    for i, (begin, end) in enumerate(itertools.pairwise(ends)):
        want = handmade.expected(*made, ids[begin:end], types[begin:end])
        np.testing.assert_allclose(found[OUTPUTS[0]][begin:end], want[OUTPUTS[0]], atol=5e-6)
        np.testing.assert_allclose(found[OUTPUTS[1]][i], want[OUTPUTS[1]][0], atol=5e-6)


def test_the_table_outlives_its_arrays(rng):
    plan, weights = made_with_distances(rng)
    ids, types, ends, _ = handmade.batch_of(rng, [64])
    engine = handmade.new_engine(plan, weights, threads=1)
    want = engine.run(ids, types, ends, None, OUTPUTS)
    names = list(weights)
    shapes = [weights.pop(name).shape for name in names]
    others = [np.full(shape, np.nan, np.float32) for shape in shapes for _ in range(4)]
    found = engine.run(ids, types, ends, None, OUTPUTS)
    for name in OUTPUTS:
        np.testing.assert_array_equal(found[name], want[name])
    assert others


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bits_of_an_engine(isa, rng, monkeypatch, precision):
    """A row alone, in batches, on threads, and of the first token alone."""
    monkeypatch.setenv("BERTRT_ISA", isa)
    made = made_with_distances(rng)
    lengths = [int(n) for n in rng.integers(1, handmade.LENGTH + 1, 40)]
    ids, types, ends, _ = handmade.batch_of(rng, lengths)
    whole = handmade.new_engine(*made, threads=1, precision=precision).run(
        ids, types, ends, None, OUTPUTS
    )
    for threads in (1, 2, 5):
        engine = handmade.new_engine(*made, threads=threads, precision=precision)
        first = engine.run(ids, types, ends, None, ["pooled_output"])["pooled_output"]
        np.testing.assert_array_equal(first, whole["pooled_output"])
        for i in (0, 7, 39):
            s = slice(ends[i], ends[i + 1])
            alone = engine.run(ids[s], types[s], ends_of([lengths[i]]), None, OUTPUTS)
            np.testing.assert_array_equal(alone["sequence_output"], whole["sequence_output"][s])
            np.testing.assert_array_equal(alone["pooled_output"][0], whole["pooled_output"][i])


def test_probabilities(rng):
    """Of sequences with padding, too, which is not attended to."""
    plan, weights = made_with_distances(rng)
    plan["steps"].append(
        copy.deepcopy(plan["steps"][2])
        | {"op": "attention_weights", "name": "weights", "output": "weights"}
    )
    plan["outputs"] = {"attention_weights_0": "weights", "qkv": "qkv0"}
    ids, types, ends, _ = handmade.batch_of(rng, [5, 1, 64])
    attended = np.array([3, 1, 64], np.int32)
    engine = handmade.new_engine(plan, weights, threads=2)
    found = engine.run(ids, types, ends, None, list(plan["outputs"]), attended)
    first, heads = 0, handmade.HEADS
    for s, (begin, end) in enumerate(itertools.pairwise(ends)):
        tokens, keys = end - begin, attended[s]
        rows = found["qkv"][begin:end].astype(np.float64).reshape(tokens, 3, heads, -1)
        scores = np.einsum("qhd,khd->qkh", rows[:, 0], rows[:keys, 1]) * plan["steps"][2]["scale"]
        at = np.arange(tokens)
        distances = handmade.LENGTH - 1 + at[:keys] - at[:, None]
        scores += np.moveaxis(weights["distances"][:, distances], 0, -1)
        scores = np.exp(scores)
        expected = np.zeros((tokens, tokens, heads))
        expected[:, :keys] = scores / scores.sum(1, keepdims=True)
        part = found["attention_weights_0"][first : first + tokens * tokens]
        np.testing.assert_allclose(part.reshape(expected.shape), expected, atol=1e-6)
        first += tokens * tokens


def test_tables_that_do_not_fit(rng):
    plan, weights = made_with_distances(rng)
    for shape, message in (
        ((3, 126), r"\(bias\) has shape \(3, 126\), expected \(3, 127\)"),
        ((2, 127), r"has shape \(2, 127\)"),
        ((381,), r"has shape \(381\)"),
    ):
        table = np.zeros(shape, np.float32)
        with pytest.raises(ModelFormatError, match=message):
            handmade.new_engine(plan, weights | {"distances": table}, threads=1)
    plan["steps"][2]["weights"]["bias"] = ["distances"] * 2
    with pytest.raises(ModelFormatError, match="'bias' has 2 weights, expected 1"):
        handmade.new_engine(plan, weights, threads=1)
