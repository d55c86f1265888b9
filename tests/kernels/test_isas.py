"""The instruction sets that are used are those that the operating system says are there."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
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


# Bits of what getauxval says: asimddp of AT_HWCAP, i8mm and bf16 of AT_HWCAP2 (Linux,
# Documentation/arch/arm64/elf_hwcaps.rst).
DOTPROD, I8MM, BF16_PRODUCTS = (16, 1 << 20), (26, 1 << 13), (26, 1 << 14)
NEEDED_ON_ARM = {
    "neon_bf16": {DOTPROD, I8MM, BF16_PRODUCTS},
    "neon_i8mm": {DOTPROD, I8MM},
    "neon_dotprod": {DOTPROD},
    "neon": set(),
    "portable": set(),
}


@pytest.mark.skipif(
    platform.machine() != "aarch64" or sys.platform != "linux", reason="asks Linux on 64-bit Arm"
)
def test_supported_instruction_sets_on_arm_are_those_that_linux_names():
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    expected = [
        isa
        for isa, needed in NEEDED_ON_ARM.items()
        if all(getauxval(kind) & bit for kind, bit in needed)
    ]
    assert _native.supported_isas() == expected
