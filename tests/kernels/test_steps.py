"""Each step of a plan gives the bits of its kernels in the precision that it states."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import test_native_engine as handmade

from bertrt import _native

kernels = _native.kernels


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("stated", [False, True])
def test_a_layer(rng, isa, monkeypatch, precision, threads, stated):
    monkeypatch.setenv("BERTRT_ISA", isa)
    plan, weights = copy.deepcopy(handmade.make_plan(rng))
    layer = plan["steps"][:6]
    qkv, attention, projection, _, ffn_output = layer[1:]
    plan["outputs"] = {step["output"]: step["output"] for step in layer}
    if stated:
        for step in layer[1:]:
            step["precision"] = precision
    engine = handmade.new_engine(
        plan, weights, threads=threads, precision="fp32" if stated else precision
    )
    ids, types, ends, _ = handmade.batch_of(rng, [64, 1, 17, 64, 33])
    found = engine.run(ids, types, ends, None, list(plan["outputs"]))

    def same(name: str, expected: np.ndarray) -> None:
        np.testing.assert_array_equal(found[name], expected, err_msg=name)

    def linear(x: str, names: dict, activation: str = "none") -> np.ndarray:
        weight, bias = (np.concatenate([weights[n] for n in names[r]]) for r in ("weight", "bias"))
        return kernels.linear(isa, found[x], weight, bias, activation, precision=precision)

    def norm(x: np.ndarray, step: dict, residual: str | None = None) -> np.ndarray:
        gamma, beta = (weights[step["weights"][role][0]] for role in ("gamma", "beta"))
        plus = None if residual is None else found[residual]
        return kernels.layer_norm(isa, x, gamma, beta, step["eps"], plus)

    places = np.concatenate([np.arange(n) for n in np.diff(ends)])
    rows = weights["word"][ids] + weights["type"][types] + weights["position"][places]
    same("x0", norm(rows, layer[0]))
    same("qkv0", linear("x0", qkv["weights"]))
    shape = handmade.HEADS, attention["scale"]
    same("context0", kernels.attention(isa, found["qkv0"], ends, *shape, precision=precision))
    same("a0", norm(linear("context0", projection["weights"]), projection, "x0"))
    same("f0", linear("a0", layer[4]["weights"], "gelu_erf"))
    same("x1", norm(linear("f0", ffn_output["weights"]), ffn_output, "a0"))
