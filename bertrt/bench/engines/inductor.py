"""PyTorch behind its own compiler, which writes C++ at run time and needs a compiler for it."""

from __future__ import annotations

from bertrt.bench.engines.base import Runner
from bertrt.bench.engines.torch import load_compiled

METHODS = {
    "fp32": "torch.compile, frozen weights, a graph for each shape",
    "bf16": "the same, weights and activations in bfloat16",
}


def load(path: str, name: str, precision: str, threads: int, directory: str) -> Runner:
    """See `bertrt.bench.engines`."""
    return load_compiled(path, precision, threads, "inductor")
