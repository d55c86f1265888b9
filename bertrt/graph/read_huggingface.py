"""From Hugging Face's ``config.json`` and ``model.safetensors`` to a plan.

What they describe is one architecture with a few settings, so there is no graph to fuse: the plan
is written down. Every setting that would change the numbers, and that a plan cannot say, is refused
by its name.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import MissingFileError, ModelFormatError, UnsupportedModelError
from bertrt.graph.bundle import read_json
from bertrt.graph.ir import Constant
from bertrt.graph.plan import Plan, Step
from bertrt.graph.safetensors import read_safetensors

__all__ = ["WEIGHTS", "Config", "make_plan", "read_object", "read_weights"]

WEIGHTS = "model.safetensors"

_CLASSIFIER = "BertForSequenceClassification"
# These carry pretraining heads (cls.*), which an embedding has no use for.
_ENCODERS = ("BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForNextSentencePrediction")

_ACTIVATIONS = {
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A ``config.json`` that describes a BERT that a plan can say.

    Attributes:
        path: the file.
        content: what it holds.
    """

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Config:
        """Read and check a ``config.json``.

        Raises:
            MissingFileError: there is no such file.
            ModelFormatError: it is broken; UnsupportedModelError, a kind of it, where it has a
                setting that would change the numbers.
        """
        config = cls(path, read_object(path))
        config._refuse("model_type", "bert", "bert")
        config._refuse("position_embedding_type", "absolute", "absolute")
        config._refuse("is_decoder", False, False)
        config._refuse("add_cross_attention", False, False)
        for name in ("pruned_heads", "quantization_config"):
            if config.content.get(name):
                raise UnsupportedModelError(f"{path}: {name} is set, which is not supported")
        config.activation, config.layer_norm_eps  # noqa: B018 - for their errors
        architecture = config.architecture
        if architecture is not None and architecture not in (_CLASSIFIER, *_ENCODERS):
            raise UnsupportedModelError(
                f"{path}: the architecture {architecture!r} is not supported; "
                f"supported are {', '.join((_CLASSIFIER, *_ENCODERS))}"
            )
        if config.count("hidden_size") % config.count("num_attention_heads"):
            raise ModelFormatError(
                f"{path}: hidden_size {config.count('hidden_size')} is no multiple of "
                f"num_attention_heads {config.count('num_attention_heads')}"
            )
        return config

    @property
    def architecture(self) -> str | None:
        """The name of the model's class; None where the file does not say."""
        names = self.content.get("architectures")
        if not names:
            return None
        if not isinstance(names, list) or not isinstance(names[0], str):
            raise ModelFormatError(f"{self.path}: architectures should be a list of names")
        return names[0]

    @property
    def activation(self) -> str:
        """The activation of the feed-forward blocks, by its name in plans."""
        name = self.content.get("hidden_act", "gelu")
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            raise UnsupportedModelError(
                f"{self.path}: hidden_act {name!r} is not supported; "
                f"supported are {', '.join(_ACTIVATIONS)}"
            )
        return _ACTIVATIONS[name]

    @property
    def layer_norm_eps(self) -> float:
        """The epsilon of every layer normalisation."""
        value = self.content.get("layer_norm_eps", 1e-12)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise ModelFormatError(
                f"{self.path}: layer_norm_eps should be a small number, found {value!r}"
            )
        return float(value)

    def count(self, name: str) -> int:
        """The setting `name`, which has to be a whole number from 1."""
        value = self.content.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
            raise ModelFormatError(
                f"{self.path}: {name} should be a whole number from 1, found {value!r}"
            )
        return value

    @property
    def classes(self) -> int:
        """The outputs of a sequence classifier, by the rules of transformers."""
        if names := self.content.get("id2label"):
            if not isinstance(names, dict):
                raise ModelFormatError(
                    f"{self.path}: id2label should map 0, 1, ... to different names, "
                    f"found {names!r}"
                )
            return len(names)
        return self.count("num_labels") if "num_labels" in self.content else 2

    def head(self) -> tuple[str, list[str] | None]:
        """The task of a sequence classifier, and its labels where it is a classification.

        As long as `classes` says; to be asked for when the weights have been found to agree.
        """
        classes, kind = self.classes, self.content.get("problem_type")
        if kind not in (None, "single_label_classification", "regression"):
            raise UnsupportedModelError(f"{self.path}: problem_type {kind!r} is not supported")
        if kind == "regression" and classes != 1:
            raise UnsupportedModelError(
                f"{self.path}: regression with {classes} outputs is not supported"
            )
        if kind == "regression" or (kind is None and classes == 1):
            return "regression", None
        names = self.content.get("id2label") or {str(i): f"LABEL_{i}" for i in range(classes)}
        labels = [str(names.get(str(index), "")) for index in range(classes)]
        if "" in labels or len(set(labels)) < classes:
            raise ModelFormatError(
                f"{self.path}: id2label should map 0, 1, ... to different names, found {names!r}"
            )
        return "classification", labels

    def _refuse(self, name: str, default: Any, supported: Any) -> None:
        found = self.content.get(name, default)
        if found is None:
            found = default
        if found != supported:
            raise UnsupportedModelError(
                f"{self.path}: {name} is {found!r}, and only {supported!r} is supported"
            )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. MissingFileError and ModelFormatError say what is wrong."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ModelFormatError(f"{path} should hold a JSON object")
    return content


def read_weights(config: Config) -> tuple[dict[str, Constant], list[str]]:
    """Map the weights beside a ``config.json``, and check that they are the ones it describes.

    Returns:
        The float32 weights by the names that ``BertModel`` has today, without the prefix ``bert.``
        and with ``weight`` and ``bias`` for what was ``gamma`` and ``beta``; a sequence
        classifier's head is ``classifier.*``. And the names of the tensors that have no use:
        pretraining heads.

    Raises:
        MissingFileError: there is no ``model.safetensors``.
        ModelFormatError: the file is broken, or its tensors are missing, unexpected or of the wrong
            shape (all are named); UnsupportedModelError where they are no floats.
    """
    path = config.path.with_name(WEIGHTS)
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist{_other_weights(path)}")
    tensors = read_safetensors(path)
    classifier = config.architecture == _CLASSIFIER or (
        config.architecture is None and "classifier.weight" in tensors
    )
    weights: dict[str, Constant] = {}
    left_out = []
    for name, constant in tensors.items():
        if name.endswith("position_ids"):  # a buffer of 0, 1, 2, ...; not a weight
            continue
        if not classifier and name.startswith(("cls.", "classifier.")):
            left_out.append(name)
            continue
        plain = name.removeprefix("bert.")
        plain = re.sub(r"(?<=LayerNorm\.)gamma$", "weight", plain)
        plain = re.sub(r"(?<=LayerNorm\.)beta$", "bias", plain)
        if plain in weights:
            raise ModelFormatError(f"{path}: the tensor {plain} is there twice, as {name} too")
        if constant.array.dtype != np.float32:
            raise UnsupportedModelError(
                f"{path}: the tensor {name} has type {constant.array.dtype}, expected floats"
            )
        weights[plain] = dataclasses.replace(constant, name=plain)
    _check_weights(path, weights, _shapes(config, weights, classifier))
    return weights, left_out


def _other_weights(path: Path) -> str:
    if path.with_name(path.name + ".index.json").exists():
        return "; the weights are in several shards: save them as one file"
    if path.with_name("pytorch_model.bin").exists():
        return "; pytorch_model.bin is a pickle and is never read: save it as safetensors"
    return ""


def _shapes(
    config: Config, weights: Mapping[str, Constant], classifier: bool
) -> dict[str, tuple[int, ...]]:
    """The weights that a model should have."""
    layers, hidden = config.count("num_hidden_layers"), config.count("hidden_size")
    if layers > len(weights):
        raise ModelFormatError(
            f"{config.path}: num_hidden_layers is {layers}, and {WEIGHTS} has only "
            f"{len(weights)} weights"
        )
    shapes: dict[str, tuple[int, ...]] = {}

    def dense(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (hidden,)

    for name, count in (
        ("word", "vocab_size"),
        ("token_type", "type_vocab_size"),
        ("position", "max_position_embeddings"),
    ):
        shapes[f"embeddings.{name}_embeddings.weight"] = (config.count(count), hidden)
    norm("embeddings.LayerNorm")
    for index in range(layers):
        layer = f"encoder.layer.{index}"
        for part in ("query", "key", "value"):
            dense(f"{layer}.attention.self.{part}", hidden, hidden)
        dense(f"{layer}.attention.output.dense", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", config.count("intermediate_size"), hidden)
        dense(f"{layer}.output.dense", hidden, config.count("intermediate_size"))
        norm(f"{layer}.output.LayerNorm")
    if classifier or "pooler.dense.weight" in weights:
        dense("pooler.dense", hidden, hidden)
    if classifier:
        dense("classifier", config.classes, hidden)
    return shapes


def _check_weights(
    path: Path, weights: Mapping[str, Constant], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    wrong = [
        f"{name} is {weights[name].array.shape} and should be {shape}"
        for name, shape in shapes.items()
        if name in weights and weights[name].array.shape != shape
    ]
    problems = [
        f"{title}: {', '.join(items[:8])}{f' and {len(items) - 8} more' if len(items) > 8 else ''}"
        for title, items in (
            ("missing", [name for name in shapes if name not in weights]),
            ("unexpected", [name for name in weights if name not in shapes]),
            ("of the wrong shape", wrong),
        )
        if items
    ]
    if problems:
        raise ModelFormatError(f"{path} does not fit its config.json: {'; '.join(problems)}")


def make_plan(config: Config, weights: Mapping[str, Constant]) -> Plan:
    """The plan of a model whose weights :func:`read_weights` has read.

    Raises:
        ModelFormatError: a weight holds numbers that are not finite.
    """
    for name, constant in weights.items():
        if not np.isfinite(constant.array).all():
            raise ModelFormatError(
                f"{config.path.with_name(WEIGHTS)}: the tensor {name} holds numbers that are not "
                "finite"
            )
    heads = config.count("num_attention_heads")
    head_dim = config.count("hidden_size") // heads
    norm_fields = {"eps": config.layer_norm_eps, "transposed": False}
    steps: list[Step] = []

    def add(
        op: str,
        name: str,
        inputs: tuple[str, ...],
        roles: dict[str, tuple[str, ...]] | None = None,
        fields: dict[str, Any] | None = None,
    ) -> str:
        steps.append(Step(op, name, inputs, name, roles or {}, fields or {}))
        return name

    def dense(*names: str) -> dict[str, tuple[str, ...]]:
        return {part: tuple(f"{name}.{part}" for name in names) for part in ("weight", "bias")}

    def norm(name: str) -> dict[str, tuple[str, ...]]:
        return {"gamma": (f"{name}.weight",), "beta": (f"{name}.bias",)}

    tables = {"word": "word", "type": "token_type", "position": "position"}
    x = add(
        "embed_layer_norm",
        "embeddings",
        (),
        {role: (f"embeddings.{name}_embeddings.weight",) for role, name in tables.items()}
        | norm("embeddings.LayerNorm"),
        {"eps": config.layer_norm_eps},
    )
    for index in range(config.count("num_hidden_layers")):
        step, layer = f"layer{index}", f"encoder.layer.{index}"
        qkv = add(
            "qkv_linear",
            f"{step}.qkv",
            (x,),
            dense(*(f"{layer}.attention.self.{part}" for part in ("query", "key", "value"))),
            {
                "heads": heads,
                "head_dim": head_dim,
                "weight_layout": "separate",
                "bias_layout": "separate",
                "transposed": False,
            },
        )
        context = add(
            "attention",
            f"{step}.attention",
            (qkv,),
            fields={
                "heads": heads,
                "head_dim": head_dim,
                # In float32, as a graph has it
                "scale": float(np.float32(1 / math.sqrt(head_dim))),
                "mask": "valid_length",
            },
        )
        attended = add(
            "linear_add_layer_norm",
            f"{step}.attention_output",
            (context, x),
            dense(f"{layer}.attention.output.dense") | norm(f"{layer}.attention.output.LayerNorm"),
            norm_fields,
        )
        inner = add(
            "linear",
            f"{step}.ffn",
            (attended,),
            dense(f"{layer}.intermediate.dense"),
            {"activation": config.activation, "transposed": False},
        )
        x = add(
            "linear_add_layer_norm",
            f"{step}.ffn_output",
            (inner, attended),
            dense(f"{layer}.output.dense") | norm(f"{layer}.output.LayerNorm"),
            norm_fields,
        )
    outputs = {"sequence_output": x}
    if "pooler.dense.weight" in weights:
        first = add("first_token", "first_token", (x,))
        pooled = add(
            "linear",
            "pooler",
            (first,),
            dense("pooler.dense"),
            {"activation": "tanh", "transposed": False},
        )
        outputs["pooled_output"] = pooled
        if "classifier.weight" in weights:
            logits = add(
                "linear",
                "logits",
                (pooled,),
                dense("classifier"),
                {"activation": "none", "transposed": False},
            )
            outputs = {"logits": logits}
    inputs = {name: name for name in ("token_ids", "token_types", "valid_length")}
    return Plan(inputs | {"masked_positions": None}, tuple(steps), outputs, dict(weights))
