"""PyTorch behind AMD's plug-in for its processors (package zentorch)."""

from __future__ import annotations

from bertrt.bench.engines.base import Runner
from bertrt.bench.engines.torch import load_compiled

METHODS = {
    "fp32": "torch.compile with zentorch, frozen weights, a graph for each shape",
    "bf16": "the same, weights and activations in bfloat16",
}


def load(path: str, name: str, precision: str, threads: int, directory: str) -> Runner:
    """See `bertrt.bench.engines`."""
    import zentorch

    runner = load_compiled(path, precision, threads, "zentorch")
    runner.provider += f", zentorch {zentorch.__version__}"
    return runner
