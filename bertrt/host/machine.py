"""The machine: its name, and what it can do at most."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["cpu_name", "machine_peaks"]


def cpu_name() -> str:
    """The CPU as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


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
