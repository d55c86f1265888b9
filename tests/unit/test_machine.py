"""What a CPU is called."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from bertrt.host import machine

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C
flags\t\t: fpu vme

processor\t: 1
model name\t: another
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: {part}
CPU revision\t: 1
"""


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (X86, "Intel(R) Xeon(R) Platinum 8481C"),
        (ARM.format(part="0xd0c"), "Neoverse-N1"),
        (ARM.format(part="0xfff"), f"{platform.machine()}, core 0xfff of maker 0x41"),
        ("", platform.machine()),
        (None, platform.machine()),
    ],
)
def test_cpu_name(tmp_path, monkeypatch, cpuinfo, name):
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    monkeypatch.setattr(machine, "Path", lambda found: path if "cpuinfo" in found else Path(found))
    assert machine.cpu_name() == name
