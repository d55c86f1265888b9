"""The executor's own threads, under the thread sanitizer: threads.cpp says how."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    "tests/cuda/threads.cpp",
    *(f"csrc/cuda/{name}.cpp" for name in ("batch_inputs", "engine", "kernel_choice", "model")),
    *(f"csrc/cuda/{name}.cpp" for name in ("part", "runtime")),
    *(f"csrc/runtime/{name}.cpp" for name in ("arena", "graph", "weights")),
    "csrc/plan/plan.cpp",
    *(f"tests/cuda/emulator/{name}.cpp" for name in ("device_memory", "runtime", "streams")),
]


def test_many_threads_on_one_engine_race_nowhere(tmp_path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    program = tmp_path / "threads"
    options = ["-std=c++17", "-O1", "-g1", "-pthread", "-fsanitize=thread"]
    folders = [f"-I{ROOT / name}" for name in ("tests/cuda/emulator", "csrc", "tests/cuda")]
    sources = [ROOT / name for name in SOURCES]
    trial = subprocess.run(
        [compiler, "-fsanitize=thread", "-x", "c++", "-", "-o", program],
        input="int main() {}",
        capture_output=True,
        text=True,
    )
    if trial.returncode or subprocess.run([program], capture_output=True).returncode:
        pytest.skip("no program of the thread sanitizer can be made, or run, here")
    subprocess.run(
        [compiler, *options, "-DBERTRT_CUDA_EMULATOR", *folders, *sources, "-o", program],
        check=True,
    )
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
