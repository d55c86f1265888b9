"""ONNX Runtime: the model in its own fused operators (com.microsoft), which are what its
transformer optimizer makes of an exported BERT. The optimizer itself does not know the shapes of a
Gluon graph, where heads are interleaved; the graph is written from the plan instead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.bench import plans
from bertrt.bench.engines.base import Inputs, Runner
from bertrt.errors import UnsupportedModelError
from bertrt.models.model import Model
from bertrt.plan.plan import Plan
from bertrt.plan.steps import Step

METHODS = {
    "fp32": "fused operators (Attention, SkipLayerNormalization, BiasGelu, ...)",
    "int8": "the same graph after quantize_dynamic, weights per channel, activations per tensor",
}

_FILE = "model.onnx"


def convert(model: Model, precision: str, directory: str, samples: Sequence[Inputs]) -> None:
    """See `bertrt.bench.engines`."""
    import onnx

    path = Path(directory) / _FILE
    onnx.save(fused_graph(onnx, model.plan()), path)
    if precision == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        plain = path.rename(path.with_name("fp32.onnx"))
        # It cannot infer types behind operators of its own domain.
        quantize_dynamic(
            plain,
            path,
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        plain.unlink()


def load(path: str, name: str, precision: str, threads: int, directory: str) -> Runner:
    """See `bertrt.bench.engines`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(Path(directory) / _FILE), sess_options=options, providers=["CPUExecutionProvider"]
    )
    return _OnnxRuntime(session, onnxruntime.__version__)


class _OnnxRuntime(Runner):
    def __init__(self, session: Any, version: str) -> None:
        self.provider = f"onnxruntime {version}"
        self._session = session
        self._inputs = [node.name for node in session.get_inputs()]
        self._outputs = [node.name for node in session.get_outputs()]

    def prepare(self, inputs: Inputs) -> dict[str, np.ndarray]:
        return {name: getattr(inputs, name) for name in self._inputs}

    def run(self, prepared: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self._session.run(self._outputs, prepared)

    def outputs(self, answer: list[np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._outputs, answer, strict=True))


def fused_graph(onnx: Any, plan: Plan) -> Any:
    """A plan as an ONNX model of onnxruntime's fused operators, for `run`'s outputs."""
    return _Graph(onnx, plan).model()


class _Graph:
    def __init__(self, onnx: Any, plan: Plan) -> None:
        self._onnx = onnx
        self._plan = plan
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        for step in plans.runnable_steps(plan):
            getattr(self, f"_{step.op}")(step)

    def model(self) -> Any:
        helper, types = self._onnx.helper, self._onnx.TensorProto
        used = {name for node in self._nodes for name in node.input}
        inputs = {
            "token_ids": ("batch", "sequence"),
            "token_types": ("batch", "sequence"),
            "valid_length": ("batch",),
        }
        outputs = {name: self._plan.outputs[name] for name in plans.runnable_outputs(self._plan)}
        # No Identity: OpenVINO would give the output both names, and forget which is which.
        names = {value: name for name, value in outputs.items()}
        for node in self._nodes:
            node.input[:] = [names.get(value, value) for value in node.input]
            node.output[:] = [names.get(value, value) for value in node.output]
        graph = helper.make_graph(
            self._nodes,
            "bert",
            [
                helper.make_tensor_value_info(name, types.INT32, shape)
                for name, shape in inputs.items()
                if name in used
            ],
            [helper.make_tensor_value_info(name, types.FLOAT, None) for name in outputs],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def _constant(self, name: str, array: np.ndarray) -> str:
        self._constants[name] = self._onnx.numpy_helper.from_array(
            np.asarray(array, order="C"), name
        )
        return name

    def _weight(self, step: Step, role: str) -> str:
        array = plans.vector(self._plan, step, role)
        return "" if array is None else self._constant(f"{step.name}.{role}", array)

    def _node(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        fused = op not in ("MatMul", "Add", "Relu", "Tanh", "LayerNormalization", "Gather")
        domain = "com.microsoft" if fused else ""
        self._nodes.append(
            self._onnx.helper.make_node(
                op, inputs, outputs, name=f"{outputs[0]}.{op}", domain=domain, **attributes
            )
        )

    def _embed_layer_norm(self, step: Step) -> None:
        types = self._weight(step, "type")
        tables = [self._weight(step, "word"), self._weight(step, "position"), types]
        norm = [self._weight(step, "gamma"), self._weight(step, "beta")]
        ids = ["token_ids", "token_types" if types else ""]
        outputs = [step.output, f"{step.output}.mask"]
        self._node(
            "EmbedLayerNormalization", [*ids, *tables, *norm], outputs, epsilon=step.fields["eps"]
        )

    def _qkv_linear(self, step: Step) -> None:
        weight, bias = plans.qkv(self._plan, step)
        # Attention takes the projection in.
        self._projection = [
            step.inputs[0],
            self._constant(f"{step.name}.weight", weight.T),
            self._constant(f"{step.name}.bias", bias),
        ]

    def _attention(self, step: Step) -> None:
        if "bias" in step.weights:
            raise UnsupportedModelError(f"{step.name}: attention with a bias by distance")
        mask = ["valid_length"] if step.fields["mask"] == "valid_length" else []
        self._node(
            "Attention",
            [*self._projection, *mask],
            [step.output],
            num_heads=step.fields["heads"],
            scale=step.fields["scale"],
        )

    def _product(self, step: Step) -> str:
        weight = self._constant(f"{step.name}.weight", plans.matrix(self._plan, step).T)
        product = f"{step.output}.product"
        self._node("MatMul", [step.inputs[0], weight], [product])
        return product

    def _linear_add_layer_norm(self, step: Step) -> None:
        norm = [self._weight(step, "gamma"), self._weight(step, "beta")]
        inputs = [self._product(step), step.inputs[1], *norm, self._weight(step, "bias")]
        self._node("SkipLayerNormalization", inputs, [step.output], epsilon=step.fields["eps"])

    def _linear(self, step: Step) -> None:
        value, bias = self._product(step), self._weight(step, "bias")
        activation = step.fields["activation"]
        fused = {"gelu_erf": "BiasGelu", "gelu_tanh": "FastGelu"}.get(activation)
        if fused:
            self._node(fused, [value, bias], [step.output])
            return
        sum_ = step.output if activation == "none" else f"{step.output}.sum"
        if not bias:
            raise UnsupportedModelError(f"{step.name}: a linear step without bias")
        self._node("Add", [value, bias], [sum_])
        if activation != "none":
            self._node(activation.capitalize(), [sum_], [step.output])

    def _layer_norm(self, step: Step) -> None:
        inputs = [step.inputs[0], self._weight(step, "gamma"), self._weight(step, "beta")]
        self._node("LayerNormalization", inputs, [step.output], epsilon=step.fields["eps"])

    def _first_token(self, step: Step) -> None:
        zero = self._constant("zero", np.array(0, np.int64))
        self._node("Gather", [step.inputs[0], zero], [step.output], axis=1)
