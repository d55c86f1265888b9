"""device="cuda" through the public face."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

from bertrt import Batching, DeviceError, Engine, InvalidInputError, ModelFormatError
from bertrt.backends.native import TRACE, UNPROVEN
from bertrt.version import __version__

IDS = np.array([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0], [2, 3, 0, 0, 0]])
LENGTHS = np.array([5, 3, 0])


@pytest.fixture
def as_cuda(emulated, monkeypatch):
    """The emulated module in the place of bertrt._cuda."""
    monkeypatch.setitem(sys.modules, "bertrt._cuda", emulated)
    return emulated


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 2e-5), ("fp16", 0.02), ("bf16", 0.15)])
def test_answers_are_those_of_the_cpu(installed, path, precision, bound):
    with Engine.load(path) as cpu, Engine.load(path, device="cuda", precision=precision) as engine:
        assert (engine.device, engine.precision, engine.threads) == ("cuda:0", precision, 1)
        want = cpu.run(IDS, valid_length=LENGTHS)
        found = engine.run(IDS, valid_length=LENGTHS)
        assert found.keys() == want.keys()
        for name in want:
            np.testing.assert_allclose(found[name], want[name], atol=bound)
        assert (found["sequence_output"][1, 3:] == 0).all()
        np.testing.assert_array_equal(
            engine.predict("the boat").vector, engine.predict(["sea", "the boat"])[1].vector
        )


def test_the_engine_tells_the_truth(as_cuda, path):
    with Engine.load(path, device="cuda:1", precision="fp16") as engine:
        text = engine.explain()
        assert engine.device == "cuda:1"
    assert "device     cuda:1" in text
    assert "emulated device, sm_89" in text
    assert UNPROVEN in text
    assert "linear_fp16" in text


def test_explain_tells_how_batches_were_launched(as_cuda, path):
    with Engine.load(path, device="cuda", precision="fp16") as engine:
        for _ in range(3):
            engine.run(IDS)
        text = engine.explain()
        assert "Batches of up to 16,384 tokens, 2 at once" in text
        assert "Of 3 parts 2 ran by a graph, 1 CUDA graphs made; kernels overlap" in text
        as_cuda.emulator.reset(fails="cudaGraphLaunch")
        engine.run(IDS)
        assert "no CUDA graphs (CUDA failed at a graph's launch: " in engine.explain()


def test_a_server_gives_it_the_batches_that_suit_it(as_cuda, path):
    pytest.importorskip("uvicorn")
    from bertrt.serve.models import warm_up

    with Engine.load(path, device="cuda", precision="fp16") as engine:
        assert engine.batch_tokens == 16_384
    with Engine.load(path, device="cuda", batching=Batching(tokens=64)) as engine:
        warm_up(engine)
        assert engine.batch_tokens == 64


def test_a_long_list_has_the_bits_of_its_texts_alone(as_cuda, path):
    texts = ["the boat", "sea", "the sea the boat", "boat boat"] * 20
    with (
        Engine.load(path, device="cuda", batching=Batching(tokens=60)) as engine,
        Engine.load(path, device="cuda:0,1", batching=Batching(tokens=60)) as several,
    ):
        alone = {text: engine.predict(text).vector for text in set(texts)}
        for own in (engine, several):
            for text, found in zip(texts, own.predict(texts), strict=True):
                np.testing.assert_array_equal(found.vector, alone[text])


def test_explain_tells_times_after_a_traced_run(as_cuda, path, monkeypatch):
    monkeypatch.setenv(TRACE, "1")
    with Engine.load(path, device="cuda") as engine:
        assert "Gop/s" not in engine.explain()
        engine.run(IDS)
        assert "Gop/s" in engine.explain()


def test_engines_of_the_same_files_share_their_weights(as_cuda, path):
    in_use = as_cuda.emulator.bytes_in_use
    first = Engine.load(path, device="cuda")
    weights = in_use(0)
    second = Engine.load(path, device="cuda:0")
    assert in_use(0) == weights
    half = Engine.load(path, device="cuda", precision="fp16")
    assert weights < in_use(0) < 2 * weights
    for engine in (first, second, half):
        engine.close()
    gc.collect()
    assert in_use(0) == 0


@pytest.mark.parametrize("lengths", [[5, 1, 0, 4], [3], [0, 0], [1, 1, 1, 5, 5]])
def test_several_gpus_are_one_engine(as_cuda, path, rng, lengths):
    texts = [rng.integers(5, 11, length) for length in lengths]
    with (
        Engine.load(path, device="cuda:0") as alone,
        Engine.load(path, device="cuda:1,0") as together,
    ):
        assert (together.device, together.threads) == ("cuda:1,0", 2)
        want = alone.run(texts)
        for _ in range(2):
            found = together.run(texts)
            for i in range(len(texts)):
                np.testing.assert_array_equal(
                    found["sequence_output"][i], want["sequence_output"][i]
                )
            np.testing.assert_array_equal(found["pooled_output"], want["pooled_output"])
        assert "emulated device, sm_89; emulated device, sm_89" in together.explain()


def test_what_several_gpus_did_is_told_together(as_cuda, path, monkeypatch):
    monkeypatch.setenv(TRACE, "1")
    totals = []
    for device in ("cuda", "cuda:0,1"):
        with Engine.load(path, device=device) as engine, engine._life.use("trace") as call:
            engine.run(IDS)
            totals.append([(step.name, step.operations) for step in call.backend.trace()])
            assert "Gop/s" in engine.explain()
    assert totals[0] == totals[1]


def test_what_cannot_be_had_is_refused(as_cuda, path):
    with pytest.raises(DeviceError, match=r"'cuda:2'.*this machine has 2, cuda:0 to cuda:1"):
        Engine.load(path, device="cuda:2")
    with pytest.raises(DeviceError, match=r"'cuda:0,2'.*no device 'cuda:2'"):
        Engine.load(path, device="cuda:0,2")
    with pytest.raises(InvalidInputError, match="names a GPU twice"):
        Engine.load(path, device="cuda:1,1")
    as_cuda.emulator.reset(devices=0)
    with pytest.raises(DeviceError, match=r"cannot run on 'cuda': .*finds no GPU"):
        Engine.load(path, device="cuda")


def test_too_little_memory_for_a_model_is_an_error(as_cuda, path):
    as_cuda.emulator.reset(memory_bytes=1 << 14)
    with pytest.raises(DeviceError, match=r"cannot run on 'cuda': out of device memory: .*were"):
        Engine.load(path, device="cuda")
    gc.collect()
    assert as_cuda.emulator.bytes_in_use(0) == 0


def test_an_installation_without_cuda_says_so(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bertrt._cuda", None)
    with pytest.raises(DeviceError, match=r"without bertrt\._cuda .*pip install bertrt-cuda=="):
        Engine.load(path, device="cuda")


def test_the_module_has_the_packages_version(emulated):
    assert __version__ == emulated.VERSION


def test_a_module_of_another_version_is_refused(as_cuda, path, monkeypatch):
    monkeypatch.setattr(as_cuda, "VERSION", "0.1.7")
    with pytest.raises(
        DeviceError, match=rf"version 0\.1\.7.*pip install bertrt-cuda=={__version__}"
    ):
        Engine.load(path, device="cuda")


def test_a_broken_model_is_still_named(as_cuda, path):
    (path / "model.safetensors").write_bytes(b"\0" * 16)
    with pytest.raises(ModelFormatError):
        Engine.load(path, device="cuda")
