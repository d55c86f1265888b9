"""CTranslate2: the encoder by its own model specification. It has no heads but a pooler; they are
computed in numpy, within the time."""

from __future__ import annotations

import json
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
    "int8": "weights per output channel, activations per token at run time "
    "(compute type int8_float32)",
}

_LAYER = ("qkv_linear", "attention", "linear_add_layer_norm", "linear", "linear_add_layer_norm")
_HEADS = ("first_token", "linear")
_ACTIVATIONS = {"gelu_erf": "GELU", "gelu_tanh": "GELUTanh", "relu": "RELU"}
_COMPUTE = {"fp32": "float32", "int8": "int8_float32"}


def convert(model: Model, precision: str, directory: str, samples: Sequence[Inputs]) -> None:
    """See `bertrt.bench.engines`."""
    plan = model.plan()
    end = 1 + len(_LAYER) * plan.architecture["layers"]
    expected = ("embed_layer_norm", *_LAYER * plan.architecture["layers"])
    heads = [step for step in plans.runnable_steps(plan) if step not in plan.steps[:end]]
    known = all(step.op in _HEADS for step in heads)
    known &= not any(step.op == "attention" and step.weights for step in plan.steps)
    if tuple(step.op for step in plan.steps[:end]) != expected or not known:
        raise UnsupportedModelError("CTranslate2 has no encoder of this kind")
    spec = _specification(plan)
    spec.optimize(quantization=_COMPUTE[precision])
    spec.save(directory)

    # The heads in a form that is read without the model.
    arrays: dict[str, np.ndarray] = {}
    for step in heads:
        if step.op == "linear":
            arrays[f"{step.name}.weight"] = plans.matrix(plan, step)
            bias = plans.vector(plan, step, "bias")
            arrays[f"{step.name}.bias"] = np.zeros(1, np.float32) if bias is None else bias
    np.savez(Path(directory) / "heads.npz", **arrays)
    content = {
        "encoded": plan.steps[end - 1].output,
        "outputs": {name: plan.outputs[name] for name in plans.runnable_outputs(plan)},
        "steps": [
            [step.op, step.name, step.inputs[0], step.output, step.fields.get("activation")]
            for step in heads
        ],
    }
    (Path(directory) / "heads.json").write_text(json.dumps(content))


def _specification(plan: Plan) -> Any:
    from ctranslate2.specs import common_spec, transformer_spec

    architecture = plan.architecture
    embedding = plan.steps[0]
    tables = [role for role in ("word", "type") if role in embedding.weights]
    encoder = transformer_spec.TransformerEncoderSpec(
        architecture["layers"],
        architecture["heads"],
        pre_norm=False,
        activation=getattr(common_spec.Activation, _ACTIVATIONS[architecture["activation"]]),
        num_source_embeddings=len(tables),
        embeddings_merge=common_spec.EmbeddingsMerge.ADD,
        layernorm_embedding=True,
    )
    encoder.scale_embeddings = False

    def linear(target: Any, step: Step) -> None:
        # Quantising works in place, on what is not mapped from a file.
        target.weight = np.array(plans.matrix(plan, step))
        target.bias = plans.vector(plan, step, "bias")

    def norm(target: Any, step: Step) -> None:
        target.gamma = plans.vector(plan, step, "gamma")
        target.beta = plans.vector(plan, step, "beta")

    embeddings = (
        encoder.embeddings if isinstance(encoder.embeddings, list) else [encoder.embeddings]
    )
    for table, role in zip(embeddings, tables, strict=True):
        table.weight = np.array(plans.vector(plan, embedding, role))
    encoder.position_encodings.encodings = plans.vector(plan, embedding, "position")
    norm(encoder.layernorm_embedding, embedding)
    for index, layer in enumerate(encoder.layer):
        first = 1 + len(_LAYER) * index
        qkv, _, attended, inner, outer = plan.steps[first : first + len(_LAYER)]
        projection = layer.self_attention.linear[0]
        projection.weight, projection.bias = plans.qkv(plan, qkv)
        linear(layer.self_attention.linear[1], attended)
        norm(layer.self_attention.layer_norm, attended)
        linear(layer.ffn.linear_0, inner)
        linear(layer.ffn.linear_1, outer)
        norm(layer.ffn.layer_norm, outer)

    spec = transformer_spec.TransformerEncoderModelSpec(encoder)
    spec.register_vocabulary([f"token{i}" for i in range(architecture["vocab_size"])])
    spec.config.unk_token = "token0"
    spec.config.layer_norm_epsilon = architecture["layer_norm_eps"]
    spec.validate()
    return spec


def load(path: str, name: str, precision: str, threads: int, directory: str) -> Runner:
    """See `bertrt.bench.engines`."""
    import ctranslate2

    encoder = ctranslate2.Encoder(
        directory, compute_type=_COMPUTE[precision], inter_threads=1, intra_threads=threads
    )
    return _CTranslate2(ctranslate2, encoder, Path(directory))


class _CTranslate2(Runner):
    def __init__(self, library: Any, encoder: Any, directory: Path) -> None:
        self.provider = f"ctranslate2 {library.__version__}"
        self._view = library.StorageView.from_array
        self._encoder = encoder
        self._heads = json.loads((directory / "heads.json").read_text())
        self._weights = dict(np.load(directory / "heads.npz"))

    def prepare(self, inputs: Inputs) -> tuple[Any, Any, list[list[int]]]:
        return (
            self._view(inputs.token_ids),
            self._view(inputs.valid_length),
            inputs.token_types.tolist(),
        )

    def run(self, prepared: tuple[Any, Any, list[list[int]]]) -> dict[str, np.ndarray]:
        ids, lengths, types = prepared
        answer = self._encoder.forward_batch(ids, lengths=lengths, token_type_ids=types)
        values = {self._heads["encoded"]: np.array(answer.last_hidden_state)}
        for op, name, source, output, activation in self._heads["steps"]:
            x = values[source]
            if op == "first_token":
                values[output] = x[:, 0]
                continue
            x = x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
            values[output] = np.tanh(x) if activation == "tanh" else x
        return values

    def outputs(self, answer: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self._heads["outputs"]
        return {name: answer[value] for name, value in outputs.items() if value in answer}
