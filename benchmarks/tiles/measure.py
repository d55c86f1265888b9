"""Which tile a product on this CPU is best computed in: csrc/cpu's kernels, compiled with others.

    python benchmarks/tiles/measure.py [--compiler g++] [--rounds 3]

A tile is so many rows by so many vectors of 16 columns, the two numbers kGemmRows and kGemmVectors
of an instruction set's vec.h. Every tile whose sums fit the registers is compiled from the kernels'
own sources and timed on one core, the best of all rounds, beside the peak of its instruction; by
depth, and the tile in use (*) at every height, too. benchmarks/README.md has what this prints.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DEPTHS = (384, 768, 3072)
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mavx2"]
# Rows and vectors; with the weights' vectors no more than 32 registers.
WIDE = [(14, 2), (12, 2), (10, 2), (9, 3), (8, 3), (7, 4), (6, 4), (16, 1)]


class Kernel(NamedTuple):
    """A kernel and the tiles that it is timed with: its name in C++, the folder of its source, that
    of its vec.h, the compiler's flags, the CPU's own in /proc/cpuinfo, and (rows, vectors)."""

    name: str
    source: str
    vec: str
    flags: list[str]
    needs: str
    tiles: list[tuple[int, int]]


# A vector of AVX2 is two registers.
NARROW = [(6, 1), (5, 1), (4, 1), (3, 2)]
KERNELS = [
    Kernel("avx2::kTable.gemm_f32", "avx2", "avx2", ["-mavx2", "-mfma"], "fma", NARROW),
    Kernel("avx512::kTable.gemm_f32", "avx512", "avx512", AVX512, "avx512vl", WIDE),
    *(
        Kernel(f"{isa}::{name}", isa, "avx512", [*AVX512, f"-m{isa.replace('_', '')}"], isa, WIDE)
        for isa, name in (("avx512_bf16", "kGemmBf16"), ("avx512_vnni", "kGemmS8"))
    ),
]


def vec_of(kernel: Kernel, tile: tuple[int, int] | None = None) -> tuple[str, tuple[int, int]]:
    """The text of a kernel's vec.h, with another tile if there is one, and the tile that it has."""
    text = (ROOT / "csrc" / "cpu" / kernel.vec / "vec.h").read_text(encoding="utf-8")
    own = []
    for i, constant in enumerate(("kGemmRows", "kGemmVectors")):
        found = re.search(rf"constexpr int {constant} = (\d+);", text)
        if found is None:
            sys.exit(f"{kernel.vec}/vec.h has no {constant}")
        own.append(int(found[1]))
        if tile is not None:
            text = text.replace(found[0], f"constexpr int {constant} = {tile[i]};")
    return text, (own[0], own[1])


def build(compiler: str, folder: Path, kernel: Kernel, tile: tuple[int, int]) -> Path:
    """The program that times one kernel with one tile."""
    place = folder / f"{kernel.source}-{tile[0]}x{tile[1]}"
    # Found before the one of csrc.
    vec = place / "cpu" / kernel.vec / "vec.h"
    vec.parent.mkdir(parents=True)
    vec.write_text(vec_of(kernel, tile)[0], encoding="utf-8")
    subprocess.run(
        [
            *(compiler, "-std=c++17", "-O3", "-ffp-contract=off", "-fno-exceptions", *kernel.flags),
            *("-Wno-uninitialized", "-Wno-maybe-uninitialized", f"-DKERNEL={kernel.name}"),
            *(f"-I{place}", f"-I{ROOT / 'csrc'}", Path(__file__).parent / "tile.cpp"),
            *(ROOT / "csrc" / "cpu" / kernel.source / "kernels.cpp", "-o", place / "tile"),
        ],
        check=True,
    )
    return place / "tile"


def line(*cells: object) -> None:
    """Print a line of a table."""
    print("| " + " | ".join(map(str, cells)) + " |")


def measure(compiler: str, rounds: int, kernel: Kernel, folder: Path) -> None:
    """Print a kernel's tables."""
    programs = {tile: build(compiler, folder, kernel, tile) for tile in kernel.tiles}
    # Operations a second, by tile, depth and height; and the most that any round reached at all.
    rates: dict[tuple[tuple[int, int], int, int], float] = defaultdict(float)
    peak = 0.0
    for _ in range(rounds):
        for tile, program in programs.items():
            first, *lines = subprocess.check_output([program], text=True).splitlines()
            peak = max(peak, float(first))
            for told in lines:
                depth, rows, rate = told.split()
                key = tile, int(depth), int(rows)
                rates[key] = max(rates[key], float(rate))
    reached = {key: 100 * rate / peak for key, rate in rates.items()}
    own = vec_of(kernel)[1]
    print(f"\n{kernel.name}: per cent of the peak, by depth\n")
    line("tile", *DEPTHS)
    line(*["---"] * (1 + len(DEPTHS)))
    for tile in kernel.tiles:
        shape = f"{tile[0]} x {16 * tile[1]}" + " *" * (tile == own)
        line(shape, *(f"{reached[tile, depth, tile[0]]:.0f}" for depth in DEPTHS))
    print()
    heights = range(1, own[0] + 1)
    line("rows", *heights)
    line(*["---"] * (1 + own[0]))
    line("depth 768", *(f"{reached[own, 768, rows]:.0f}" for rows in heights))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--compiler", default="g++", help="default: g++")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    given = parser.parse_args()
    info = dict(
        re.findall(r"^(model name|flags)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    )
    print(info["model name"])
    with tempfile.TemporaryDirectory() as scratch:
        for kernel in KERNELS:
            if kernel.needs in info["flags"].split():
                measure(given.compiler, given.rounds, kernel, Path(scratch))


if __name__ == "__main__":
    main()
