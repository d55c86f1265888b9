"""What the plan's bounds protect holds up to them, and plans beyond them are refused."""

from __future__ import annotations

import numpy as np
import pytest
import test_native_engine as handmade

from bertrt import ModelFormatError, _native

MOST_INPUTS = 65536


@pytest.mark.parametrize(("row", "low"), [(3.0, 3.0), (-3.0, -3.0), (3.0, -3.0)])
def test_int8_sums_of_the_most_inputs_do_not_overflow(isa, row, low):
    """255 * 127 * 65,536 is 99 % of what 32 bits hold: every product is the largest there is, or,
    where a kernel takes the zero point off again, its share of the weights' sum is."""
    x = np.full((2, MOST_INPUTS), row, np.float32)
    x[:, 0] = low
    weight = np.full((17, MOST_INPUTS), -2.0, np.float32)
    found = _native.kernels.linear(isa, x, weight, precision="int8")
    exact = x[:1].astype(np.float64) @ weight.T.astype(np.float64)
    # The row's own steps are exact at its ends, but for where zero falls: half of one at most.
    bound = np.abs(exact) * 1e-6 + (0 if row == low else MOST_INPUTS * 2.0 * 6 / 255 / 2)
    assert (np.abs(found - exact) <= bound).all()


def wide_plan(inputs: int) -> tuple[dict, dict[str, np.ndarray]]:
    """One token of so many values, and a product over them."""
    weights = {
        "table": np.zeros((1, inputs), np.float32),
        "norm": np.ones(inputs, np.float32),
        "matrix": np.ones((2, inputs), np.float32),
    }
    embeddings = {
        "op": "embed_layer_norm",
        "name": "embeddings",
        "inputs": [],
        "output": "x",
        "weights": {
            "word": ["table"],
            "position": ["table"],
            "gamma": ["norm"],
            "beta": ["norm"],
        },
        "eps": 1e-12,
    }
    product = {
        "op": "linear",
        "name": "wide",
        "inputs": ["x"],
        "output": "y",
        "weights": {"weight": ["matrix"]},
        "transposed": False,
        "activation": "none",
    }
    plan = {
        "version": 1,
        "architecture": {
            "hidden": inputs,
            "vocab_size": 1,
            "type_vocab_size": 0,
            "max_length": 1,
        },
        "steps": [embeddings, product],
        "outputs": {"sequence_output": "y"},
    }
    return plan, weights


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_product_over_more_inputs_is_refused(precision):
    model = _native.Model(*wide_plan(MOST_INPUTS), precision)
    one, ends = np.zeros(1, np.int32), np.array([0, 1], np.int32)
    found = _native.Engine(model, 1).run(one, one, ends, None, ["sequence_output"])
    np.testing.assert_array_equal(found["sequence_output"], np.full((1, 2), MOST_INPUTS))
    with pytest.raises(ModelFormatError, match=r"'wide' .*product over 65537 inputs, at most"):
        _native.Model(*wide_plan(MOST_INPUTS + 1), precision)


def test_a_refusal_has_both_numbers(rng):
    plan, weights = handmade.make_plan(rng)
    plan["steps"][2]["heads"] = 2
    with pytest.raises(ModelFormatError, match="108 columns, expected 72"):
        _native.Model(plan, weights)
