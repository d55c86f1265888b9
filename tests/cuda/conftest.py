"""Fixtures for the CUDA kernels: the modules that have them, elements as arrays, a plan by hand.

They run on the emulator, which is built here; and where bertrt._cuda finds a GPU, on that too."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
# A folder of each Python: they build by turns from one tree.
BUILD = ROOT / "build" / f"emulated-{sys.implementation.cache_tag}"


class Element:
    """What rows are made of: fp32, fp16 or bf16."""

    # How far rounding moves a number at most: relative, and below the normal numbers.
    roundings = {  # noqa: RUF012
        "fp32": (2.0**-24, 2.0**-150),
        "fp16": (2.0**-11, 2.0**-25),
        "bf16": (2.0**-8, 2.0**-134),
    }

    def __init__(self, name: str) -> None:
        self.name = name

    def pack(self, x: np.ndarray) -> np.ndarray:
        """Rounded to this element, as the kernels' bindings take it: float32, or bits."""
        x = np.ascontiguousarray(x, np.float32)
        if self.name == "fp32":
            return x
        if self.name == "fp16":
            return x.astype(np.float16).view(np.uint16)
        bits = x.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)

    def unpack(self, x: np.ndarray) -> np.ndarray:
        """Float32 of what the bindings return."""
        if self.name == "fp32":
            return x
        if self.name == "fp16":
            return x.view(np.float16).astype(np.float32)
        return (x.astype(np.uint32) << 16).view(np.float32)

    def round(self, x: np.ndarray) -> np.ndarray:
        """Float32 that this element holds exactly."""
        return self.unpack(self.pack(x))

    def rounding(self, x: np.ndarray) -> np.ndarray:
        """The largest error of rounding x."""
        relative, absolute = self.roundings[self.name]
        return np.abs(x) * relative + absolute


@cache
def emulated_path() -> Path:
    """The module _cuda_emulated, brought up to date; pytest skips where it cannot be built."""
    pybind11 = pytest.importorskip("pybind11", reason="the emulator is built with pybind11")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake, ninja = (shutil.which(name, path=path) for name in ("cmake", "ninja"))
    if cmake is None or ninja is None:
        pytest.skip("the emulator is built with cmake and ninja")
    for command in (
        [
            *(cmake, "-S", ROOT, "-B", BUILD, "-G", "Ninja", "-DBERTRT_CUDA=EMULATED"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ],
        [cmake, "--build", BUILD, "--target", "_cuda_emulated"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return BUILD / f"_cuda_emulated{importlib.machinery.EXTENSION_SUFFIXES[0]}"


@cache
def build_emulated() -> ModuleType:
    """The same, loaded."""
    spec = importlib.util.spec_from_file_location("_cuda_emulated", emulated_path())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def on_gpu() -> ModuleType | str:
    """The module bertrt._cuda, or why it cannot be used."""
    from bertrt.errors import DeviceError

    try:
        module = importlib.import_module("bertrt._cuda")
        module.devices()
    except (ImportError, DeviceError) as error:
        return str(error)
    return module


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cuda" in metafunc.fixturenames:
        places: list[object] = ["emulated"]
        if not isinstance(on_gpu(), str):
            places.append(pytest.param("gpu", marks=pytest.mark.gpu))
        metafunc.parametrize("cuda", places, indirect=True)
    if "element" in metafunc.fixturenames:
        elements = [Element(name) for name in Element.roundings]
        metafunc.parametrize("element", elements, ids=lambda element: element.name)


@pytest.fixture
def emulated() -> Iterator[ModuleType]:
    """The module on the emulator, as it is when it starts."""
    module = build_emulated()
    module.emulator.reset()
    yield module
    module.emulator.reset()


@pytest.fixture(scope="session")
def path_of_emulated() -> Path:
    return emulated_path()


@pytest.fixture
def cuda(request: pytest.FixtureRequest) -> ModuleType:
    """A module of CUDA kernels: on the emulator, and on a GPU where there is one."""
    if request.param == "emulated":
        return request.getfixturevalue("emulated")
    module = on_gpu()
    assert not isinstance(module, str)
    return module


@pytest.fixture
def installed(cuda: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module in the place of bertrt._cuda, on the emulator or on a GPU."""
    monkeypatch.setitem(sys.modules, "bertrt._cuda", cuda)
    return cuda


@pytest.fixture
def path(hugging: Any) -> Path:
    """A small model's Hugging Face directory, with a head of 32."""
    config = {**hugging.config, "hidden_size": 32, "num_attention_heads": 1}
    return hugging.write(config, hugging.weights(config))


@pytest.fixture
def hopper(cuda: ModuleType) -> ModuleType:
    """A module of CUDA kernels where those for Hopper can run."""
    if not hasattr(cuda, "emulator") and cuda.devices()[0].arch != "sm_90":
        pytest.skip("Hopper's kernels need a GPU of compute capability 9.0")
    return cuda


@pytest.fixture(params=["fp16", "bf16"])
def half(request: pytest.FixtureRequest) -> Element:
    return Element(request.param)


@pytest.fixture
def element_by_name() -> type[Element]:
    return Element


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1234)


def load(name: str, path: Path) -> ModuleType:
    """Another test's module, for what it has beside tests."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def handmade() -> ModuleType:
    """The plan of the CPU engine's tests, and its oracle in double precision."""
    return load("handmade", Path(__file__).parents[1] / "kernels" / "test_native_engine.py")


@pytest.fixture(scope="session")
def products() -> ModuleType:
    """Attention in double precision with its bounds, and draws: those of test_products.py."""
    return load("products", Path(__file__).with_name("test_products.py"))


@pytest.fixture(scope="session")
def table_of_tiles() -> ModuleType:
    return load("gpu_tiles", ROOT / "benchmarks" / "gpu" / "tiles.py")


@pytest.fixture
def made(handmade, rng) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return handmade.make_plan(rng)
