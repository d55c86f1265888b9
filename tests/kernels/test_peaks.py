"""The machine's peaks: what can be said of them without a clock."""

from __future__ import annotations

import pytest

from bertrt import _native
from bertrt.errors import DeviceError


# Measuring takes a second: the instruction set in use and the narrowest.
@pytest.mark.parametrize("name", [_native.supported_isas()[0], "portable"])
def test_peaks(name, monkeypatch) -> None:
    monkeypatch.setenv("BERTRT_ISA", name)
    peaks = _native.machine_peaks(1)
    assert peaks.pop("isa") == name
    assert set(peaks) == {"fp32", "bf16", "int8", "read"}
    # A loop that the compiler has done away with would be far beyond; a slow machine is far above.
    assert all(1e8 < value < 1e14 for value in peaks.values())


def test_the_present_peak_is_of_the_same_kind() -> None:
    assert 1e8 < _native.present_fp32_peak(1) < 1e14


def test_refusals(monkeypatch) -> None:
    with pytest.raises(DeviceError, match="0"):
        _native.machine_peaks(0)
    monkeypatch.setenv("BERTRT_ISA", "mmx")
    with pytest.raises(DeviceError, match="mmx"):
        _native.machine_peaks(1)
