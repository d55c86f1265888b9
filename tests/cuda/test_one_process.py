"""The modules of the CPU, of GPUs and of the emulator, loaded into one process in any order."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

USE = """
import importlib.util, itertools, sys
import numpy as np
path, handmade_path, *order = sys.argv[1:]

def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

loaders = {
    "cpu": lambda: __import__("bertrt._native")._native,
    "gpu": lambda: __import__("bertrt._cuda")._cuda,
    "emulator": lambda: load("_cuda_emulated", path),
}
modules = {name: loaders[name]() for name in order}
from bertrt import DeviceError, InvalidInputError
handmade = load("handmade", handmade_path)
rng = np.random.default_rng(0)
made = handmade.make_plan(rng)
batch = handmade.batch_of(rng, [3, 5])
answers = {}
for name, module in modules.items():
    if name != "cpu":
        try:
            found = module.devices()
        except DeviceError as error:  # of Python's own class, from each module
            assert name == "gpu", error
            continue
        assert all(type(device) is module.Device for device in found)
    engine = module.Engine(module.Model(*made), *([1] if name == "cpu" else []))
    if name != "cpu":
        assert type(engine.device) is module.Device
    answers[name] = engine.run(*batch, ["pooled_output"])["pooled_output"]
    try:
        engine.run(*batch, ["no output"])
    except InvalidInputError:
        pass
    else:
        raise AssertionError(name)
for name, answer in answers.items():
    np.testing.assert_allclose(answer, answers["cpu"], atol=5e-6)
for one, other in itertools.permutations(modules.values(), 2):
    for kind in ("Model", "Engine"):
        assert getattr(one, kind) is not getattr(other, kind)
try:
    modules["emulator"].Engine(modules["cpu"].Model(*made))
except TypeError:
    print(sorted(answers))
"""
HANDMADE = Path(__file__).parents[1] / "kernels" / "test_native_engine.py"


def use(path: Path, *order: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", USE, str(path), str(HANDMADE), *order],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("order", [("cpu", "emulator"), ("emulator", "cpu")])
def test_the_emulator_and_the_cpu(path_of_emulated, order):
    assert use(path_of_emulated, *order) == "['cpu', 'emulator']\n"


@pytest.mark.parametrize(
    "order", [("gpu", "emulator", "cpu"), ("emulator", "gpu", "cpu"), ("cpu", "gpu", "emulator")]
)
def test_the_emulator_and_a_gpu(path_of_emulated, order):
    if importlib.util.find_spec("bertrt._cuda") is None:
        pytest.skip("no bertrt._cuda of this Python: BERTRT_CUDA=1 pip install --editable .")
    assert "'cpu', 'emulator'" in use(path_of_emulated, *order)
