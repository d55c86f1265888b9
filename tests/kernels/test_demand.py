"""Values that several steps read in different ways: whatever else is asked for, the same bits."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import test_native_engine as handmade

HIDDEN = handmade.HIDDEN


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_every_set_of_outputs_has_the_same_bits(rng, isa, monkeypatch, precision, threads):
    """A product's result that another product reads and the caller too; one that two products
    read; one that a product reads for all tokens, another for first tokens only; and embeddings
    that nobody reads but for first tokens."""
    monkeypatch.setenv("BERTRT_ISA", isa)
    plan, weights = copy.deepcopy(handmade.make_plan(rng))
    weights["side"] = rng.normal(size=(HIDDEN, HIDDEN)).astype(np.float32)
    weights["twice"] = rng.normal(size=(HIDDEN, handmade.FFN)).astype(np.float32)
    linear = {"op": "linear", "activation": "relu", "transposed": False, "precision": precision}
    plan["steps"] += [
        linear | {
            "name": "side", "inputs": ["x1"], "output": "side", "weights": {"weight": ["side"]},
        },
        {"op": "first_token", "name": "cut", "inputs": ["side"], "output": "cut", "weights": {}},
        {"op": "first_token", "name": "first0", "inputs": ["x0"], "output": "y0", "weights": {}},
        linear | {
            "name": "twice", "inputs": ["f0"], "output": "twice", "weights": {"weight": ["twice"]},
        },
    ]  # fmt: skip
    plan["outputs"] = {
        name: name for name in ("x0", "x2", "pooled", "f0", "side", "cut", "twice", "y0")
    }
    engine = handmade.new_engine(plan, weights, threads=threads, precision=precision)
    # Rows enough for threads to take blocks of them through several steps; and too few.
    for lengths in ([64] * 9 + [5, 1, 33], [5, 64, 17]):
        batch = handmade.batch_of(rng, lengths)
        alone = {name: engine.run(*batch, [name])[name] for name in plan["outputs"]}
        ends = batch[2]
        np.testing.assert_array_equal(alone["cut"], alone["side"][ends[:-1]])
        np.testing.assert_array_equal(alone["y0"], alone["x0"][ends[:-1]])
        for count in (2, len(alone)):
            for names in itertools.combinations(plan["outputs"], count):
                for name, found in engine.run(*batch, list(names)).items():
                    np.testing.assert_array_equal(found, alone[name], err_msg=f"{name} of {names}")
