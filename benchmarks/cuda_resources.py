"""What each CUDA kernel takes of a multiprocessor: registers, spills, stack, by architecture.

    python benchmarks/cuda_resources.py [sm_80 sm_90a ...]

Compiles csrc/cuda's *.cu with nvcc, which needs no GPU, and prints a table for docs/cuda.md. Shared
memory is dynamic in all kernels: their launches say how much.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def resources(report: str) -> Iterator[tuple[str, str, int, int, int]]:
    """(kernel, architecture, registers, bytes spilled, bytes of stack) of ptxas's report."""
    for found in KERNEL.finditer(report):
        spilled = int(found["stores"]) + int(found["loads"])
        yield found["name"], found["arch"], int(found["registers"]), spilled, int(found["stack"])


def readable(name: str) -> str:
    """A mangled name as C++ has it, without namespaces and arguments."""
    filt = shutil.which("c++filt")
    if filt is None:
        return name
    text = subprocess.run([filt, name], capture_output=True, text=True, check=True).stdout.strip()
    text = re.sub(r"bertrt::cuda::|\(anonymous namespace\)::|^void ", "", text)
    return re.sub(r"\((?:int|bool|long)\)|\([^()]*\)$", "", text)


def compile_for(arch: str) -> str:
    """ptxas's report on every source."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    report = ""
    with tempfile.TemporaryDirectory() as scratch:
        for source in sorted((ROOT / "csrc" / "cuda").rglob("*.cu")):
            if source.stem == "linear_fp8" and arch.startswith("sm_8") and arch != "sm_89":
                continue  # they have none
            done = subprocess.run(
                [
                    *(nvcc, "-std=c++17", f"-arch={arch}", "-cubin", "-Xptxas=-v"),
                    *(f"-I{ROOT / 'csrc'}", source, "-o", f"{scratch}/{source.stem}.cubin"),
                ],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                sys.exit(f"{source}: {done.stderr}")
            report += done.stderr
    return report


def main() -> None:
    architectures = sys.argv[1:] or ["sm_80", "sm_90a"]
    table: dict[str, dict[str, tuple[int, int, int]]] = {}
    for arch in architectures:
        for name, found, *numbers in resources(compile_for(arch)):
            table.setdefault(readable(name), {})[found] = tuple(numbers)
    print(
        "| kernel |",
        " | ".join(f"{arch}: registers, spilled, stack" for arch in architectures),
        "|",
    )
    print("| --- |", " | ".join("---" for _ in architectures), "|")
    for name in sorted(table):
        cells = (", ".join(map(str, table[name].get(arch, ("none",)))) for arch in architectures)
        print(f"| `{name}` |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
