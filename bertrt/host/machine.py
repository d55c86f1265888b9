"""The machine: its name, and what it can do at most."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["cpu_name", "machine_peaks"]


# Cores of servers, by the numbers of their maker and of their kind, MIDR_EL1's (from util-linux,
# sys-utils/lscpu-arm.c). Linux tells these numbers where it names no model.
_ARM_CORES = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd84"): "Neoverse-V3",
    ("0x41", "0xd8e"): "Neoverse-N3",
    ("0x46", "0x001"): "A64FX",
    ("0x48", "0xd01"): "TaiShan-v110",
    ("0xc0", "0xac3"): "Ampere-1",
    ("0xc0", "0xac4"): "Ampere-1a",
}


def cpu_name() -> str:
    """The CPU as the system names it; on Arm its core, or the numbers that stand for it."""
    cpuinfo = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}  # of the first core
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    if "model name" in fields:
        return fields["model name"]
    core = fields.get("CPU implementer", ""), fields.get("CPU part", "")
    if all(core):
        return _ARM_CORES.get(core, f"{platform.machine()}, core {core[1]} of maker {core[0]}")
    return platform.machine()


def machine_peaks(threads: int) -> dict[str, Any]:
    """What `threads` threads reach with the native engine's instruction set, measured in about a
    second, and the first time only.

    Returns:
        "isa", its name; "fp32", "bf16" and "int8", operations a second on registers alone (an
        addition and a multiplication are two); "read", bytes a second from memory.

    Raises:
        DeviceError: BERTRT_ISA names an instruction set that cannot be used here.
    """
    return dict(_machine_peaks(threads, os.environ.get("BERTRT_ISA")))


@functools.cache
def _machine_peaks(threads: int, isa: str | None) -> dict[str, Any]:
    from bertrt import _native

    return dict(_native.machine_peaks(threads))
