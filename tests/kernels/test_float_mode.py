"""The calling thread's floating-point mode neither shows in a result nor is another afterwards."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import test_native_engine as handmade

from bertrt import InvalidInputError, _native

kernels = _native.kernels
OUTPUTS = handmade.OUTPUTS
PRECISIONS = ["fp32", "bf16", "int8"]

MACHINE = platform.machine()

pytestmark = pytest.mark.skipif(
    MACHINE not in ("x86_64", "aarch64") or sys.platform != "linux",
    reason="the mode is set on x86-64 and 64-bit Arm only, and here by Linux's C library",
)

if MACHINE == "aarch64":
    # A mode is what FPCR holds and, where that has nothing, the flags of FPSR (Arm ARM, C5.2).
    FLAGS = 0x9F
    DENORMALS_ARE_ZEROS = 0
    ALL_MASKED = 0
    INEXACT_MASKED = 0x8F00  # most CPUs have no traps, and keep none of these bits
    ROUND_DOWN, ROUND_UP, ROUND_TO_ZERO = 0x800000, 0x400000, 0xC00000
    FLUSH_TO_ZERO = 0x1000000
else:
    # Bits of MXCSR (Intel SDM volume 1, 10.2.3).
    FLAGS = 0x3F
    DENORMALS_ARE_ZEROS = 0x40
    ALL_MASKED = 0x1F80
    INEXACT_MASKED = 0x1000
    ROUND_DOWN, ROUND_UP, ROUND_TO_ZERO = 0x2000, 0x4000, 0x6000
    FLUSH_TO_ZERO = 0x8000
OURS = ALL_MASKED | FLUSH_TO_ZERO | DENORMALS_ARE_ZEROS
ODD = [
    ALL_MASKED,
    ALL_MASKED | ROUND_DOWN,
    ALL_MASKED | ROUND_UP | FLUSH_TO_ZERO | DENORMALS_ARE_ZEROS | FLAGS,
    ALL_MASKED | ROUND_TO_ZERO | 0x11,
]

libm = ctypes.CDLL("libm.so.6") if sys.platform == "linux" else None


def environment() -> Any:
    """A fenv_t, which ends with MXCSR, or is FPCR and FPSR."""
    found = (ctypes.c_uint32 * 8)()
    assert libm.fegetenv(found) == 0
    return found


def present() -> int:
    """The calling thread's mode and flags."""
    found = environment()
    return found[0] & ~FLAGS | found[1] & FLAGS if MACHINE == "aarch64" else found[7]


@contextmanager
def mode(word: int) -> Iterator[None]:
    """Another mode of the calling thread's for a while."""
    before, wanted = environment(), environment()
    if MACHINE == "aarch64":
        wanted[0], wanted[1] = word & ~FLAGS, word & FLAGS
    else:
        wanted[7] = word
    libm.fesetenv(wanted)
    try:
        yield
    finally:
        libm.fesetenv(before)


def batch(rng: np.random.Generator) -> list[np.ndarray]:
    ids = rng.integers(0, 40, 60).astype(np.int32)
    types = rng.integers(0, 2, 60).astype(np.int32)
    return [ids, types, np.array([0, 7, 60], np.int32), np.array([[0], [5]], np.int32)]


def answers(
    plan: dict[str, Any], weights: dict[str, np.ndarray], precision: str, inputs: list[np.ndarray]
) -> dict[str, np.ndarray]:
    engine = _native.Engine(_native.Model(plan, weights, precision, 2), 3)
    return engine.run(*inputs, OUTPUTS)


@pytest.mark.parametrize("word", ODD)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_callers_mode_does_not_show(rng, precision, word):
    plan, weights = handmade.make_plan(rng)
    inputs = batch(rng)
    expected = answers(plan, weights, precision, inputs)
    with mode(word):
        found = answers(plan, weights, precision, inputs)
    for name in OUTPUTS:
        np.testing.assert_array_equal(found[name], expected[name])


def test_an_epsilon_that_is_a_denormal_in_float32_is_not_zero_to_an_engine(rng):
    plan, weights = handmade.make_plan(rng)
    plan["steps"] = [plan["steps"][0] | {"eps": 1e-42}]
    plan["outputs"] = {"sequence_output": "x0"}
    for table in ("word", "type", "position"):
        weights[table][:] = 0
    engine = _native.Engine(_native.Model(plan, weights), 1)
    ids, types, ends, _ = batch(rng)
    found = engine.run(ids, types, ends, None, ["sequence_output"])["sequence_output"]
    np.testing.assert_array_equal(found, np.tile(weights["embeddings.beta"], (60, 1)))


@pytest.mark.parametrize("word", ODD)
def test_a_pool_begun_in_an_odd_mode_computes_in_ours(word):
    with mode(word):
        callers, *workers = kernels.float_modes(4)
    assert callers & ~FLAGS == word & ~FLAGS
    assert [found & ~FLAGS for found in workers] == [OURS] * 3


@pytest.mark.parametrize("word", ODD)
def test_the_callers_mode_and_flags_stay(rng, word):
    plan, weights = handmade.make_plan(rng)
    broken = copy_with_nan(weights)
    inputs = batch(rng)
    outside = [inputs[0] + np.int32(1000), *inputs[1:]]
    x = rng.normal(size=(4, 36)).astype(np.float32)

    def refused(call: Callable[[], Any], error: type[Exception]) -> None:
        with pytest.raises(error):
            call()

    engine = _native.Engine(_native.Model(plan, weights), 2)
    for call in (
        lambda: _native.Model(plan, broken, "int8", 2),
        lambda: engine.run(*inputs, OUTPUTS),
        lambda: refused(lambda: engine.run(*outside, OUTPUTS), InvalidInputError),
        lambda: kernels.linear("portable", x, x, threads=2),
        lambda: kernels.layer_norm("portable", x, x[0].copy(), x[0].copy(), 0.0),
    ):
        with mode(word):
            call()
            left = present()
        assert left == word


def copy_with_nan(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {name: array.copy() for name, array in weights.items()}
    found["l0.proj"][0, 0] = np.nan
    return found


def run_with_exceptions_signalled() -> None:
    rng = np.random.default_rng(20)
    plan, weights = handmade.make_plan(rng)
    weights["l0.proj"][0] = 1e38  # overflows
    weights["l0.ffn1"][0] = 1e-40
    inputs = batch(rng)
    for precision in PRECISIONS:
        with mode(INEXACT_MASKED):
            answers(plan, weights, precision, inputs)
    print("answered")


def test_exceptions_that_the_caller_wants_signalled_do_not_end_the_process():
    # In a process of its own, which SIGFPE would end.
    done = subprocess.run(
        [sys.executable, __file__],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "answered\n"), done.stderr


if __name__ == "__main__":
    run_with_exceptions_signalled()
