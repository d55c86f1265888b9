"""Fixtures for the kernels: every instruction set that this machine can run."""

from __future__ import annotations

import os

import numpy as np
import pytest

from bertrt import _native


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        forced = os.environ.get("BERTRT_ISA")
        metafunc.parametrize("isa", [forced] if forced else _native.supported_isas())


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)
