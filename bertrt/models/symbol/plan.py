"""From a symbol file of MXNet, with its parameters, to its plan."""

from __future__ import annotations

from pathlib import Path

from bertrt.compiler.coverage import Coverage
from bertrt.compiler.pipeline import compile_graph
from bertrt.models.symbol.reader import read_mxnet
from bertrt.plan.plan import Plan

__all__ = ["compile_symbol"]


def compile_symbol(symbol: str | Path, params: str | Path) -> tuple[Plan, Coverage]:
    """Read a symbol file and its parameters, and lay out their plan.

    Raises what :func:`~bertrt.models.symbol.reader.read_mxnet` and
    :func:`~bertrt.compiler.pipeline.compile_graph` raise.
    """
    return compile_graph(read_mxnet(symbol, params))
