"""OpenVINO: the model in its own format, compiled for latency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.bench.engines.base import Inputs, Runner
from bertrt.bench.engines.onnxruntime import fused_graph
from bertrt.bench.plans import runnable_outputs
from bertrt.models.model import Model

METHODS = {
    "bf16": "inference precision bf16",
    "int8": "nncf.quantize for transformers: weights per channel, activations in static ranges",
}

_FILE = "model.xml"


def convert(model: Model, precision: str, directory: str, samples: Sequence[Inputs]) -> None:
    """See `bertrt.bench.engines`."""
    import openvino

    # The bundle's graph is a little faster in bf16, but nncf finds no weights to quantise in it, as
    # they stand behind a transposition.
    plan = model.plan()
    path = model.onnx_path
    if precision == "int8" or path is None or runnable_outputs(plan) != list(plan.outputs):
        import onnx

        path = Path(directory) / "model.onnx"
        onnx.save(fused_graph(onnx, plan), path)
    graph = openvino.Core().read_model(str(path))
    if precision == "int8":
        import nncf

        feeds = [_feeds(graph, inputs) for inputs in samples]
        graph = nncf.quantize(
            graph,
            nncf.Dataset(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(feeds),
        )
    openvino.save_model(graph, str(Path(directory) / _FILE), compress_to_fp16=False)


def load(path: str, name: str, precision: str, threads: int, directory: str) -> Runner:
    """See `bertrt.bench.engines`."""
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(str(Path(directory) / _FILE)), "CPU", settings)
    return _OpenVino(compiled, openvino.__version__.partition("-")[0])


def _feeds(graph: Any, inputs: Inputs) -> dict[str, np.ndarray]:
    return {
        node.any_name: getattr(inputs, node.any_name).astype(node.element_type.to_dtype())
        for node in graph.inputs
    }


class _OpenVino(Runner):
    def __init__(self, compiled: Any, version: str) -> None:
        self.provider = f"openvino {version}"
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._outputs = [node.any_name for node in compiled.outputs]

    def prepare(self, inputs: Inputs) -> dict[str, np.ndarray]:
        return _feeds(self._compiled, inputs)

    def run(self, prepared: dict[str, np.ndarray]) -> Any:
        # Nothing is copied, neither on the way in nor on the way out.
        return self._request.infer(prepared, share_inputs=True, share_outputs=True)

    def outputs(self, answer: Any) -> dict[str, np.ndarray]:
        return {name: np.array(answer[name]) for name in self._outputs}
