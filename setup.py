"""Builds the extension bertrt._native with CMake; everything else is in pyproject.toml.

With BERTRT_CUDA=1 in the environment it builds bertrt._cuda too, with the nvcc of this machine or,
where there is none, that of the package nvidia-cuda-nvcc. csrc/cuda/setup.py, which takes what it
needs from here, makes a package of its own of that extension.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CUDA = os.environ.get("BERTRT_CUDA", "0") not in ("", "0")


class CMakeExtension(Extension):
    """An extension whose sources CMakeLists.txt knows."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    """Configures and builds the CMake target that is named like the extension."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "-S", str(ROOT),
            "-B", str(build),
            "-G", "Ninja",
            # pip builds in an environment that is gone when it builds here again.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DBERTRT_CUDA={'ON' if CUDA or ext.name == 'bertrt._cuda' else 'OFF'}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        target = ext.name.rpartition(".")[2]
        subprocess.run(["cmake", "--build", str(build), "--target", target], check=True)


def nvcc_wheel() -> list[str]:
    """What is needed to build bertrt._cuda besides what pyproject.toml lists."""
    homes = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")), Path("/usr/local/cuda")]
    found = shutil.which("nvcc") or any((home / "bin" / "nvcc").exists() for home in homes)
    return ["nvidia-cuda-nvcc>=13,<14"] if not found else []


if __name__ == "__main__":
    setup(
        ext_modules=[CMakeExtension(f"bertrt.{name}") for name in ("_native", *["_cuda"] * CUDA)],
        setup_requires=nvcc_wheel() if CUDA else [],
        cmdclass={"build_ext": CMakeBuild},
    )
