"""Layers that share their weights: packed once, and the bits of layers that have their own."""

from __future__ import annotations

import copy
import os
from typing import Any

import numpy as np
import pytest
import test_native_engine as handmade

from bertrt.plan.quantized import quantize_outputs, to_bfloat16

PRECISIONS = ["fp32", "bf16", "int8"]


def share(plan: dict[str, Any], layers: int) -> dict[str, Any]:
    """A plan of so many layers, all with the weights of the first one."""
    embeddings, layer = plan["steps"][0], plan["steps"][1:6]
    steps = [embeddings]
    for index in range(layers):
        for step in copy.deepcopy(layer):
            step["name"] = step["name"].replace("layer0", f"layer{index}")
            step["inputs"] = [rename(value, index) for value in step["inputs"]]
            step["output"] = rename(step["output"], index)
            steps.append(step)
    return plan | {"steps": steps, "outputs": {"sequence_output": f"x{layers}"}}


def rename(value: str, index: int) -> str:
    return f"{value[:-1]}{int(value[-1]) + index}"


def own(plan: dict[str, Any], weights: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """The same with a copy of every array for each step."""
    plan, copies = copy.deepcopy(plan), {}
    for step in plan["steps"]:
        for role, names in step["weights"].items():
            step["weights"][role] = [f"{step['name']}.{name}" for name in names]
            copies |= {f"{step['name']}.{name}": weights[name].copy() for name in names}
    return plan, copies


def stored(plan: dict[str, Any], weights: dict[str, np.ndarray], precision: str):
    """The same, its steps stating a precision and its matrices stored in it."""
    plan, weights = copy.deepcopy(plan), dict(weights)
    for step in plan["steps"]:
        if step["op"] == "embed_layer_norm":
            continue
        step["precision"] = precision
        names = step["weights"].get("weight", [])
        if precision == "int8" and names:
            step["weights"]["scale"] = [f"{name}.scale" for name in names]
        for name in names:
            if weights[name].dtype == np.float32 and precision == "bf16":
                weights[name] = to_bfloat16(weights[name])
            elif weights[name].dtype == np.float32:
                weights[name], weights[f"{name}.scale"] = quantize_outputs(weights[name])
    return plan, weights


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bits(rng, isa, monkeypatch, precision):
    monkeypatch.setenv("BERTRT_ISA", isa)
    plan, weights = handmade.make_plan(rng)
    plan = share(plan, 3)
    batch = (*handmade.batch_of(rng, [1, 5, 64, 17])[:3], None, ["sequence_output"])
    shared = handmade.new_engine(plan, weights, threads=2, precision=precision).run(*batch)
    apart = handmade.new_engine(*own(plan, weights), threads=2, precision=precision).run(*batch)
    np.testing.assert_array_equal(shared["sequence_output"], apart["sequence_output"])
    if precision != "fp32":
        found = handmade.new_engine(*stored(plan, weights, precision), threads=2).run(*batch)
        np.testing.assert_array_equal(found["sequence_output"], apart["sequence_output"])


def test_one_array_read_in_two_ways(rng):
    """Transposed or not, by other heads, in another precision: each is packed for itself."""
    plan, weights = handmade.make_plan(rng)
    plan = share(plan, 2)
    first, second = plan["steps"][3], plan["steps"][8]
    assert first["weights"]["weight"] == second["weights"]["weight"]
    second["transposed"] = True
    batch = (*handmade.batch_of(rng, [5, 64])[:3], None, ["sequence_output"])
    for precisions in ((None, None), ("int8", "fp32"), ("bf16", "int8")):
        for step, precision in zip((first, second), precisions, strict=True):
            step.pop("precision", None)
            if precision:
                step["precision"] = precision
        found = handmade.new_engine(plan, weights, threads=1).run(*batch)
        apart = handmade.new_engine(*own(plan, weights), threads=1).run(*batch)
        np.testing.assert_array_equal(found["sequence_output"], apart["sequence_output"])


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_memory(rng):
    """12 layers take no more than one does, but for their biases."""
    hidden, ffn = 384, 1536

    def make(layers: int) -> tuple[dict, dict]:
        plan, weights = handmade.make_plan(rng)
        wide = {36: hidden, 50: ffn}
        weights = {
            name: np.ones([wide.get(n, n) for n in array.shape], np.float32)
            for name, array in weights.items()
        }
        plan = share(plan, layers)
        plan["architecture"] = plan["architecture"] | {"hidden": hidden}
        for step in plan["steps"]:
            if "head_dim" in step:
                step["head_dim"] = hidden // step["heads"]
        return plan, {
            name: weights[name]
            for step in plan["steps"]
            for names in step["weights"].values()
            for name in names
        }

    packed = 4 * (4 * hidden * hidden + 2 * hidden * ffn)
    plan, weights = make(12)
    handmade.new_engine(*make(1), threads=1)
    before = handmade.resident_bytes()
    engine = handmade.new_engine(plan, weights, threads=1)
    assert handmade.resident_bytes() - before < 3 * packed
    assert engine.threads == 1
