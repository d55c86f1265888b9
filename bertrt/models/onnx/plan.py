"""From an ONNX file to its plan."""

from __future__ import annotations

from pathlib import Path

from bertrt.compiler.coverage import Coverage
from bertrt.compiler.pipeline import compile_at_sizes
from bertrt.models.onnx.reader import open_onnx
from bertrt.plan.plan import Plan

__all__ = ["compile_onnx"]


def compile_onnx(path: str | Path) -> tuple[Plan, Coverage]:
    """Read an ONNX file and lay out its plan.

    Raises what :func:`~bertrt.models.onnx.reader.open_onnx` and
    :func:`~bertrt.compiler.pipeline.compile_graph` raise.
    """
    return compile_at_sizes(open_onnx(path))
