"""Weights in fewer bits, plans that state precisions, and smoothing that changes no bit of fp32."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from bertrt import DeviceError, Engine, InvalidInputError
from bertrt.backends.base import load_backend
from bertrt.models.bundle import write_plan
from bertrt.models.model import Model
from bertrt.models.safetensors import read_safetensors, write_safetensors
from bertrt.plan.interpret import interpret
from bertrt.plan.plan import Plan
from bertrt.plan.quantized import (
    fp8_outputs,
    from_bfloat16,
    from_e4m3,
    product_steps,
    quantize_outputs,
    state_precisions,
    store_quantized,
    to_bfloat16,
)
from bertrt.plan.smoothing import smooth, smoothing_pairs
from bertrt.plan.steps import Step
from bertrt.plan.weights import Constant


def test_each_output_is_quantised_by_itself() -> None:
    weight = np.array([[1.0, -2.0, 0.5], [0, 0, 0], [1e-3, 127e-3, -63.5e-3]], np.float32)
    steps, scales = quantize_outputs(weight)
    assert steps.dtype == np.int8 and scales.dtype == np.float32
    # 63.5 of 127 and -63.5: ties go to even.
    assert steps.tolist() == [[64, -127, 32], [0, 0, 0], [1, 127, -64]]
    np.testing.assert_array_equal(scales, np.float32([2 / 127, 0, 127e-3 / 127]))
    # So small that 127 over it overflows.
    steps, _ = quantize_outputs(np.array([[1e-40, -2e-40]], np.float32))
    assert steps.tolist() == [[0, 0]]
    for broken in (np.nan, np.inf):
        with pytest.raises(InvalidInputError, match="not finite"):
            quantize_outputs(np.array([[1.0, broken]], np.float32))


def test_bfloat16_rounds_to_nearest_and_ties_to_even() -> None:
    ulp = np.float32(2.0**-7)
    values = np.array(
        [1, 1 + ulp / 2, 1 + 1.5 * ulp, 1 + 0.51 * ulp, -1 - ulp / 2, 3.4e38, 1e-45, -0.0, np.inf],
        np.float32,
    )
    expected = [1, 1, 1 + 2 * ulp, 1 + ulp, -1, np.inf, 0, -0.0, np.inf]
    found = from_bfloat16(to_bfloat16(values))
    np.testing.assert_array_equal(found, np.float32(expected))
    assert np.signbit(found[7]) and np.isnan(from_bfloat16(to_bfloat16(np.float32([np.nan]))))
    every = np.arange(1 << 16, dtype=np.uint16)
    every = every[~np.isnan(from_bfloat16(every))]
    np.testing.assert_array_equal(to_bfloat16(from_bfloat16(every)), every)


@pytest.fixture
def plan(hugging) -> Plan:
    config = hugging.config | {"num_hidden_layers": 2, "hidden_act": "relu"}
    weights = hugging.weights(config)
    # A few channels of value, and of the FFN's inside, stand out, and count for as much as others.
    for index in range(2):
        layer = f"encoder.layer.{index}"
        for maker, reader in (
            ("attention.self.value", "attention.output.dense"),
            ("intermediate.dense", "output.dense"),
        ):
            weights[f"{layer}.{maker}.weight"][::5] *= 40
            weights[f"{layer}.{maker}.bias"][::5] *= 40
            weights[f"{layer}.{reader}.weight"][:, ::5] /= 40
    return Model.open(hugging.write(config, weights)).plan()


def in_one_array(plan: Plan) -> Plan:
    """The plan with interleaved projections, and with all matrices transposed."""
    steps, weights = [], {}
    for step in plan.steps:
        roles = dict(step.weights)
        fields = dict(step.fields)
        arrays = {
            role: [plan.weights[name].array for name in names] for role, names in roles.items()
        }
        if step.op == "qkv_linear":
            heads, dim = fields["heads"], fields["head_dim"]
            for role in ("weight", "bias"):
                parts = [a.reshape(heads, 1, dim, *a.shape[1:]) for a in arrays[role]]
                joined = np.concatenate(parts, axis=1)
                arrays[role] = [joined.reshape(3 * heads * dim, *joined.shape[3:])]
                roles[role] = roles[role][:1]
                fields[f"{role}_layout"] = "interleaved"
        if "transposed" in fields:
            fields["transposed"] = True
            arrays["weight"] = [np.ascontiguousarray(a.T) for a in arrays["weight"]]
        for role, names in roles.items():
            for name, array in zip(names, arrays[role], strict=True):
                weights[name] = Constant(name, array)
        steps.append(dataclasses.replace(step, weights=roles, fields=fields))
    return dataclasses.replace(plan, steps=tuple(steps), weights=weights)


def engine_of(plan: Plan, path, precision: str = "fp32") -> Engine:
    model = Model.open(path).with_plan(plan)
    return Engine(
        model,
        lambda: load_backend(model, "native", device="cpu", precision=precision, threads=2),
        {"path": str(path), "backend": "native"},
    )


@pytest.fixture
def path(hugging, plan):
    return hugging.root / "model"


def test_heads_and_embeddings_are_left_alone(plan) -> None:
    assert [step.name for step in product_steps(plan)] == [
        f"layer{layer}.{part}"
        for layer in range(2)
        for part in ("qkv", "attention", "attention_output", "ffn", "ffn_output")
    ]
    # A head over tokens, whose result is the model's.
    width = plan.architecture["hidden"]
    weight = Constant("head", np.zeros((3, width), np.float32))
    head = Step(
        "linear", "head", (plan.outputs["sequence_output"],), "head",
        {"weight": ("head",)}, {"activation": "none", "transposed": False},
    )  # fmt: skip
    tagger = dataclasses.replace(
        plan,
        steps=(*plan.steps, head),
        outputs={"logits": "head"},
        weights=plan.weights | {"head": weight},
    )
    assert product_steps(tagger) == product_steps(plan)


@pytest.mark.parametrize("layout", [lambda plan: plan, in_one_array])
@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_a_stored_plan_gives_the_bits_of_the_precision(
    plan, path, hugging, tmp_path, layout, precision
) -> None:
    plan = layout(plan)
    batch = hugging.batch(hugging.config)
    stated = state_precisions(plan, {step.name: precision for step in product_steps(plan)})
    stored = store_quantized(stated)
    assert (plan.precision, stated.precision, stored.precision) == (None, precision, precision)
    # As a bundle holds it.
    arrays = {name: constant.array for name, constant in stored.weights.items()}
    placed = write_safetensors(tmp_path / "weights.safetensors", arrays)
    write_plan(dataclasses.replace(stored, weights=placed), tmp_path)
    read = Plan.from_dict(json.loads((tmp_path / "plan.json").read_text()), tmp_path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read.weights[name].array, array)
    # Other readers of safetensors see the same numbers.
    for name, constant in read_safetensors(tmp_path / "weights.safetensors").items():
        same = from_bfloat16(arrays[name]) if arrays[name].dtype == np.uint16 else arrays[name]
        np.testing.assert_array_equal(constant.array, same)
    want = engine_of(plan, path, precision).run(**batch)
    for own in (stated, stored, read):
        found = engine_of(own, path, precision).run(**batch)
        for name, array in want.items():
            np.testing.assert_array_equal(found[name], array)


def scaled(weight: np.ndarray, precision: str) -> np.ndarray:
    """What the weights of an output each are worth in 8 bits."""
    if precision == "fp8":
        codes, scale = fp8_outputs(weight)
        return from_e4m3(codes) * scale[:, None]
    integers, scale = quantize_outputs(weight)
    return integers * scale[:, None]


@pytest.mark.parametrize("layout", [lambda plan: plan, in_one_array])
def test_what_a_stored_plan_means(plan, hugging, layout) -> None:
    """The integers, or e4m3 numbers, times their output's scale, the bfloat16 values: in double
    precision that is the plan with those numbers."""
    batch = hugging.batch(hugging.config)
    plan = layout(plan)
    for precision in ("bf16", "int8", "fp8"):
        weights = dict(plan.weights)
        for step in product_steps(plan):
            for name in step.weights.get("weight", ()):
                array = plan.weights[name].array
                if precision == "bf16":
                    values = from_bfloat16(to_bfloat16(array))
                else:
                    transposed = step.fields["transposed"]
                    values = scaled(array.T if transposed else array, precision)
                    values = values.T if transposed else values
                weights[name] = Constant(name, np.ascontiguousarray(values, np.float32))
        names = {step.name: precision for step in product_steps(plan)}
        stored = store_quantized(state_precisions(plan, names))
        want = interpret(dataclasses.replace(plan, weights=weights), batch)
        found = interpret(stored, batch)
        for name, array in want.items():
            # A product of scale and integer is rounded to float32 on one side only.
            np.testing.assert_allclose(found[name], array, atol=2e-5)
        assert np.abs(interpret(plan, batch)[name] - array).max() > 1e-3


def test_a_stored_plan_runs_in_its_own_precision_only(plan, path) -> None:
    names = [step.name for step in product_steps(plan)]
    mixed = state_precisions(plan, dict.fromkeys(names, "bf16") | {names[0]: "int8"})
    stored = store_quantized(mixed)
    assert stored.precision == "int8"
    text = engine_of(stored, path, "int8").explain()
    first = next(line for line in text.splitlines() if line.startswith(names[0]))
    assert "gemm_s8" in first and "gemm_bf16" in text
    for precision in ("fp32", "bf16"):
        with pytest.raises(DeviceError, match=f"quantised to int8.* no weights for {precision}"):
            engine_of(stored, path, precision)


def test_the_weight_that_is_not_finite_is_named(plan) -> None:
    name = plan.steps[1].weights["weight"][1]
    broken = plan.weights[name].array.copy()
    broken[3, 3] = np.inf
    broken_plan = dataclasses.replace(plan, weights=plan.weights | {name: Constant(name, broken)})
    with pytest.raises(InvalidInputError, match=f"step 'layer0.qkv', weight '{name}'"):
        store_quantized(state_precisions(broken_plan, {"layer0.qkv": "int8"}))


@pytest.mark.parametrize("layout", [lambda plan: plan, in_one_array])
def test_smoothing_changes_no_bit_of_fp32_and_helps_int8(plan, path, hugging, layout) -> None:
    plan = layout(plan)
    batch = hugging.batch(hugging.config)
    exact = engine_of(plan, path).run(**batch)
    pairs = smoothing_pairs(plan)
    assert [(pair.maker.name, pair.reader.name) for pair in pairs] == [
        (f"layer{layer}.{maker}", f"layer{layer}.{reader}")
        for layer in range(2)
        for maker, reader in (("qkv", "attention_output"), ("ffn", "ffn_output"))
    ]
    for pair in pairs:
        names = [pair.reader.name]
        widths = {True: 0, False: 1}[pair.reader.fields["transposed"]]
        width = plan.weights[pair.reader.weights["weight"][0]].array.shape[widths]
        largest = np.ones(width, np.float32)
        largest[::5] = 40
        largest[1] = 0  # a column that is never used
        smoothed = smooth(plan, pair, largest)
        changed = [
            name for name in plan.weights if smoothed.weights[name] is not plan.weights[name]
        ]
        assert len(changed) == 3
        found = engine_of(smoothed, path).run(**batch)
        errors = []
        for own in (plan, smoothed):
            lowered = state_precisions(own, dict.fromkeys(names, "int8"))
            out = engine_of(lowered, path, "int8").run(**batch)["sequence_output"]
            errors.append(np.sqrt(np.mean((out - exact["sequence_output"]) ** 2)))
        for name, array in exact.items():
            np.testing.assert_array_equal(found[name], array)
        assert 0 < errors[1] < errors[0]


def test_what_cannot_be_smoothed(plan) -> None:
    """A GELU lets no factor through; an activation that somebody else reads has to stay; so have
    weights with two users."""
    gelu = dataclasses.replace(
        plan,
        steps=tuple(
            dataclasses.replace(step, fields=step.fields | {"activation": "gelu_erf"})
            if step.name.endswith("ffn")
            else step
            for step in plan.steps
        ),
    )
    assert {pair.reader.name for pair in smoothing_pairs(gelu)} == {
        "layer0.attention_output", "layer1.attention_output",
    }  # fmt: skip
    seen = dataclasses.replace(plan, outputs=plan.outputs | {"encoding_0": "layer0.attention"})
    assert "layer0.attention_output" not in {p.reader.name for p in smoothing_pairs(seen)}
    first, second = (step for step in plan.steps if step.op == "qkv_linear")
    shared = tuple(
        dataclasses.replace(step, weights=dict(first.weights)) if step is second else step
        for step in plan.steps
    )
    used = {name for step in shared for names in step.weights.values() for name in names}
    tied = dataclasses.replace(
        plan, steps=shared, weights={name: plan.weights[name] for name in used}
    )
    assert {pair.reader.name for pair in smoothing_pairs(tied)} == {
        "layer0.ffn_output", "layer1.ffn_output",
    }  # fmt: skip
