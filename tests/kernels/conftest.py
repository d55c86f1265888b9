"""Fixtures for the kernels: every instruction set that this machine can run."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from bertrt import _native


def _importable(name: str) -> None:
    """Several files test with what one of them has made by hand, and import it by its name."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


_importable("test_native_engine")
_importable("test_kernels")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        forced = os.environ.get("BERTRT_ISA")
        metafunc.parametrize("isa", [forced] if forced else _native.supported_isas())


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)
