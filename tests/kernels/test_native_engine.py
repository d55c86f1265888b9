"""The native engine on plans made by hand: numbers, bits, bad plans, bad batches, memory."""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bertrt import (
    BertrtError,
    DeviceError,
    InvalidInputError,
    ModelFormatError,
    OutOfMemoryError,
    _native,
)
from bertrt.plan.quantized import quantize_outputs, to_bfloat16

HIDDEN, HEADS, HEAD_DIM, FFN, VOCAB, TYPES, LENGTH = 36, 3, 12, 50, 40, 2, 64


def make_plan(rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Two layers, a pooler and an MLM decoder; the second layer has interleaved, transposed
    projections."""
    weights: dict[str, np.ndarray] = {}

    def weight(name: str, *shape: int) -> list[str]:
        weights[name] = rng.normal(size=shape).astype(np.float32) / np.float32(shape[-1] ** 0.5)
        return [name]

    def norm(name: str, size: int = HIDDEN) -> dict[str, list[str]]:
        return {"gamma": weight(f"{name}.gamma", size), "beta": weight(f"{name}.beta", size)}

    steps: list[dict[str, Any]] = [
        {
            "op": "embed_layer_norm",
            "name": "embeddings",
            "inputs": [],
            "output": "x0",
            "weights": {
                "word": weight("word", VOCAB, HIDDEN),
                "type": weight("type", TYPES, HIDDEN),
                "position": weight("position", LENGTH, HIDDEN),
                **norm("embeddings"),
            },
            "eps": 1e-12,
        }
    ]
    for layer in range(2):
        separate = layer == 0
        shapes = [(HIDDEN, HIDDEN)] * 3 if separate else [(HIDDEN, 3 * HIDDEN)]
        sizes = [HIDDEN] * 3 if separate else [3 * HIDDEN]
        shape = {"heads": HEADS, "head_dim": HEAD_DIM}
        layout = "separate" if separate else "interleaved"
        steps += [
            {
                "op": "qkv_linear",
                "name": f"layer{layer}.qkv",
                "inputs": [f"x{layer}"],
                "output": f"qkv{layer}",
                "weights": {
                    "weight": [
                        *(weight(f"l{layer}.w{i}", *s)[0] for i, s in enumerate(shapes)),
                    ],
                    "bias": [*(weight(f"l{layer}.b{i}", s)[0] for i, s in enumerate(sizes))],
                },
                "weight_layout": layout,
                "bias_layout": layout,
                "transposed": not separate,
                **shape,
            },
            {
                "op": "attention",
                "name": f"layer{layer}.attention",
                "inputs": [f"qkv{layer}"],
                "output": f"context{layer}",
                "weights": {},
                "scale": HEAD_DIM**-0.5,
                "mask": "valid_length",
                **shape,
            },
            {
                "op": "linear_add_layer_norm",
                "name": f"layer{layer}.attention_output",
                "inputs": [f"context{layer}", f"x{layer}"],
                "output": f"a{layer}",
                "weights": {
                    "weight": weight(f"l{layer}.proj", HIDDEN, HIDDEN),
                    "bias": weight(f"l{layer}.proj.bias", HIDDEN),
                    **norm(f"l{layer}.attention"),
                },
                "eps": 1e-12,
                "transposed": False,
            },
            {
                "op": "linear",
                "name": f"layer{layer}.ffn",
                "inputs": [f"a{layer}"],
                "output": f"f{layer}",
                "weights": {
                    "weight": weight(f"l{layer}.ffn1", FFN, HIDDEN),
                    "bias": weight(f"l{layer}.ffn1.bias", FFN),
                },
                "activation": "gelu_erf",
                "transposed": False,
            },
            {
                "op": "linear_add_layer_norm",
                "name": f"layer{layer}.ffn_output",
                "inputs": [f"f{layer}", f"a{layer}"],
                "output": f"x{layer + 1}",
                "weights": {
                    "weight": weight(f"l{layer}.ffn2", HIDDEN, FFN),
                    "bias": weight(f"l{layer}.ffn2.bias", HIDDEN),
                    **norm(f"l{layer}.ffn"),
                },
                "eps": 1e-5,
                "transposed": False,
            },
        ]
    linear = {"op": "linear", "transposed": False, "activation": "none"}
    steps += [
        {"op": "first_token", "name": "first", "inputs": ["x2"], "output": "cls", "weights": {}},
        {
            **linear,
            "name": "pooler",
            "inputs": ["cls"],
            "output": "pooled",
            "weights": {
                "weight": weight("pooler", HIDDEN, HIDDEN),
                "bias": weight("pooler.bias", HIDDEN),
            },
            "activation": "tanh",
        },
        {
            "op": "gather_positions",
            "name": "masked",
            "inputs": ["x2"],
            "output": "masked",
            "weights": {},
        },
        {
            "op": "layer_norm",
            "name": "decoder.norm",
            "inputs": ["masked"],
            "output": "normed",
            "weights": norm("decoder"),
            "eps": 1e-12,
        },
        {
            **linear,
            "name": "decoder",
            "inputs": ["normed"],
            "output": "decoded",
            "weights": {"weight": ["word"]},
        },
    ]
    plan = {
        "version": 1,
        "architecture": {
            "hidden": HIDDEN,
            "vocab_size": VOCAB,
            "type_vocab_size": TYPES,
            "max_length": LENGTH,
        },
        "steps": steps,
        "outputs": {
            "sequence_output": "x2",
            "pooled_output": "pooled",
            "masked_lm_outputs": "decoded",
        },
    }
    # From numpy 2 on a scalar of float64 makes float64 of an array of float32.
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    return plan, weights


OUTPUTS = ["sequence_output", "pooled_output", "masked_lm_outputs"]


def expected(
    plan: dict[str, Any], weights: dict[str, np.ndarray], ids: np.ndarray, types: np.ndarray
) -> dict[str, np.ndarray]:
    """One sequence in double precision, straight from the meaning of each step; no decoder."""
    values: dict[str, np.ndarray] = {}

    def norm(x: np.ndarray, step: dict[str, Any]) -> np.ndarray:
        gamma, beta = (weights[step["weights"][role][0]] for role in ("gamma", "beta"))
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + step["eps"]
        ) * gamma + beta

    for step in plan["steps"]:
        of = {role: [weights[n] for n in names] for role, names in step["weights"].items()}
        x = [values.get(name) for name in step["inputs"]]
        if step["op"] == "embed_layer_norm":
            total = of["word"][0][ids] + of["type"][0][types] + of["position"][0][: len(ids)]
            y = norm(total.astype(np.float64), step)
        elif step["op"] == "qkv_linear":
            if step["weight_layout"] == "separate":
                y = np.concatenate(
                    [x[0] @ w.T + b for w, b in zip(of["weight"], of["bias"], strict=True)], -1
                )
            else:
                y = x[0] @ of["weight"][0] + of["bias"][0]
                y = y.reshape(len(ids), HEADS, 3, HEAD_DIM).transpose(0, 2, 1, 3)
                y = y.reshape(len(ids), 3 * HIDDEN)
        elif step["op"] == "attention":
            q, k, v = x[0].reshape(len(ids), 3, HEADS, HEAD_DIM).transpose(1, 2, 0, 3)
            scores = q @ k.transpose(0, 2, 1) * step["scale"]
            if "bias" in of:
                at = np.arange(len(ids))
                scores += of["bias"][0][:, LENGTH - 1 + at - at[:, None]]
            p = np.exp(scores)
            y = (p / p.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(ids), HIDDEN)
        elif step["op"] == "linear_add_layer_norm":
            y = norm(x[0] @ of["weight"][0].T + of["bias"][0] + x[1], step)
        elif step["op"] == "first_token":
            y = x[0][:1]
        elif step["op"] == "linear" and step["name"] != "decoder":
            y = x[0] @ of["weight"][0].T + of["bias"][0]
            if step["activation"] == "tanh":
                y = np.tanh(y)
            elif step["activation"] == "gelu_erf":
                flat = np.ascontiguousarray(y.ravel(), np.float32)
                y = _native.kernels.activation("reference", "gelu_erf", flat).reshape(y.shape)
        else:
            break
        values[step["output"]] = y
    return {"sequence_output": values["x2"], "pooled_output": values["pooled"]}


def batch_of(
    rng: np.random.Generator, lengths: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = rng.integers(0, VOCAB, ends[-1], dtype=np.int32)
    types = rng.integers(0, TYPES, ends[-1], dtype=np.int32)
    masked = np.stack([rng.integers(0, n, 2, dtype=np.int32) for n in lengths])
    return ids, types, ends, masked


@pytest.fixture
def made(rng):
    return make_plan(rng)


def new_engine(
    plan: dict, weights: dict, *, threads: int, precision: str = "fp32", trace: bool = False
) -> _native.Engine:
    return _native.Engine(_native.Model(plan, weights, precision, 2), threads, trace)


@pytest.fixture
def engine(made, isa, monkeypatch):
    monkeypatch.setenv("BERTRT_ISA", isa)
    engine = new_engine(*made, threads=2)
    assert engine.isa == isa
    return engine


def test_numbers(engine, made, rng):
    ids, types, ends, masked = batch_of(rng, [1, 5, 64, 17, 33])
    found = engine.run(ids, types, ends, masked, OUTPUTS)
    for i, (begin, end) in enumerate(itertools.pairwise(ends)):
        want = expected(*made, ids[begin:end], types[begin:end])
        np.testing.assert_allclose(
            found["sequence_output"][begin:end], want["sequence_output"], atol=5e-6
        )
        np.testing.assert_allclose(found["pooled_output"][i], want["pooled_output"][0], atol=5e-6)
        # The decoder: LayerNorm of the rows at the masked positions, times the word embeddings.
        weights = made[1]
        rows = want["sequence_output"][masked[i]]
        rows = (rows - rows.mean(-1, keepdims=True)) / rows.std(-1, keepdims=True)
        rows = rows * weights["decoder.gamma"] + weights["decoder.beta"]
        np.testing.assert_allclose(
            found["masked_lm_outputs"][2 * i : 2 * i + 2], rows @ weights["word"].T, atol=5e-6
        )


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.06), ("int8", 0.2)])
def test_numbers_in_lower_precision(made, rng, isa, monkeypatch, precision, bound):
    monkeypatch.setenv("BERTRT_ISA", isa)
    batch = batch_of(rng, [1, 5, 64, 17, 33])
    exact = new_engine(*made, threads=2).run(*batch, OUTPUTS)
    found = new_engine(*made, threads=2, precision=precision).run(*batch, OUTPUTS)
    for name in OUTPUTS:
        error = np.abs(found[name] - exact[name])
        # Rows of deviation 1 after two layers of products with errors of 2^-9 and 1/254.
        assert 0 < error.max() < bound * max(1.0, np.abs(exact[name]).max()), name
        assert error.mean() < bound / 8, name


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_sequence_has_the_same_bits_in_any_batch_order_and_thread_count(
    made, rng, isa, monkeypatch, precision
):
    monkeypatch.setenv("BERTRT_ISA", isa)
    lengths = [int(n) for n in rng.integers(1, LENGTH + 1, 70)]
    ids, types, ends, masked = batch_of(rng, lengths)
    alone = new_engine(*made, threads=1, precision=precision)
    whole = alone.run(ids, types, ends, masked, OUTPUTS)
    rows = {
        "sequence_output": lambda i: slice(ends[i], ends[i + 1]),
        "pooled_output": lambda i: slice(i, i + 1),
        "masked_lm_outputs": lambda i: slice(2 * i, 2 * i + 2),
    }
    for threads in (1, 2, 5):
        engine = new_engine(*made, threads=threads, precision=precision)
        order = rng.permutation(len(lengths))
        chosen = [slice(ends[i], ends[i + 1]) for i in order]
        shuffled = engine.run(
            np.concatenate([ids[s] for s in chosen]),
            np.concatenate([types[s] for s in chosen]),
            np.concatenate([[0], np.cumsum([lengths[i] for i in order])]).astype(np.int32),
            masked[order],
            OUTPUTS,
        )
        for name, where in rows.items():
            np.testing.assert_array_equal(
                shuffled[name], np.concatenate([whole[name][where(i)] for i in order])
            )
        for i in (0, 7, 69):
            s = slice(ends[i], ends[i + 1])
            ends_of_one = np.array([0, lengths[i]], np.int32)
            alone = engine.run(ids[s], types[s], ends_of_one, masked[i : i + 1], OUTPUTS)
            for name, where in rows.items():
                np.testing.assert_array_equal(alone[name], whole[name][where(i)])


def test_an_empty_sequence_pools_a_row_of_zeros(engine, made, rng):
    # Gluon masks the row at position 0 with zeros before the pooler reads it.
    ids, types, _, _ = batch_of(rng, [3, 4])
    ends = np.array([0, 3, 3, 7], np.int32)
    found = engine.run(ids, types, ends, None, ["sequence_output", "pooled_output"])
    np.testing.assert_allclose(
        found["pooled_output"][1], np.tanh(made[1]["pooler.bias"]), rtol=1e-6
    )
    nothing = np.zeros(0, np.int32)
    found = engine.run(nothing, nothing, np.zeros(3, np.int32), None, ["sequence_output"])
    assert found["sequence_output"].shape == (0, HIDDEN)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_pooled_row_has_the_same_bits_when_nothing_else_is_asked_for(
    made, rng, isa, monkeypatch, precision
):
    # Then the last layer is computed for the first tokens only.
    monkeypatch.setenv("BERTRT_ISA", isa)
    engine = new_engine(*made, threads=2, precision=precision)
    for lengths in ([1], [64], [5, 1, 33, 17, 64, 2], [3, 0, 4], [0], [1] * 40):
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ids = rng.integers(0, VOCAB, ends[-1], dtype=np.int32)
        types = rng.integers(0, TYPES, ends[-1], dtype=np.int32)
        whole = engine.run(ids, types, ends, None, ["sequence_output", "pooled_output"])
        alone = engine.run(ids, types, ends, None, ["pooled_output"])
        np.testing.assert_array_equal(alone["pooled_output"], whole["pooled_output"])


def narrow(made, rng) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A plan whose queries, keys and values are narrower together than its layers, and which pools
    what its last attention gives."""
    plan, weights = copy.deepcopy(made[0]), dict(made[1])
    heads = {"heads": 1, "head_dim": 2}
    for layer in range(2):
        plan["steps"][1 + 5 * layer] |= heads | {
            "weights": {"weight": [f"q{layer}"], "bias": [f"q{layer}.bias"]},
            "weight_layout": "interleaved",
            "bias_layout": "interleaved",
            "transposed": False,
        }
        plan["steps"][2 + 5 * layer] |= heads
        weights[f"q{layer}"] = rng.normal(size=(6, HIDDEN)).astype(np.float32)
        weights[f"q{layer}.bias"] = rng.normal(size=6).astype(np.float32)
    weights["l0.proj"] = rng.normal(size=(HIDDEN, 2)).astype(np.float32)
    del plan["steps"][8:11], plan["steps"][9:]
    plan["steps"][8]["inputs"] = ["context1"]
    plan["outputs"] = {"pooled_output": "cls", "logits": "context1"}
    return plan, weights


@pytest.mark.parametrize("threads", [1, 2])
def test_first_queries_of_a_layer_wider_than_its_attention(made, rng, threads):
    """What a product for first queries reads has a row a sequence, as wide as the layer."""
    engine = new_engine(*narrow(made, rng), threads=threads)
    ids, types, ends, _ = batch_of(rng, [3] * 60)
    whole = engine.run(ids, types, ends, None, ["pooled_output", "logits"])
    np.testing.assert_array_equal(whole["pooled_output"], whole["logits"][::3])
    alone = engine.run(ids, types, ends, None, ["pooled_output"])
    np.testing.assert_array_equal(alone["pooled_output"], whole["pooled_output"])


def test_only_what_is_asked_for_is_computed(made, rng, monkeypatch):
    engine = new_engine(*made, threads=1, trace=True)
    ids, types, ends, _ = batch_of(rng, [5])
    assert list(engine.run(ids, types, ends, None, ["sequence_output"])) == ["sequence_output"]
    spent = {name: seconds for name, _, seconds, _, _ in engine.steps()}
    assert spent["layer1.ffn_output"] > 0
    assert spent["pooler"] == 0
    assert spent["decoder"] == 0


def change(path: str, value: Any):
    def apply(plan: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        target: Any = plan
        for part in parents:
            target = target[int(part)] if isinstance(target, list) else target[part]
        if value is KeyError:
            del target[last]
        elif isinstance(target, list):
            target[int(last)] = value
        else:
            target[last] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("version", 2, "version 2"),
        ("version", KeyError, "has no field 'version'"),
        ("architecture.hidden", 0, "hidden is 0"),
        ("architecture.hidden", -1, "hidden is -1"),
        ("architecture.hidden", 1 << 40, "hidden is 1099511627776"),
        ("architecture.hidden", "36", "wrong type"),
        (
            "architecture.vocab_size",
            41,
            r"'word' \(word\) has shape \(40, 36\), expected \(41, 36\)",
        ),
        ("architecture.max_length", 65, r"'position' .* expected \(65, 36\)"),
        ("architecture.type_vocab_size", 0, "'type' and type_vocab_size disagree"),
        ("steps.0.op", "embed", "operation 'embed' is unknown"),
        ("steps.0.eps", float("nan"), "eps is not a finite number"),
        ("steps.0.eps", -1.0, "eps is not a finite number"),
        ("steps.0.eps", 1.0, "eps is not a finite number >= 0 and < 1"),
        ("steps.0.eps", 0, "wrong type"),
        ("steps.0.eps", "small", "wrong type"),
        ("steps.4.transposed", 0, "wrong type"),
        ("steps.1.heads", True, "wrong type"),
        ("steps.0.name", "\ud800", "wrong type"),
        ("steps.0.weights.gamma", ["nobody"], "weight 'nobody' was not given"),
        ("steps.0.weights.gamma", [], "'gamma' has 0 weights"),
        ("steps.0.weights.word", ["pooler"], r"has shape \(36, 36\)"),
        ("steps.1.heads", 4, "expected"),
        ("steps.1.heads", 0, "heads is 0"),
        ("steps.1.head_dim", -12, "head_dim is -12"),
        ("steps.1.weight_layout", "stacked", "layout 'stacked' is unknown"),
        ("steps.1.inputs", ["x9"], "'x9' is not made by an earlier step"),
        ("steps.1.inputs", [], "0 inputs, expected 1"),
        ("steps.2.scale", 0.0, "scale is not a finite number"),
        ("steps.2.heads", 2, "columns, expected"),
        ("steps.2.mask", "causal", "mask is 'causal', expected none or valid_length"),
        ("steps.2.scale", 1e39, "scale is not a finite number > 0 in float32"),
        ("steps.2.inputs", ["x0"], "'x0' has rows of tokens, expected rows of qkv"),
        ("steps.3.inputs", ["context0", "qkv0"], "'qkv0' has rows of qkv, expected rows of tokens"),
        ("steps.5.inputs", ["f0", "f0"], "residual 'f0' has 50 columns, the product 36"),
        ("steps.4.activation", "swish", "activation 'swish' is unknown"),
        ("steps.4.transposed", True, "expected"),
        ("steps.5.output", "x0", "'x0' is made by an earlier step too"),
        ("steps.5.name", "embeddings", "'embeddings' .*: an earlier step has this name too"),
        # What a kind of step does not have: at first_token a matrix was once taken for the next's.
        (
            "steps.11.weights.weight",
            ["pooler"],
            r"step 'first' \(first_token\): role 'weight', which such a step does not have",
        ),
        ("steps.11.weights.weight", [], "role 'weight', which such a step does not have"),
        (
            "steps.2.weights.gamma",
            ["pooler.bias"],
            r"role 'gamma', .* does not have; expected bias\?",
        ),
        ("steps.4.weights.bias", ["l0.ffn1.bias"] * 2, "role 'bias' has 2 weights, expected 1"),
        ("steps.4.weights.bias", [], "role 'bias' has 0 weights, expected 1"),
        ("steps.5.weights.gamma", KeyError, "no role 'gamma'"),
        ("steps.11.eps", 1e-5, "field 'eps', which such a step does not have; expected none"),
        ("steps.4.eps", 1e-5, r"field 'eps', .*; expected activation, transposed, precision\?"),
        ("steps.4.transposed", KeyError, "no field 'transposed'"),
        ("steps.11.inputs", ["qkv1"], "'qkv1' has rows of qkv, expected rows of tokens"),
        ("steps.11.inputs", ["pooled"], "'pooled' is not made by an earlier step"),
        ("steps.1.precision", "fp4", "precision 'fp4' is unknown"),
        ("steps.1.precision", 8, "wrong type"),
        ("steps.4.weights.scale", ["l0.ffn1.bias"], "weights in 8 bits and a role 'scale' need"),
        ("outputs.pooled_output", "nothing", "'nothing', which no step makes"),
        ("outputs.pooled_output", "x2", "'x2' is listed as two outputs"),
        ("outputs", {}, "no outputs"),
        ("steps", "none", "wrong type"),
    ],
)
def test_broken_plans(made, path, value, message):
    plan, weights = copy.deepcopy(made[0]), made[1]
    change(path, value)(plan)
    with pytest.raises(ModelFormatError, match=message):
        new_engine(plan, weights, threads=1)


def test_an_unknown_precision(made):
    with pytest.raises(ModelFormatError, match="precision 'fp4' is unknown; expected one of fp32"):
        new_engine(*made, threads=1, precision="fp4")


def test_weights_must_be_dense_and_of_a_known_type(made):
    plan, weights = made
    for broken in (weights["word"].astype(np.float64), weights["word"][:, ::-1], "text"):
        with pytest.raises(ModelFormatError, match="'word' is not a C-contiguous array of float32"):
            new_engine(plan, {**weights, "word": broken}, threads=1)
    for broken, kind in ((np.int8, "int8"), (np.uint16, "bfloat16")):
        with pytest.raises(ModelFormatError, match=rf"'word' \(word\) is {kind}, expected float32"):
            new_engine(plan, {**weights, "word": weights["word"].astype(broken)}, threads=1)


def products(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps that a lower precision concerns."""
    ops = ("qkv_linear", "attention", "linear_add_layer_norm", "linear")
    heads = ("pooler", "decoder")
    return [s for s in plan["steps"] if s["op"] in ops and s["name"] not in heads]


def lowered(made, precisions: list[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A plan whose products state precisions, in turn, and store their matrices in them."""
    plan, weights = copy.deepcopy(made[0]), dict(made[1])
    for step, precision in zip(products(plan), itertools.cycle(precisions), strict=False):
        step["precision"] = precision
        roles = step.get("weights", {})
        scales = []
        for i, name in enumerate(roles.get("weight", [])):
            array = made[1][name]
            if precision == "bf16":
                weights[f"{name}.bf16"] = to_bfloat16(array)
            elif precision == "int8":
                quantized, scale = quantize_outputs(array.T if step.get("transposed") else array)
                quantized = quantized.T if step.get("transposed") else quantized
                weights[f"{name}.int8"] = np.ascontiguousarray(quantized)
                weights[f"{name}.scale"] = scale
                scales.append(f"{name}.scale")
            if precision != "fp32":
                roles["weight"][i] = f"{name}.{precision}"
        if scales:
            roles["scale"] = scales
    return plan, weights


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_stored_weights_give_the_bits_of_weights_lowered_while_loading(
    made, rng, isa, monkeypatch, precision
):
    monkeypatch.setenv("BERTRT_ISA", isa)
    batch = batch_of(rng, [1, 5, 64, 17, 33])
    want = new_engine(*made, threads=2, precision=precision).run(*batch, OUTPUTS)
    found = new_engine(*lowered(made, [precision]), threads=2).run(*batch, OUTPUTS)
    for name in OUTPUTS:
        np.testing.assert_array_equal(found[name], want[name])


def test_steps_of_different_precision(made, rng, isa, monkeypatch):
    """Each step runs in its own, between the errors of one for all; a step without one in the
    engine's."""
    monkeypatch.setenv("BERTRT_ISA", isa)
    batch = batch_of(rng, [1, 5, 64, 17, 33])
    exact = new_engine(*made, threads=2).run(*batch, OUTPUTS)["sequence_output"]

    def error(plan: dict[str, Any], weights: dict[str, np.ndarray]) -> float:
        found = new_engine(plan, weights, threads=2).run(*batch, OUTPUTS)["sequence_output"]
        return float(np.sqrt(np.mean((found - exact) ** 2)))

    for cycle in (["int8", "bf16"], ["bf16", "fp32", "int8"], ["fp32", "int8"]):
        mixed = lowered(made, cycle)
        assert 0 < error(*mixed) < error(*lowered(made, ["int8"]))
        kernels = {name: kernel for name, kernel, *_ in new_engine(*mixed, threads=1).steps()}
        for step in products(mixed[0]):
            kind = {"fp32": "f32", "bf16": "bf16", "int8": "s8"}[step["precision"]]
            if step["op"] != "attention":
                assert kernels[step["name"]].startswith(f"gemm_{kind}.")
    plan = copy.deepcopy(made[0])
    products(plan)[0]["precision"] = "fp32"
    kernels = [
        kernel for _, kernel, *_ in new_engine(plan, made[1], threads=1, precision="int8").steps()
    ]
    assert kernels[1].startswith("gemm_f32.") and any(k.startswith("gemm_s8.") for k in kernels)


def test_a_value_that_products_of_different_precision_read(made, rng, isa, monkeypatch):
    """Each reads the rows in its own form."""
    monkeypatch.setenv("BERTRT_ISA", isa)
    plan, weights = copy.deepcopy(made[0]), made[1]
    second = copy.deepcopy(plan["steps"][1]) | {"name": "again", "output": "again"}
    weighing = copy.deepcopy(plan["steps"][2]) | {
        "name": "weights", "op": "attention_weights", "inputs": ["again"], "output": "weights",
    }  # fmt: skip
    plan["steps"][2:2] = [second]
    plan["steps"].append(weighing)
    plan["outputs"]["attention_weights_0"] = "weights"
    batch = batch_of(rng, [5, 64, 17])
    for first, other in itertools.permutations(("fp32", "bf16", "int8"), 2):
        plan["steps"][1]["precision"], plan["steps"][2]["precision"] = first, other
        both = new_engine(plan, weights, threads=2)
        found = both.run(*batch, ["sequence_output", "attention_weights_0"])
        for name in found:
            alone = both.run(*batch, [name])
            np.testing.assert_array_equal(found[name], alone[name])


def test_stored_weights_that_do_not_fit_their_step(made):
    for precision, other in (("int8", "bf16"), ("bf16", "int8"), ("int8", None), ("bf16", "fp32")):
        plan, weights = lowered(made, [precision])
        if other is None:
            del plan["steps"][1]["precision"]
        else:
            plan["steps"][1]["precision"] = other
        with pytest.raises(ModelFormatError, match=r"precision does not fit weights in"):
            new_engine(plan, weights, threads=1)
    plan, weights = lowered(made, ["int8"])
    del plan["steps"][1]["weights"]["scale"]
    with pytest.raises(ModelFormatError, match="in 8 bits and a role 'scale' need each other"):
        new_engine(plan, weights, threads=1)
    plan, weights = lowered(made, ["int8"])
    name = plan["steps"][1]["weights"]["scale"][0]
    with pytest.raises(ModelFormatError, match=r"\(scale\) has shape \(35\), expected"):
        new_engine(plan, weights | {name: weights[name][:-1].copy()}, threads=1)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("ids", [0, 40, 0], "token id 40 at token 1"),
        ("ids", [0, 0, -1], "token id -1 at token 2"),
        ("types", [0, 2, 0], "token type 2 at token 1"),
        ("types", [0, 0], "2 token types"),
        ("ends", [0, 4], "ends at 4"),
        ("ends", [0, 5, 4, 3], "sequence 1 has length -1"),
        ("ends", [1, 3], "does not begin with 0"),
        ("ends", [0], "at least two values"),
        ("masked", [[3]], "masked position 3 of sequence 0"),
        ("masked", [[-1]], "masked position -1"),
        ("masked", [[0], [0]], "shape"),
        ("outputs", ["logits"], "output 'logits' is not one of the model's: sequence_output"),
    ],
)
def test_batches_that_do_not_fit(made, part, value, message):
    batch: dict[str, Any] = {
        "ids": [1, 2, 3],
        "types": [0, 1, 0],
        "ends": [0, 3],
        "masked": [[0]],
        "outputs": OUTPUTS,
        part: value,
    }
    arrays = [np.array(batch[key], np.int32) for key in ("ids", "types", "ends", "masked")]
    if part == "ends":
        arrays[-1] = np.zeros((len(value) - 1, 0), np.int32)
    with pytest.raises(InvalidInputError, match=message):
        new_engine(*made, threads=1).run(*arrays, batch["outputs"])


def test_a_sequence_longer_than_the_model_is_refused(made):
    ids = np.zeros(LENGTH + 1, np.int32)
    ends = np.array([0, LENGTH + 1], np.int32)
    with pytest.raises(InvalidInputError, match="length 65, expected 0 to 64"):
        new_engine(*made, threads=1).run(ids, ids, ends, None, ["sequence_output"])


def test_masked_outputs_need_positions(made):
    ids = np.zeros(3, np.int32)
    with pytest.raises(InvalidInputError, match="needs masked_positions"):
        new_engine(*made, threads=1).run(
            ids, ids, np.array([0, 3], np.int32), None, ["masked_lm_outputs"]
        )


def test_an_instruction_set_that_cannot_be_used(made, monkeypatch):
    monkeypatch.setenv("BERTRT_ISA", "sse9")
    with pytest.raises(DeviceError, match=r"'sse9' cannot be used here; usable are: .*BERTRT_ISA"):
        new_engine(*made, threads=1)


@pytest.mark.parametrize("threads", [0, -1, _native.MAX_THREADS + 1])
def test_a_number_of_threads_that_makes_no_sense(made, threads):
    with pytest.raises(DeviceError, match=rf"threads is {threads}, expected 1 to"):
        new_engine(*made, threads=threads)


def test_calls_from_several_threads(made, rng):
    engine = new_engine(*made, threads=2)
    batches = [batch_of(rng, [int(n) for n in rng.integers(1, LENGTH, 9)]) for _ in range(8)]
    alone = [engine.run(*batch, OUTPUTS) for batch in batches]
    failures = []

    def work(start: int) -> None:
        for i in range(60):
            which = (start + i) % len(batches)
            found = engine.run(*batches[which], OUTPUTS)
            if any((found[name] != alone[which][name]).any() for name in OUTPUTS):
                failures.append(which)

    workers = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_engine_goes_on_after_a_fork(made, rng):
    engine = new_engine(*made, threads=3)
    batch = batch_of(rng, [30, 20, 10])
    before = engine.run(*batch, OUTPUTS)
    child = os.fork()
    if child == 0:
        found = engine.run(*batch, OUTPUTS)
        os._exit(0 if all((found[n] == before[n]).all() for n in OUTPUTS) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    after = engine.run(*batch, OUTPUTS)
    np.testing.assert_array_equal(after["sequence_output"], before["sequence_output"])


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs 2 cores"
)
def test_workers_are_woken_on_any_core_but_the_callers(made, rng):
    def core() -> int:
        fields = Path(f"/proc/self/task/{threading.get_native_id()}/stat").read_text()
        return int(fields.rpartition(")")[2].split()[36])  # man 5 proc: "processor"

    batch = batch_of(rng, [30, 20, 10])
    others = set(os.listdir("/proc/self/task"))
    engine = new_engine(*made, threads=3)
    engine.run(*batch, OUTPUTS)
    workers = [int(each) for each in set(os.listdir("/proc/self/task")) - others]
    assert len(workers) == 2
    for _ in range(100):  # the caller may move, and workers be awake, at any time
        time.sleep(0.01)
        wanted = os.sched_getaffinity(0) - {core()}
        engine.run(*batch, OUTPUTS)
        found = [os.sched_getaffinity(worker) for worker in workers]
        if found == [wanted, wanted]:
            break
    assert found == [wanted, wanted]


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_memory_stays_where_it_is(made, rng):
    engine = new_engine(*made, threads=2)

    def some(count: int) -> None:
        for _ in range(count):
            seqs = int(rng.integers(1, 40))
            batch = batch_of(rng, [int(n) for n in rng.integers(1, LENGTH + 1, seqs)])
            engine.run(*batch, OUTPUTS)

    engine.run(*batch_of(rng, [LENGTH] * 40), OUTPUTS)
    some(100)
    before = resident_bytes()
    some(2000)
    assert resident_bytes() - before < 1 << 20


def widened(made, out: int, into: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A plan whose rows at masked positions become `out` columns, and then one."""
    plan, weights = copy.deepcopy(made[0]), dict(made[1])
    del plan["steps"][-2:]
    value = "masked"
    for i, (rows, columns) in enumerate([(into, HIDDEN), (out, into), (1, out)]):
        if columns > 65536:
            break
        weights[f"wide{i}"] = np.ones((rows, columns), np.float32)
        plan["steps"].append(
            {
                "op": "linear",
                "name": f"wide{i}",
                "inputs": [value],
                "output": f"wide{i}",
                "weights": {"weight": [f"wide{i}"]},
                "activation": "none",
                "transposed": False,
            }
        )
        value = f"wide{i}"
    plan["outputs"] = {"pooled_output": "pooled", "masked_lm_outputs": value}
    return plan, weights


def test_a_result_that_no_machine_has_the_memory_for(made, rng):
    engine = new_engine(*widened(made, 1 << 22, 1), threads=1)
    ids, types, ends, _ = batch_of(rng, [3])
    masked = np.zeros((1, 1 << 23), np.int32)  # of 2^47 bytes: more than there are addresses
    with pytest.raises(OutOfMemoryError, match="memory") as caught:
        engine.run(ids, types, ends, masked, ["masked_lm_outputs"])
    assert isinstance(caught.value, MemoryError) and isinstance(caught.value, BertrtError)
    assert np.isfinite(engine.run(ids, types, ends, None, ["pooled_output"])["pooled_output"]).all()


SHORT_OF_MEMORY = """
import resource, sys, runpy
import numpy as np
tests = runpy.run_path(sys.argv[1])
rng = np.random.default_rng(0)
made = tests["make_plan"](rng)
engine = tests["new_engine"](*tests["widened"](made, 1 << 15, 4), threads=1)
ids, types, ends, _ = tests["batch_of"](rng, [3])
few, many = np.zeros((1, 4), np.int32), np.zeros((1, 1 << 16), np.int32)
before = engine.run(ids, types, ends, few, ["masked_lm_outputs"])["masked_lm_outputs"]
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
try:
    engine.run(ids, types, ends, many, ["masked_lm_outputs"])
except tests["OutOfMemoryError"] as error:
    print(error)
after = engine.run(ids, types, ends, few, ["masked_lm_outputs"])["masked_lm_outputs"]
assert (before == after).all()
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_memory_between_two_steps_that_is_not_there():
    # 2^16 rows of 2^15 columns, 8 GiB, where 1 GiB is left.
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, __file__], capture_output=True, text=True
    )
    assert done.returncode == 0 and "does not suffice" in done.stdout, done.stderr


def test_engines_of_one_model_share_it_and_run_apart(made, rng):
    model = _native.Model(*made)
    batch = batch_of(rng, [3, 1, 5])
    expected = new_engine(*made, threads=1).run(*batch, OUTPUTS)
    engines = [_native.Engine(model, threads, trace=True) for threads in (1, 2, 3)]
    del model
    for engine in engines:
        found = engine.run(*batch, OUTPUTS)
        for name in OUTPUTS:
            np.testing.assert_array_equal(found[name], expected[name])
    engines[0].run(*batch, OUTPUTS)
    assert all(seconds > 0 for _, _, seconds, _, _ in engines[1].steps())


def test_weights_are_fetched_step_by_step_and_go_when_they_are_packed(made, rng):
    plan, weights = made
    batch = batch_of(rng, [3, 1, 5])
    expected = new_engine(plan, weights, threads=1).run(*batch, OUTPUTS)
    places = {
        name: SimpleNamespace(name=name, dtype=array.dtype, shape=array.shape)
        for name, array in weights.items()
    }
    alive: dict[str, weakref.ref] = {}
    tables = {"word", "type", "position"}

    def fetch(wanted):
        for name, array in alive.items():  # those of steps before
            assert array() is None or name in tables, name
        arrays = [weights[place.name].copy() for place in wanted]
        alive.update({p.name: weakref.ref(array) for p, array in zip(wanted, arrays, strict=True)})
        return arrays

    model = _native.Model(plan, places, fetch=fetch)
    assert alive.keys() == weights.keys()
    assert {name for name, array in alive.items() if array() is not None} == tables
    found = _native.Engine(model, 1).run(*batch, OUTPUTS)
    for name in OUTPUTS:
        np.testing.assert_array_equal(found[name], expected[name])
    del model
    assert not any(array() is not None for array in alive.values())


def test_what_is_fetched_is_what_was_announced(made):
    plan, weights = made
    places = {
        name: SimpleNamespace(array=array, dtype=array.dtype, shape=array.shape)
        for name, array in weights.items()
    }
    wrong = {
        "transposed": lambda place: np.ascontiguousarray(place.array.T)[1:],
        "double": lambda place: place.array.astype(np.float64),
        "no array": lambda place: None,
    }
    for spoil in wrong.values():
        with pytest.raises(ModelFormatError, match="was read as another array"):
            _native.Model(plan, places, fetch=lambda wanted, f=spoil: [f(p) for p in wanted])
    with pytest.raises(KeyError):  # an error of the reader's own
        _native.Model(plan, places, fetch=lambda wanted: {}["x"])
    with pytest.raises(ModelFormatError, match="is not a C-contiguous array"):
        _native.Model(plan, places)
