"""The instruction sets that are used are those that the operating system says are there."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from bertrt import _native

AVX2 = {"avx2", "fma"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
VNNI = AVX512 | {"avx512_vnni"}
BF16 = VNNI | {"avx512_bf16"}
AMX = BF16 | {"amx_tile", "amx_bf16", "amx_int8"}
# The best first; what is only emulated comes last.
NEEDED = {
    "amx": [AMX],
    "avx512_bf16": [BF16],
    "avx512_vnni": [VNNI],
    "avx512": [AVX512],
    "avx_vnni": [AVX2 | {"avx_vnni"}, VNNI],
    "avx2": [AVX2],
    "portable": [set()],
    "amx_emulated": [BF16],
}


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not os.path.exists("/proc/cpuinfo"), reason="reads cpuinfo"
)
def test_supported_instruction_sets_are_those_of_the_machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).split())
    expected = [isa for isa, ways in NEEDED.items() if any(way <= flags for way in ways)]
    found = _native.supported_isas()
    if "amx" not in found and "amx" in expected:
        expected.remove("amx")  # a system may refuse the permission to use it
    assert found == expected
