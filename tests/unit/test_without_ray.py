"""What stands for Ray and Arrow where they are not installed: errors that name the extra."""

from __future__ import annotations

import importlib
import sys

import pytest

from bertrt import MissingDependencyError
from bertrt.ray.data import Predict


def test_a_data_set_needs_arrow(hugging, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = hugging.write(pooling=hugging.pooling)
    with pytest.raises(MissingDependencyError, match=r"needs pyarrow: pip install 'bertrt\[ray\]'"):
        Predict(path)


def test_serving_needs_ray_serve(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "bertrt.ray.serve", raising=False)
    with pytest.raises(MissingDependencyError, match=r"needs Ray Serve.*'bertrt\[ray\]'"):
        importlib.import_module("bertrt.ray.serve")
