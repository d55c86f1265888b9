"""Whole models on Hopper's kernels, by BERTRT_CUDA_KERNELS: on the emulator, and on a GPU that has
them."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from bertrt import DeviceError, Engine, _native

OUTPUTS = ["sequence_output", "pooled_output", "masked_lm_outputs"]
KERNELS = "BERTRT_CUDA_KERNELS"


@pytest.fixture
def hopper(cuda):
    """A module of CUDA kernels where these can run."""
    if not hasattr(cuda, "emulator") and cuda.devices()[0].arch != "sm_90":
        pytest.skip("Hopper's kernels need a GPU of compute capability 9.0")
    return cuda


def new_engine(cuda, made, precision, **options):
    return cuda.Engine(cuda.Model(*made, precision, 0), **options)


def kernels_of(engine):
    return {kernel for _, kernel, *_ in engine.steps() if kernel.startswith("linear")}


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 0.02), ("bf16", 0.15)])
def test_a_whole_model(hopper, made, handmade, rng, monkeypatch, precision, bound):
    ids, types, ends, masked = handmade.batch_of(rng, [1, 5, 40, 17, 2])
    exact = _native.Engine(_native.Model(*made, "fp32", 1), 1).run(
        ids, types, ends, masked, OUTPUTS
    )
    monkeypatch.setenv(KERNELS, "hopper")
    engine = new_engine(hopper, made, precision)
    monkeypatch.delenv(KERNELS)  # it is read at load
    # Heads are in fp32, which is for multiply-adds.
    assert kernels_of(engine) == {f"linear_{precision}.wgmma", "linear_fp32.fma"}
    found = engine.run(ids, types, ends, masked, OUTPUTS)
    for name in OUTPUTS:
        scale = max(1.0, float(np.abs(exact[name]).max()))
        np.testing.assert_allclose(found[name], exact[name], atol=bound * scale, err_msg=name)
    for i, (begin, end) in enumerate(itertools.pairwise(ends)):
        one = np.array([0, end - begin], np.int32)
        batch = ids[begin:end].copy(), types[begin:end].copy(), one, masked[i : i + 1].copy()
        for _ in range(3):  # the second captures a graph, the third runs by it
            alone = engine.run(*batch, OUTPUTS)
            for name, own in (
                ("sequence_output", slice(begin, end)),
                ("pooled_output", slice(i, i + 1)),
                ("masked_lm_outputs", slice(i * masked.shape[1], (i + 1) * masked.shape[1])),
            ):
                np.testing.assert_array_equal(alone[name], found[name][own], name)
    assert engine.launches()["by_graph"] > 0


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_they_do_not_take_runs_as_ever(hopper, made, handmade, rng, monkeypatch, precision):
    batch = handmade.batch_of(rng, [3, 9])
    want = new_engine(hopper, made, precision)
    monkeypatch.setenv(KERNELS, "hopper")
    engine = new_engine(hopper, made, precision)
    assert kernels_of(engine) == kernels_of(want)
    for name, rows in engine.run(*batch, OUTPUTS).items():
        np.testing.assert_array_equal(rows, want.run(*batch, OUTPUTS)[name], name)


@pytest.mark.parametrize("value", [None, "", "mma"])
def test_by_default_no_model_takes_them(cuda, made, monkeypatch, value):
    monkeypatch.delenv(KERNELS, raising=False)
    if value is not None:
        monkeypatch.setenv(KERNELS, value)
    assert kernels_of(new_engine(cuda, made, "fp16")) == {"linear_fp16.mma", "linear_fp32.fma"}


def test_an_unknown_name_is_refused(cuda, made, monkeypatch):
    monkeypatch.setenv(KERNELS, "Hopper")
    with pytest.raises(DeviceError, match="is 'Hopper'; known are: mma, hopper"):
        cuda.Model(*made, "fp32", 0)


def test_a_device_without_them_is_refused(emulated, made, monkeypatch):
    monkeypatch.setenv(KERNELS, "hopper")
    emulated.emulator.reset(hopper=False)
    with pytest.raises(DeviceError, match="need a GPU of compute capability 9"):
        emulated.Model(*made, "fp16", 0)
    monkeypatch.setenv(KERNELS, "mma")
    emulated.Model(*made, "fp16", 0)


def test_engines_of_both_live_side_by_side(emulated, hugging, monkeypatch):
    monkeypatch.setitem(sys.modules, "bertrt._cuda", emulated)
    path = hugging.write(
        {**hugging.config, "hidden_size": 32, "num_attention_heads": 1},
        hugging.weights({**hugging.config, "hidden_size": 32}),
    )
    with Engine.load(path, device="cuda", precision="fp16") as common:
        monkeypatch.setenv(KERNELS, "hopper")
        with Engine.load(path, device="cuda", precision="fp16") as engine:
            assert "linear_fp16.wgmma" in engine.explain()
            assert "linear_fp16.wgmma" not in common.explain()
            np.testing.assert_allclose(
                engine.predict("the boat").vector, common.predict("the boat").vector, atol=0.02
            )
