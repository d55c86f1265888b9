"""PyTorch behind a compiler: its own, inductor, which writes C++ at run time and needs a compiler
for it, or AMD's plug-in for its processors (package zentorch)."""

from __future__ import annotations

import importlib

from bertrt.bench.engines.base import Runner
from bertrt.bench.engines.torch import load_compiled

METHODS = {
    "fp32": "torch.compile, frozen weights, a graph for each shape",
    "bf16": "the same, weights and activations in bfloat16",
}


def load(path: str, name: str, precision: str, threads: int, directory: str) -> Runner:
    """See `bertrt.bench.engines`."""
    # A plug-in registers itself where it is imported.
    plugin = importlib.import_module(name) if name == "zentorch" else None
    runner = load_compiled(path, precision, threads, name)
    if plugin is not None:
        runner.provider += f", {name} {plugin.__version__}"
    return runner
