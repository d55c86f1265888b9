"""Whole models on Hopper's kernels, by BERTRT_CUDA_KERNELS: on the emulator, and on a GPU that has
them."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from bertrt import DeviceError, Engine, _native
from bertrt.backends.native import UNPROVEN_HOPPER

OUTPUTS = ["sequence_output", "pooled_output", "masked_lm_outputs"]
KERNELS = "BERTRT_CUDA_KERNELS"


def new_engine(cuda, made, precision, **options):
    return cuda.Engine(cuda.Model(*made, precision, 0), **options)


def kernels_of(engine):
    found = {kernel for _, kernel, *_ in engine.steps()}
    return {kernel for kernel in found if kernel.startswith(("linear", "attention"))}


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 0.02), ("bf16", 0.15), ("fp8", 0.5)])
def test_a_whole_model(hopper, made, handmade, rng, monkeypatch, precision, bound):
    ids, types, ends, masked = handmade.batch_of(rng, [1, 5, 40, 17, 2])
    exact = _native.Engine(_native.Model(*made, "fp32", 1), 1).run(
        ids, types, ends, masked, OUTPUTS
    )
    monkeypatch.setenv(KERNELS, "hopper")
    engine = new_engine(hopper, made, precision)
    monkeypatch.delenv(KERNELS)  # it is read at load
    # Heads are in fp32, which is for multiply-adds.
    rows = "fp16" if precision == "fp8" else precision
    assert kernels_of(engine) == {
        f"linear_{'e4m3' if precision == 'fp8' else precision}.wgmma",
        f"attention_{rows}.fma",  # heads of 12
        "linear_fp32.fma",
    }
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


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8"])
def test_deep_layers(emulated, hugging, monkeypatch, precision):
    """A model whose last products have 2,048 inputs: in clusters, where there are multiprocessors
    for them, the same bits as without; alone and by graphs, too."""
    monkeypatch.setitem(sys.modules, "bertrt._cuda", emulated)
    config = {**hugging.config, "hidden_size": 64, "num_attention_heads": 2}
    config["intermediate_size"] = 2048
    path = hugging.write(config, hugging.weights(config))
    texts = [
        np.random.default_rng(i).integers(4, 9, count) for i, count in enumerate((1, 3, 16, 9))
    ]
    with Engine.load(path) as cpu:
        want = cpu.run(texts)
    with Engine.load(path, device="cuda", precision=precision) as engine:
        usual = engine.run(texts)
    monkeypatch.setenv(KERNELS, "hopper")
    found = []
    for multiprocessors in (2, 8):
        emulated.emulator.reset(multiprocessors=multiprocessors)
        in_clusters = emulated.hopper.parts_in_clusters(1, 2048, multiprocessors)
        assert in_clusters is (multiprocessors == 8)
        with Engine.load(path, device="cuda", precision=precision) as engine:
            together = engine.run(texts)
            for _ in range(3):  # the second captures a graph, the third runs by it
                for i in (0, 2):
                    for name, value in engine.run([texts[i]]).items():
                        np.testing.assert_array_equal(value[0], together[name][i], name)
            found.append({name: np.concatenate(rows) for name, rows in together.items()})
    for name, own in found[1].items():
        np.testing.assert_array_equal(own, found[0][name], name)
        other, exact = np.concatenate(usual[name]), np.concatenate(want[name])
        error = [np.sqrt(np.mean(np.square(rows - exact))) for rows in (own, other)]
        assert 0 < error[0] < 1.2 * error[1], name


@pytest.mark.parametrize("precision", ["fp32"])
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
    kernels = kernels_of(new_engine(cuda, made, "fp16"))
    assert kernels == {"linear_fp16.mma", "attention_fp16.fma", "linear_fp32.fma"}


def test_an_unknown_name_is_refused(cuda, made, monkeypatch):
    monkeypatch.setenv(KERNELS, "Hopper")
    with pytest.raises(
        DeviceError, match="BERTRT_CUDA_KERNELS is 'Hopper'; known are: mma, hopper"
    ):
        cuda.Model(*made, "fp32", 0)


def test_a_device_without_them_is_refused(emulated, made, monkeypatch):
    monkeypatch.setenv(KERNELS, "hopper")
    emulated.emulator.reset(hopper=False)
    with pytest.raises(DeviceError, match=r"need a GPU of compute capability 9\.0"):
        emulated.Model(*made, "fp16", 0)
    monkeypatch.setenv(KERNELS, "mma")
    emulated.Model(*made, "fp16", 0)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8"])
def test_attention_too(hopper, hugging, monkeypatch, precision):
    """Heads of 32: answers as near to fp32 as the usual kernels', and bits alone and in a batch."""
    monkeypatch.setitem(sys.modules, "bertrt._cuda", hopper)
    monkeypatch.setenv(KERNELS, "hopper")
    config = {**hugging.config, "hidden_size": 64, "num_attention_heads": 2}
    path = hugging.write(config, hugging.weights(config))
    texts = [
        np.random.default_rng(i).integers(4, 9, count) for i, count in enumerate((1, 3, 16, 9))
    ]
    with Engine.load(path) as cpu:
        want = cpu.run(texts)
    monkeypatch.setenv(KERNELS, "mma")
    with Engine.load(path, device="cuda", precision=precision) as engine:
        usual = engine.run(texts)
    monkeypatch.setenv(KERNELS, "hopper")
    with Engine.load(path, device="cuda", precision=precision) as engine:
        rows = "fp16" if precision == "fp8" else precision
        assert f"attention_{rows}.wgmma" in engine.explain()
        together = engine.run(texts)
        for name in want:
            own, other, exact = (np.concatenate(found[name]) for found in (together, usual, want))
            error = [np.sqrt(np.mean(np.square(found - exact))) for found in (own, other)]
            assert 0 < error[0] < 1.2 * error[1], name
        for _ in range(3):  # the second captures a graph, the third runs by it
            for i, ids in enumerate(texts):
                for name, value in engine.run([ids]).items():
                    np.testing.assert_array_equal(value[0], together[name][i], name)
        # The last layer's first queries alone, of several texts and of one.
        vectors = [own.vector for own in engine.predict(["the boat", "sea", "boat the sea"])]
        np.testing.assert_array_equal(engine.predict("boat the sea").vector, vectors[2])


def test_engines_of_both_live_side_by_side(emulated, hugging, monkeypatch):
    monkeypatch.setitem(sys.modules, "bertrt._cuda", emulated)
    path = hugging.write(
        {**hugging.config, "hidden_size": 32, "num_attention_heads": 1},
        hugging.weights({**hugging.config, "hidden_size": 32}),
    )
    with Engine.load(path, device="cuda", precision="fp16") as common:
        monkeypatch.setenv(KERNELS, "hopper")
        with Engine.load(path, device="cuda", precision="fp16") as engine:
            assert "linear_fp16.wgmma" in engine.explain() and UNPROVEN_HOPPER in engine.explain()
            assert "wgmma" not in common.explain() and UNPROVEN_HOPPER not in common.explain()
            np.testing.assert_allclose(
                engine.predict("the boat").vector, common.predict("the boat").vector, atol=0.02
            )
