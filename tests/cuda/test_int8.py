"""int8 on the CUDA backend: the very integers of the CPU's, and what they are worth to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from bertrt.export.huggingface import import_huggingface

from bertrt import DeviceError, Engine, _native
from bertrt.backends.native import UNPROVEN_INT8
from bertrt.evaluation.quantize import quantize
from bertrt.evaluation.verify import verify
from bertrt.models.model import Model
from bertrt.plan.quantized import product_steps, state_precisions, store_quantized

TILES = ["small", "medium", "large", "wide"]
COUNTS = [1, 2, 15, 16, 17, 127, 128, 129]  # of rows, around the tensor cores' and the tiles'
IDS = np.array([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0], [2, 3, 0, 0, 0]])
LENGTHS = np.array([5, 3, 0])


def half(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float16).view(np.uint16)


def quantised(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights in 127ths of the largest of their output; csrc/core/int8.h."""
    limit = np.abs(weight).max(axis=1)
    scale = (limit / np.float32(127)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scale > 0, np.float32(127) / limit, 0).astype(np.float32)
    return np.rint(weight * inverse[:, None]).astype(np.int8), scale


def rows_of(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """Rows of fp16: around zero, on either side of it alone, of zeros, and with an outlier."""
    x = rng.normal(size=(rows, cols)).astype(np.float32)
    x[1::5] = np.abs(x[1::5])
    x[2::5] = -np.abs(x[2::5])
    x[3::5] = 0
    x[4::5, 0] = 300
    return x.astype(np.float16).astype(np.float32)


def on_cpu(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, activation: str = "none"
) -> np.ndarray:
    """What the CPU makes of the same in int8, in float32."""
    return _native.kernels.linear("portable", x, weight, bias, activation, 1, "int8")


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (5, 7), (6, 8), (9, 300), (4, 768), (7, 1031)])
def test_rows_in_255_steps(cuda, rng, rows, cols):
    x = rows_of(rng, rows, cols)
    found = cuda.kernels.quantise_rows(half(x))
    at = -(-cols // 16) * 16
    assert found.shape == (rows, at + 16)
    scale = found[:, at : at + 4].copy().view(np.float32)[:, 0]
    zero = found[:, at + 4 : at + 8].copy().view(np.int32)[:, 0]
    low, high = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
    span = high - low
    np.testing.assert_array_equal(scale, span / np.float32(255))
    with np.errstate(divide="ignore"):
        inverse = np.where(span > 0, np.float32(255) / span, 0).astype(np.float32)
    np.testing.assert_array_equal(zero, (-low * inverse + np.float32(0.5)).astype(np.int32))
    q = np.rint(x * inverse[:, None]).astype(np.int32) + zero[:, None]
    np.testing.assert_array_equal(found[:, :cols], np.clip(q, 0, 255))


# For tiles of 32, 64 and 128 rows, as many columns or twice as many, and 64 inputs at a time.
@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize(
    ("rows", "columns", "depth"),
    [
        (1, 1, 1),
        (31, 33, 15),
        (33, 31, 64),
        (65, 63, 97),
        (17, 129, 128),
        (129, 65, 16),
        (2, 3, 770),
    ],
)
def test_sums_are_the_cpu_s(cuda, rng, tiles, rows, columns, depth):
    x = rows_of(rng, rows, depth)
    weight = rng.normal(size=(columns, depth)).astype(np.float32)
    bias = rng.normal(size=columns).astype(np.float32)
    more = rng.normal(size=(rows, columns)).astype(np.float16)
    values, scale = quantised(weight)
    want = on_cpu(x, weight, bias)
    found = cuda.kernels.linear_s8(half(x), values, scale, bias, tiles=tiles)
    np.testing.assert_array_equal(found, half(want))
    found = cuda.kernels.linear_s8(half(x), values, scale, bias, residual=half(more), tiles=tiles)
    np.testing.assert_array_equal(found, half(want + more.astype(np.float32)))


@pytest.mark.parametrize("activation", ["relu", "gelu_erf", "gelu_tanh", "tanh"])
def test_what_follows_the_sums(cuda, rng, activation):
    x = rows_of(rng, 20, 40)
    weight = rng.normal(size=(43, 40)).astype(np.float32)
    values, scale = quantised(weight)
    found = cuda.kernels.linear_s8(half(x), values, scale, activation=activation)
    # The CPU's GELU is short in int8, 4.6e-5; the device's is not.
    want = on_cpu(x, weight, activation=activation)
    np.testing.assert_allclose(found.view(np.float16), want, rtol=2.0**-10, atol=1e-4)


def test_the_largest_sums_fit(cuda):
    """65,536 inputs of 255 * 127 each, with a zero point of 255 too."""
    for sign in (1, -1):
        x = np.full((1, 65_536), sign, np.float32)
        weight = np.full((2, 65_536), 0.01, np.float32) * np.array([[1], [-1]], np.float32)
        values, scale = quantised(weight)
        found = cuda.kernels.linear_s8(half(x), values, scale)
        np.testing.assert_array_equal(found, half(on_cpu(x, weight)))
        assert np.isfinite(found.view(np.float16)).all()


@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_makes_nothing_plausible(cuda, rng, poison):
    x = rows_of(rng, 3, 40)
    x[1, 17] = poison
    values, scale = quantised(rng.normal(size=(9, 40)).astype(np.float32))
    found = cuda.kernels.linear_s8(half(x), values, scale).view(np.float16)
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()


def test_a_row_has_the_same_bits_in_any_batch_and_tiles(cuda, rng):
    x = rows_of(rng, 150, 100)
    values, scale = quantised(rng.normal(size=(75, 100)).astype(np.float32))
    bias = rng.normal(size=75).astype(np.float32)
    whole = cuda.kernels.linear_s8(half(x), values, scale, bias, "gelu_erf")
    for tiles in TILES:
        for begin, end in [(149, 150), (3, 18), (20, 36), (5, 132), *((0, n) for n in COUNTS)]:
            part = cuda.kernels.linear_s8(
                half(x[begin:end]), values, scale, bias, "gelu_erf", tiles=tiles
            )
            np.testing.assert_array_equal(part, whole[begin:end])
        some = cuda.kernels.linear_s8(
            half(x), values, scale, bias, "gelu_erf", tiles=tiles, first_output=13
        )
        np.testing.assert_array_equal(some, whole[:, 13:])


def costs_no_more_than_on_the_cpu(found: np.ndarray, cpu: np.ndarray, exact: np.ndarray) -> None:
    """int8 moves numbers on both, by other steps here and there: rows are in fp16 before them."""

    def rms(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(a - b))))

    assert 0 < rms(found, exact) < 1.5 * rms(cpu, exact)
    assert rms(found, cpu) < 1.2 * rms(cpu, exact)


def test_a_model_is_as_near_to_float_as_on_the_cpu(cuda, made, handmade, rng):
    batch = handmade.batch_of(rng, [1, 5, 40, 17, 2])
    outputs = ["sequence_output", "pooled_output", "masked_lm_outputs"]
    found = cuda.Engine(cuda.Model(*made, "int8", 0)).run(*batch, outputs)
    low = _native.Engine(_native.Model(*made, "int8", 1), 1).run(*batch, outputs)
    exact = _native.Engine(_native.Model(*made, "fp32", 1), 1).run(*batch, outputs)
    for name in outputs:
        costs_no_more_than_on_the_cpu(found[name], low[name], exact[name])


def test_the_engine_in_int8(installed, path):
    with (
        Engine.load(path) as exact,
        Engine.load(path, precision="int8") as cpu,
        Engine.load(path, device="cuda", precision="int8") as engine,
    ):
        text = engine.explain()
        assert "linear_s8.mma" in text and "attention_fp16" in text and UNPROVEN_INT8 in text
        runs = [own.run(IDS, valid_length=LENGTHS) for own in (engine, cpu, exact)]
        for name in runs[0]:
            costs_no_more_than_on_the_cpu(*(run[name] for run in runs))
        alone = engine.predict("the boat").vector
        np.testing.assert_array_equal(engine.predict(["sea", "the boat"])[1].vector, alone)


def quantised_plan(path, names: dict[str, str]):
    plan = Model.open(path).plan()
    steps = dict.fromkeys((step.name for step in product_steps(plan)), "int8") | names
    return store_quantized(state_precisions(plan, steps))


@pytest.mark.parametrize("kept", ["bf16", "fp32"])
def test_a_quantised_plan_with_steps_that_are_kept(installed, path, kept):
    plan = quantised_plan(path, {"layer0.ffn": kept, "layer0.attention": kept})
    weights = {name: constant.array for name, constant in plan.weights.items()}
    engine = installed.Engine(installed.Model(plan.to_engine(), weights, "int8", 0))
    cpu = _native.Engine(_native.Model(plan.to_engine(), weights, "fp32", 1), 1)
    plain = Model.open(path).plan()
    exact = _native.Engine(
        _native.Model(plain.to_engine(), {n: c.array for n, c in plain.weights.items()}, "fp32", 1),
        1,
    )
    kernels = {step[0]: step[1] for step in engine.steps()}
    assert kernels["layer0.qkv"] == "linear_s8.mma"
    assert kernels["layer0.ffn"] == "linear_fp16.mma"
    ids = np.array([2, 5, 6, 7, 3], np.int32)
    batch = (ids, np.zeros(5, np.int32), np.array([0, 5], np.int32), None, ["sequence_output"])
    runs = [own.run(*batch)["sequence_output"] for own in (engine, cpu, exact)]
    costs_no_more_than_on_the_cpu(*runs)
    with pytest.raises(Exception, match="on a GPU such plans run in int8 or fp8 only"):
        installed.Model(plan.to_engine(), weights, "fp16", 0)


@pytest.fixture
def bundle(path, tmp_path):
    return import_huggingface(path, tmp_path / "bundle")


@pytest.mark.parametrize("options", ["all", "smoothed", "bounded"])
def test_a_bundle_of_bertrt_quantize(installed, bundle, tmp_path, options):
    texts = tmp_path / "texts.txt"
    texts.write_text("the boat\nsea\nthe sea the boat\nboat boat\n")
    small = tmp_path / "small"
    bound = None
    if options == "bounded":
        bound = 0.7 * quantize(bundle, tmp_path / "free", calibrate=texts).cost.largest
    report = quantize(
        bundle,
        small,
        calibrate=None if options == "all" else texts,
        smooth=options == "smoothed",
        max_error=bound,
    )
    kept = {step.name for step in report.steps if step.precision != "int8"}
    assert bool(kept) == (options == "bounded")
    with (
        Engine.load(bundle) as exact,
        Engine.load(small) as cpu,
        Engine.load(small, device="cuda") as engine,
    ):
        assert engine.precision == "int8" and UNPROVEN_INT8 in engine.explain()
        runs = [own.run(IDS, valid_length=LENGTHS) for own in (engine, cpu, exact)]
        for name in runs[0]:
            costs_no_more_than_on_the_cpu(*(run[name] for run in runs))
        alone = engine.run(IDS[:1], valid_length=LENGTHS[:1])
        for name, value in alone.items():
            np.testing.assert_array_equal(value[0], runs[0][name][0])
    if options == "all":
        # The very integers that the float weights become on the device.
        with Engine.load(bundle, device="cuda", precision="int8") as engine:
            for name, value in engine.run(IDS, valid_length=LENGTHS).items():
                np.testing.assert_array_equal(value, runs[0][name])
    assert verify(small, device="cuda").ok


def test_a_plan_in_bf16_is_refused(installed, path, monkeypatch):
    plan = Model.open(path).plan()
    steps = dict.fromkeys((step.name for step in product_steps(plan)), "bf16")
    low = store_quantized(state_precisions(plan, steps))
    monkeypatch.setattr(Model, "plan", lambda self: low)
    with pytest.raises(DeviceError, match=r"quantised to bf16.*CPU only.*precision='bf16'"):
        Engine.load(path, device="cuda", precision="bf16")
