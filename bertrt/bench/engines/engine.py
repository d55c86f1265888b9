"""Our own backends, through `bertrt.Engine`: native in each precision, and MXNet."""

from __future__ import annotations

from typing import Any

import numpy as np

from bertrt.bench.engines.base import Inputs, Runner
from bertrt.engine import Engine

METHODS = {
    "bf16": "products with weights in bfloat16",
    "int8": "weights per output channel, activations per token at run time",
}


def load(path: str, name: str, precision: str, threads: int, directory: str) -> Runner:
    """See `bertrt.bench.engines`."""
    if name == "mxnet":
        _restore_numpy_names()
    return _Engine(Engine.load(path, backend=name, precision=precision, threads=threads))


def _restore_numpy_names() -> None:
    # Names that numpy 1.24 dropped are all that keeps MXNet 1.9.1 from running with numpy 1.26, and
    # so beside the other peers. They are put back here, in a process that does nothing else.
    for name, builtin in (("bool", bool), ("object", object), ("int", int), ("float", float)):
        if name not in vars(np):
            setattr(np, name, builtin)


class _Engine(Runner):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.provider = engine.provider

    def run(self, prepared: Inputs) -> dict[str, Any]:
        return self._engine.run(prepared.token_ids, prepared.token_types, prepared.valid_length)

    def outputs(self, answer: dict[str, Any]) -> dict[str, np.ndarray]:
        return answer
