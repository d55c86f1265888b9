"""fp8 (e4m3) on the CUDA backend: codes, rows, products, models, bundles with their receipts."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from bertrt.export.huggingface import import_huggingface

from bertrt import DeviceError, Engine, InvalidInputError, ModelFormatError, _native
from bertrt.backends.native import UNPROVEN_FP8
from bertrt.commands.main import main
from bertrt.evaluation.quantize import quantize
from bertrt.evaluation.verify import verify
from bertrt.models.model import Model
from bertrt.plan.quantized import (
    fp8_outputs,
    from_e4m3,
    lowered_steps,
    state_precisions,
    store_quantized,
    to_e4m3,
)

TILES = ["small", "medium", "large"]
IDS = np.array([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0], [2, 3, 0, 0, 0]])
LENGTHS = np.array([5, 3, 0])
# For tiles of 32, 64 and 128 rows and columns, 64 inputs at a time, and sums of 128.
SHAPES = [
    (1, 1, 1),
    (15, 33, 15),
    (17, 31, 64),
    (31, 33, 127),
    (65, 63, 129),
    (17, 129, 128),
    (129, 65, 16),
    (2, 3, 770),
]


def value_of(code: int) -> float:
    """An e4m3 number, as arXiv:2209.05433 defines it."""
    sign, exponent, fraction = -1.0 if code & 0x80 else 1.0, code >> 3 & 15, code & 7
    if exponent == 15 and fraction == 7:
        return float("nan")
    if exponent == 0:
        return sign * fraction / 8 * 2.0**-6
    return sign * (1 + fraction / 8) * 2.0 ** (exponent - 7)


VALUES = np.array([value_of(code) for code in range(0x7F)])  # from 0 up to 448, finite


def nearest(x: np.ndarray) -> np.ndarray:
    """The codes of finite numbers by looking at all of them; in double precision, exactly."""
    size = np.minimum(np.abs(x.astype(np.float64)), VALUES[-1])
    above = np.clip(np.searchsorted(VALUES, size), 1, len(VALUES) - 1)
    down, up = size - VALUES[above - 1], VALUES[above] - size
    take_above = (up < down) | ((up == down) & (above % 2 == 0))
    codes = np.where(take_above, above, above - 1)
    return (codes | np.where(np.signbit(x), 0x80, 0)).astype(np.uint8)


def half(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float16).view(np.uint16)


def rows_of(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """Rows that fp16 holds: around zero, of zeros, with an outlier, very small, very large."""
    x = rng.normal(size=(rows, cols)).astype(np.float32)
    x[1::5] = 0
    x[2::5, 0] = 300
    x[3::5] *= 2.0**-20
    x[4::5] *= 1000
    return x.astype(np.float16).astype(np.float32)


def scaled(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The codes of rows, and what 1 is worth in each."""
    limit = np.abs(x).max(axis=1)
    scale = (limit / np.float32(448)).astype(np.float32)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale > 0, np.float32(448) / limit, 0).astype(np.float32)
    return nearest(x * inverse[:, None]), scale


def few_values(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """1, 1/2, 0 and their negatives: all products and sums of their codes are exact, even in the
    few bits of tensor cores."""
    return rng.choice(np.array([1, 0.5, 0, -0.5, -1], np.float32), (rows, cols))


# --- numbers -------------------------------------------------------------------------------------


@pytest.fixture(params=["C++", "Python"])
def codes_of(request, cuda):
    return cuda.kernels.e4m3_of if request.param == "C++" else to_e4m3


def test_every_code_is_its_own(codes_of):
    values = np.array([value_of(code) for code in range(256)], np.float32)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(codes_of(values)[numbers], np.arange(256)[numbers])
    assert set(codes_of(values)[~numbers] & 0x7F) == {0x7F}
    np.testing.assert_array_equal(from_e4m3(np.arange(256, dtype=np.uint8)), values)


def test_between_two_codes_the_nearest_or_the_even_one(codes_of):
    middle = ((VALUES[1:] + VALUES[:-1]) / 2).astype(np.float32)
    below, above = np.arange(len(middle)), np.arange(1, len(middle) + 1)
    np.testing.assert_array_equal(codes_of(middle), np.where(below % 2, above, below))
    np.testing.assert_array_equal(codes_of(np.nextafter(middle, np.float32(0))), below)
    np.testing.assert_array_equal(codes_of(np.nextafter(middle, np.float32(500))), above)
    np.testing.assert_array_equal(codes_of(-middle), np.where(below % 2, above, below) | 0x80)


def test_beyond_the_largest_and_no_number(codes_of):
    beyond = np.array([448, 449, 464, 465, 480, 1e30, np.inf], np.float32)
    assert set(codes_of(beyond)) == {0x7E}
    assert set(codes_of(-beyond)) == {0xFE}
    np.testing.assert_array_equal(codes_of(np.array([np.nan], np.float32)) & 0x7F, [0x7F])
    np.testing.assert_array_equal(codes_of(np.array([0.0, -0.0], np.float32)), [0, 0x80])
    tiny = np.array([1e-45, 2.0**-11, 2.0**-10, 1.0000001 * 2.0**-10], np.float32)
    np.testing.assert_array_equal(codes_of(tiny), [0, 0, 0, 1])


def test_any_number(codes_of, rng):
    x = np.exp2(rng.uniform(-14, 10, 20_000)).astype(np.float32)
    x *= rng.choice(np.array([-1, 1], np.float32), len(x))
    np.testing.assert_array_equal(codes_of(x), nearest(x))


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (5, 7), (6, 8), (9, 300), (4, 768), (7, 1031)])
def test_rows_by_their_largest(cuda, rng, rows, cols):
    x = rows_of(rng, rows, cols)
    found = cuda.kernels.quantise_rows(half(x), "fp8")
    at = -(-cols // 16) * 16
    assert found.shape == (rows, at + 16)
    codes, scale = scaled(x)
    np.testing.assert_array_equal(found[:, at : at + 4].copy().view(np.float32)[:, 0], scale)
    np.testing.assert_array_equal(found[:, :cols], codes)


# --- products ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize(("rows", "columns", "depth"), SHAPES)
def test_exact_sums(cuda, rng, tiles, rows, columns, depth):
    x, weight = few_values(rng, rows, depth), few_values(rng, columns, depth)
    x[:, 0] = weight[:, 0] = 1
    bias = rng.normal(size=columns).astype(np.float32)
    more = rng.normal(size=(rows, columns)).astype(np.float16)
    codes, scale = scaled(weight)
    worth = scaled(x)[1][:, None] * scale
    want = (x.astype(np.float64) @ weight.T * 448**2).astype(np.float32) * worth + bias
    found = cuda.kernels.linear_e4m3(half(x), codes, scale, bias, tiles=tiles)
    np.testing.assert_array_equal(found, half(want))
    found = cuda.kernels.linear_e4m3(half(x), codes, scale, bias, residual=half(more), tiles=tiles)
    np.testing.assert_array_equal(found, half(want + more.astype(np.float32)))


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize(("rows", "columns", "depth"), SHAPES)
def test_against_double_precision(cuda, rng, tiles, rows, columns, depth):
    x = rows_of(rng, rows, depth)
    codes, scale = scaled(rng.normal(size=(columns, depth)).astype(np.float32))
    of_x, of_rows = scaled(x)
    a = from_e4m3(of_x).astype(np.float64) * of_rows[:, None]
    b = from_e4m3(codes).astype(np.float64) * scale[:, None]
    want = a @ b.T
    # Each of four instructions cuts 33 terms off behind 13 bits of the largest.
    bound = 4 * 33 * 2.0**-13 * (np.abs(a) @ np.abs(b).T)
    found = cuda.kernels.linear_e4m3(half(x), codes, scale, tiles=tiles).view(np.float16)
    near = np.abs(found.astype(np.float64) - want)
    assert (near <= bound + np.abs(want) * 2.0**-10 + 2.0**-24).all()
    assert np.median(near) <= 0.02 * np.median(bound) + np.median(np.abs(want)) * 2.0**-11


def test_long_sums_lose_nothing(cuda):
    """65,536 equal products: in the 14 bits of a tensor core's sum they would end at an eighth."""
    for sign in (1, -1):
        x = np.full((1, 65_536), sign, np.float32)
        weight = np.full((2, 65_536), 2.0**-8, np.float32) * np.array([[1], [-1]], np.float32)
        codes, scale = fp8_outputs(weight)
        found = cuda.kernels.linear_e4m3(half(x), codes, scale).view(np.float16)
        np.testing.assert_array_equal(found, sign * np.array([[256, -256]]))


@pytest.mark.parametrize("activation", ["relu", "gelu_erf", "gelu_tanh", "tanh"])
def test_what_follows_the_sums(cuda, rng, activation):
    x, weight = few_values(rng, 20, 40), few_values(rng, 43, 40)
    x[:, 0] = weight[:, 0] = 1
    codes, scale = scaled(weight)
    found = cuda.kernels.linear_e4m3(half(x), codes, scale, activation=activation)
    want = _native.kernels.linear("portable", x, weight, None, activation, 1, "fp32")
    np.testing.assert_allclose(found.view(np.float16), want, rtol=2.0**-10, atol=1e-5)


@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_makes_nothing_plausible(cuda, rng, poison):
    x = rows_of(rng, 3, 40)
    x[1, 17] = poison
    codes, scale = fp8_outputs(rng.normal(size=(9, 40)).astype(np.float32))
    found = cuda.kernels.linear_e4m3(half(x), codes, scale).view(np.float16)
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()
    codes[4, 3] = 0x7F
    found = cuda.kernels.linear_e4m3(half(x), codes, scale).view(np.float16)
    assert np.isnan(found[:, 4]).all()


def test_rows_and_weights_of_zeros(cuda, rng):
    bias = rng.normal(size=5).astype(np.float32)
    codes, scale = fp8_outputs(np.zeros((5, 20), np.float32))
    assert not codes.any() and not scale.any()
    found = cuda.kernels.linear_e4m3(half(rows_of(rng, 3, 20)), codes, scale, bias)
    np.testing.assert_array_equal(found, half(np.tile(bias, (3, 1))))
    codes, scale = fp8_outputs(rng.normal(size=(5, 20)).astype(np.float32))
    found = cuda.kernels.linear_e4m3(half(np.zeros((3, 20))), codes, scale, bias)
    np.testing.assert_array_equal(found, half(np.tile(bias, (3, 1))))


def test_a_row_has_the_same_bits_in_any_batch_and_tiles(cuda, rng):
    x = rows_of(rng, 150, 200)
    codes, scale = fp8_outputs(rng.normal(size=(75, 200)).astype(np.float32))
    bias = rng.normal(size=75).astype(np.float32)
    whole = cuda.kernels.linear_e4m3(half(x), codes, scale, bias, "gelu_erf")
    for tiles in TILES:
        cuts = [(149, 150), (3, 18), (20, 36), (5, 132), *((0, n) for n in (1, 2, 15, 17, 129))]
        for begin, end in cuts:
            part = cuda.kernels.linear_e4m3(
                half(x[begin:end]), codes, scale, bias, "gelu_erf", tiles=tiles
            )
            np.testing.assert_array_equal(part, whole[begin:end])
        some = cuda.kernels.linear_e4m3(
            half(x), codes, scale, bias, "gelu_erf", tiles=tiles, first_output=13
        )
        np.testing.assert_array_equal(some, whole[:, 13:])


def test_small_terms_count_beside_a_large_one(cuda, tiles_and_hopper):
    """Behind the 128 inputs that a tensor core adds with the large one."""
    code = 2.0**-5  # of which 448 times are a 2^13.8th of 448 squared
    x = np.full((1, 512), code, np.float32)
    x[0, 0] = 448
    codes, scale = fp8_outputs(np.ones((3, 512), np.float32))
    found = cuda.kernels.linear_e4m3(half(x), codes, scale, tiles=tiles_and_hopper)
    assert (found.view(np.float16) >= 448 + 384 * code - 0.2).all()
    assert (found.view(np.float16) <= 448 + 511 * code + 0.2).all()


# --- Hopper's own --------------------------------------------------------------------------------


@pytest.fixture(params=[*TILES, "hopper"])
def tiles_and_hopper(request, cuda):
    if request.param == "hopper" and not on_hopper(cuda):
        pytest.skip("Hopper's products need a GPU of compute capability 9.0")
    return request.param


@pytest.fixture
def hopper(cuda):
    if not on_hopper(cuda):
        pytest.skip("Hopper's products need a GPU of compute capability 9.0")
    return cuda


def on_hopper(cuda) -> bool:
    return hasattr(cuda, "emulator") or cuda.devices()[0].arch == "sm_90"


# A step of 128 inputs and one of few; more steps than stages; two tiles each way.
@pytest.mark.parametrize(
    ("rows", "columns", "depth"), [(1, 1, 1), (3, 7, 129), (130, 136, 72), (17, 40, 648)]
)
def test_hopper_s_sums(hopper, rng, rows, columns, depth):
    x, weight = few_values(rng, rows, depth), few_values(rng, columns, depth)
    x[:, 0] = weight[:, 0] = 1
    codes, scale = scaled(weight)
    bias = rng.normal(size=columns).astype(np.float32)
    more = half(rng.normal(size=(rows, columns)))
    own, other = (
        hopper.kernels.linear_e4m3(half(x), codes, scale, bias, "gelu_erf", more, tiles=tiles)
        for tiles in ("hopper", "small")
    )
    np.testing.assert_array_equal(own, other)  # all of it is exact before GELU


def test_hopper_against_double_precision(hopper, rng):
    x = rows_of(rng, 20, 300)
    codes, scale = scaled(rng.normal(size=(33, 300)).astype(np.float32))
    of_x, of_rows = scaled(x)
    a = from_e4m3(of_x).astype(np.float64) * of_rows[:, None]
    b = from_e4m3(codes).astype(np.float64) * scale[:, None]
    bound = 4 * 33 * 2.0**-13 * (np.abs(a) @ np.abs(b).T) + np.abs(a @ b.T) * 2.0**-10
    found = hopper.kernels.linear_e4m3(half(x), codes, scale, tiles="hopper").view(np.float16)
    assert (np.abs(found.astype(np.float64) - a @ b.T) <= bound + 2.0**-24).all()


@pytest.mark.parametrize(
    ("rows", "columns", "depth"),
    [(1, 1, 2048), (130, 136, 2305), (33, 9, 3072)],  # 16, 19 and 24 steps
)
def test_deep_layers_on_hopper(emulated, rng, rows, columns, depth):
    """By a block that walks all parts of the depth, and by a cluster."""
    x = rows_of(rng, rows, depth)
    # Of a size that no result is beyond fp16.
    codes, scale = fp8_outputs(rng.normal(size=(columns, depth)).astype(np.float32) / 32)
    bias = rng.normal(size=columns).astype(np.float32)
    more = half(rng.normal(size=(rows, columns)))
    of_x, of_rows = scaled(x)
    a = from_e4m3(of_x).astype(np.float64) * of_rows[:, None]
    b = from_e4m3(codes).astype(np.float64) * scale[:, None]
    exact = a @ b.T
    bound = 4 * 33 * 2.0**-13 * (np.abs(a) @ np.abs(b).T) + np.abs(exact) * 2.0**-10
    found = {}
    for multiprocessors in (2, 16):
        emulated.emulator.reset(multiprocessors=multiprocessors)
        tiles = -(-rows // 128) * -(-columns // 128)
        in_clusters = emulated.hopper.parts_in_clusters(tiles, depth, multiprocessors)
        assert in_clusters is (multiprocessors == 16)
        plain = emulated.kernels.linear_e4m3(half(x), codes, scale, tiles="hopper")
        assert (np.abs(plain.view(np.float16) - exact) <= bound + 2.0**-24).all()
        found[multiprocessors] = emulated.kernels.linear_e4m3(
            half(x), codes, scale, bias, "gelu_erf", more, tiles="hopper"
        )
        for first in (0, rows // 2):  # and alone
            alone = emulated.kernels.linear_e4m3(
                half(x[first : first + 1]),
                *(codes, scale, bias, "gelu_erf", more[first : first + 1]),
                tiles="hopper",
            )
            np.testing.assert_array_equal(alone[0], found[multiprocessors][first])
    np.testing.assert_array_equal(*found.values())


def test_parts_are_added_in_their_order_in_fp8(emulated):
    # A part's sum is 2**24, which takes a one beside it in, or one.
    parts = np.array([[2.0**24, 1, -(2.0**24), 1], [1, 2.0**24, -(2.0**24), 1]], np.float32)
    parts = np.concatenate([parts, parts[:, ::-1]])
    firsts = np.array([0, 768, 1536, 2304])
    # 2**24 is 256 by 256, in every input of two steps.
    x = np.zeros((len(parts), 3072), np.float32)
    weight = np.zeros((2, 3072), np.float32)
    x[:, 3071] = 448  # the scale is 1
    weight[:, 3070] = 448
    for i, first in enumerate(firsts):
        large = np.abs(parts[:, i]) > 1
        x[:, first : first + 256] = np.where(large, np.sign(parts[:, i]) * 256, 0)[:, None]
        weight[1, first : first + 256] = 256
        x[~large, first + 256] = parts[~large, i]
        weight[1, first + 256] = 1
    codes, scale = scaled(weight)
    expected = parts[:, 0]
    for i in range(1, 4):
        expected = expected + parts[:, i]
    backwards = parts[:, 0] + (parts[:, 1] + (parts[:, 2] + parts[:, 3]))
    assert (backwards != expected).any()
    for multiprocessors in (2, 16):
        emulated.emulator.reset(multiprocessors=multiprocessors)
        found = emulated.kernels.linear_e4m3(half(x), codes, scale, tiles="hopper")
        np.testing.assert_array_equal(found.view(np.float16)[:, 1], expected)


def test_a_row_has_the_same_bits_in_any_batch_on_hopper(hopper, rng):
    x = rows_of(rng, 150, 200)
    codes, scale = fp8_outputs(rng.normal(size=(9, 200)).astype(np.float32))
    whole = hopper.kernels.linear_e4m3(half(x), codes, scale, tiles="hopper")
    for begin, end in [(149, 150), (3, 18), (0, 17), (5, 134)]:
        part = hopper.kernels.linear_e4m3(half(x[begin:end]), codes, scale, tiles="hopper")
        np.testing.assert_array_equal(part, whole[begin:end])


# --- models --------------------------------------------------------------------------------------


def rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(a - b))))


def costs_what_three_bits_cost(found: np.ndarray, exact: np.ndarray) -> None:
    """More than fp16 would, and less than a wrong product."""
    size = float(np.sqrt(np.mean(np.square(exact))))
    assert 1e-4 * size < rms(found, exact) < 0.15 * size


def test_a_model_is_near_to_float(cuda, made, handmade, rng):
    batch = handmade.batch_of(rng, [1, 5, 40, 17, 2])
    outputs = ["sequence_output", "pooled_output", "masked_lm_outputs"]
    engine = cuda.Engine(cuda.Model(*made, "fp8", 0))
    found = engine.run(*batch, outputs)
    exact = _native.Engine(_native.Model(*made, "fp32", 1), 1).run(*batch, outputs)
    for name in outputs:
        costs_what_three_bits_cost(found[name], exact[name])
    kernels = {step[1] for step in engine.steps()}
    assert {"linear_e4m3.mma", "linear_fp32.fma"} <= kernels  # heads


@pytest.fixture
def bundle(path, tmp_path):
    return import_huggingface(path, tmp_path / "bundle")


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("the boat\nsea\nthe sea the boat\nboat boat\n")
    return file


def test_the_engine_in_fp8(installed, path):
    with (
        Engine.load(path) as exact,
        Engine.load(path, device="cuda", precision="fp8") as engine,
    ):
        text = engine.explain()
        assert "linear_e4m3.mma" in text and "attention_fp16" in text and UNPROVEN_FP8 in text
        assert engine.precision == "fp8"
        found, want = (own.run(IDS, valid_length=LENGTHS) for own in (engine, exact))
        for name in found:
            costs_what_three_bits_cost(found[name], want[name])
        alone = engine.predict("the boat").vector
        np.testing.assert_array_equal(engine.predict(["sea", "the boat"])[1].vector, alone)


def stored_plan(path, kept: tuple[str, ...] = ()):
    plan = Model.open(path).plan()
    names = [step.name for step in lowered_steps(plan, "fp8")]
    steps = {name: "fp32" if name in kept else "fp8" for name in names}
    return store_quantized(state_precisions(plan, steps))


def test_a_stored_plan_has_the_bits_of_float_weights(installed, path):
    stored = stored_plan(path)
    weights = {name: constant.array for name, constant in stored.weights.items()}
    assert {str(array.dtype) for array in weights.values()} == {"float32", "uint8"}
    plain = Model.open(path).plan()
    arrays = {name: constant.array for name, constant in plain.weights.items()}
    ids = np.array([2, 5, 6, 7, 3], np.int32)
    batch = (ids, np.zeros(5, np.int32), np.array([0, 5], np.int32), None, ["sequence_output"])
    runs = [
        installed.Engine(installed.Model(plan.to_engine(), own, "fp8", 0)).run(*batch)
        for plan, own in ((stored, weights), (plain, arrays))
    ]
    np.testing.assert_array_equal(*(run["sequence_output"] for run in runs))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_weights_that_are_not_finite(installed, path, poison):
    plan = Model.open(path).plan()
    arrays = {name: constant.array.copy() for name, constant in plan.weights.items()}
    (name,) = next(step for step in plan.steps if step.name == "layer0.ffn").weights["weight"]
    arrays[name][3, 5] = poison
    ids = np.array([2, 5, 6, 7, 3], np.int32)
    batch = (ids, np.zeros(5, np.int32), np.array([0, 5], np.int32), None, ["sequence_output"])
    engine = installed.Engine(installed.Model(plan.to_engine(), arrays, "fp8", 0))
    assert np.isnan(engine.run(*batch)["sequence_output"]).any()
    with pytest.raises(InvalidInputError, match="weights that are not finite cannot be quantised"):
        fp8_outputs(np.full((2, 3), poison, np.float32))


def test_steps_that_are_kept_run_in_fp16(installed, path):
    stored = stored_plan(path, ("layer0.ffn",))
    weights = {name: constant.array for name, constant in stored.weights.items()}
    engine = installed.Engine(installed.Model(stored.to_engine(), weights, "fp8", 0))
    kernels = {step[0]: step[1] for step in engine.steps()}
    assert kernels["layer0.qkv"] == "linear_e4m3.mma"
    assert kernels["layer0.ffn"] == "linear_fp16.mma"
    for other, message in (
        ("fp16", "on a GPU such plans run in int8 or fp8 only"),
        ("int8", "states another 8 bits than the plan is to run in"),
    ):
        with pytest.raises(ModelFormatError, match=message):
            installed.Model(stored.to_engine(), weights, other, 0)


@pytest.mark.parametrize("options", ["all", "smoothed", "bounded"])
def test_a_bundle_of_bertrt_quantize(installed, bundle, texts, tmp_path, options):
    small = tmp_path / "small"
    common = {"precision": "fp8", "device": "cuda"}
    bound = None
    if options == "bounded":
        free = quantize(bundle, tmp_path / "free", calibrate=texts, **common)
        bound = 0.7 * free.cost.largest
    report = quantize(
        bundle,
        small,
        calibrate=None if options == "all" else texts,
        smooth=options == "smoothed",
        max_error=bound,
        **common,
    )
    kept = {step.name for step in report.steps if step.precision != "fp8"}
    assert bool(kept) == (options == "bounded")
    before, after = report.weight_bytes
    assert after < before / (1 if kept else 2)
    if options != "all":
        assert 0 < report.cost.rms < 1 and report.device == "emulated device, sm_89"
        assert "by emulated device, sm_89" in str(report)
    header = (small / "model.safetensors").read_bytes()
    found = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    assert "F8_E4M3" in {entry["dtype"] for entry in found.values()}
    with Engine.load(bundle) as exact, Engine.load(small, device="cuda") as engine:
        assert engine.precision == "fp8" and UNPROVEN_FP8 in engine.explain()
        run, want = (own.run(IDS, valid_length=LENGTHS) for own in (engine, exact))
        for name in run:
            costs_what_three_bits_cost(run[name], want[name])
        alone = engine.run(IDS[:1], valid_length=LENGTHS[:1])
        for name, value in alone.items():
            np.testing.assert_array_equal(value[0], run[name][0])
    if options == "all":
        with Engine.load(bundle, device="cuda", precision="fp8") as engine:
            for name, value in engine.run(IDS, valid_length=LENGTHS).items():
                np.testing.assert_array_equal(value, run[name])
    assert verify(small, device="cuda").ok


def test_the_command(installed, bundle, texts, tmp_path, capsys):
    small = tmp_path / "small"
    command = ["quantize", str(bundle), "--precision", "fp8", "--out", str(small)]
    assert main([*command, "--device", "cuda", "--calibrate", str(texts), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["precision"] == "fp8"
    assert report["machine"]["device"] == "emulated device, sm_89"
    assert {step["precision"] for step in report["steps"]} == {"fp8"}
    assert main(["inspect", str(small)]) == 0
    assert "fp8: " in capsys.readouterr().out


@pytest.fixture
def classifier(hugging, tmp_path):
    config = hugging.config | {
        "hidden_size": 32,
        "num_attention_heads": 1,
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "0", "1": "1"},
    }
    directory = hugging.write(config, hugging.weights(config, classes=2))
    return import_huggingface(directory, tmp_path / "classifier")


def test_what_it_costs_on_labels(installed, classifier, tmp_path, capsys):
    pytest.importorskip("sklearn")
    data = tmp_path / "dev.tsv"
    lines = [("the boat", 0), ("sea", 1), ("the sea the boat", 1), ("boat boat", 0)]
    data.write_text("sentence\tlabel\n" + "".join(f"{text}\t{y}\n" for text, y in lines))
    small = tmp_path / "small"
    report = quantize(
        classifier,
        small,
        precision="fp8",
        device="cuda",
        calibrate=data,
        columns=["sentence", "label"],
        max_loss=100.0,
    )
    assert set(report.before) == set(report.cost.scores) >= {"accuracy"}
    assert report.cost.lost is not None and 0 < report.cost.rms < 2
    command = ["evaluate", str(small), "--columns", "sentence,label", "--data", str(data)]
    command += ["--json", "--backend", "native"]
    on_gpu = ["--device", "cuda"]
    assert main([*command, *on_gpu, "--reference", str(classifier)]) == 0
    first, row = json.loads(capsys.readouterr().out)["rows"]
    assert (first["device"], first["precision"]) == ("cpu", "fp32")
    assert (row["device"], row["precision"]) == ("cuda:0", "fp8")
    assert row["scores"] == report.cost.scores
    # Alone it is its own reference, on the device that has fp8.
    assert main([*command, *on_gpu]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["device"], row["precision"]) == ("cuda:0", "fp8")
    assert main(command) != 0
    assert "runs on GPUs only" in capsys.readouterr().err


# --- what is refused -----------------------------------------------------------------------------


def test_a_cpu_has_none(path, bundle, tmp_path, made):
    with pytest.raises(DeviceError, match="cannot run in 'fp8' on 'cpu': it has no fp8 kernels"):
        Engine.load(path, precision="fp8")
    with pytest.raises(InvalidInputError, match=r"fp8 runs on GPUs only.*device='cuda'"):
        quantize(bundle, tmp_path / "small", precision="fp8")
    with pytest.raises(ModelFormatError, match=r"is to run in fp8, which a CPU has not"):
        _native.Model(*made, "fp8", 1)
    stored = stored_plan(path)
    weights = {name: constant.array for name, constant in stored.weights.items()}
    with pytest.raises(ModelFormatError, match=r"'layer0.qkv' is to run in fp8, which a CPU"):
        _native.Model(stored.to_engine(), weights, "fp32", 1)


def test_a_bundle_on_a_cpu_is_refused(installed, bundle, tmp_path):
    quantize(bundle, tmp_path / "small", precision="fp8", device="cuda")
    with pytest.raises(DeviceError, match=r"small is quantised to fp8, which runs on GPUs only"):
        Engine.load(tmp_path / "small")
    with pytest.raises(DeviceError, match=r"holds no weights for fp16"):
        Engine.load(tmp_path / "small", device="cuda", precision="fp16")


@pytest.mark.parametrize("capability", [80, 86])
def test_an_older_gpu_has_none(emulated, monkeypatch, path, capability):
    monkeypatch.setitem(sys.modules, "bertrt._cuda", emulated)
    emulated.emulator.reset(capability=capability)
    message = rf"cuda:0 is a emulated device \(sm_{capability}\), which has no fp8.*sm_89"
    with pytest.raises(DeviceError, match=message):
        Engine.load(path, device="cuda", precision="fp8")
    Engine.load(path, device="cuda", precision="int8").close()
    emulated.emulator.reset(capability=90)
    Engine.load(path, device="cuda", precision="fp8").close()


def test_bf16_is_measured_on_the_cpu(bundle, tmp_path):
    with pytest.raises(InvalidInputError, match="bundles in bf16 run on the CPU only"):
        quantize(bundle, tmp_path / "small", precision="bf16", device="cuda")


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_8_bits_that_a_step_does_not_state(installed, path, dtype):
    stored = stored_plan(path)
    weights = {name: constant.array for name, constant in stored.weights.items()}
    described = stored.to_engine()
    for step in described["steps"]:
        if "precision" in step:
            step["precision"] = "int8" if dtype is np.uint8 else "fp8"
    if dtype is np.int8:
        weights = {n: a.view(np.int8) if a.dtype == np.uint8 else a for n, a in weights.items()}
    with pytest.raises(ModelFormatError, match="precision does not fit weights in"):
        installed.Model(described, weights, "fp8", 0)
