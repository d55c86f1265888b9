"""The compiler needs numpy only, until an ONNX file is read."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_compiler_imports_no_framework():
    code = (
        "import sys, bertrt.compiler.pipeline\n"
        "import bertrt.models.symbol.reader, bertrt.models.onnx.reader\n"
        "found = {'mxnet', 'gluonnlp', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
        "sys.exit(f'imported {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_missing_onnx_names_the_extra(monkeypatch, tmp_path):
    import pytest

    from bertrt.errors import MissingDependencyError
    from bertrt.models.onnx.reader import read_onnx

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"pip install bertrt\[onnx\]"):
        read_onnx(tmp_path / "model.onnx")
