"""From Hugging Face's ``config.json`` and its tensors to a plan.

What they describe is one architecture with a few settings, so there is no graph to fuse: the plan
is written down, and with it which tensors of what shapes there have to be.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import BertrtWarning, ModelFormatError, UnsupportedModelError
from bertrt.models.huggingface.config import Config
from bertrt.models.huggingface.distances import BUCKETS, distance_bias
from bertrt.models.huggingface.weights import some
from bertrt.plan.plan import Plan
from bertrt.plan.steps import INPUTS, Step
from bertrt.plan.weights import Constant, Weights

__all__ = ["read_plan"]

_WORDS = "embeddings.word_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"
_DECODER = "masked_lm.decoder"
# Heads of pretraining: left out of an embedding wherever they are found.
_PRETRAINING = (
    "cls.",
    "lm_head.",
    "vocab_transform.",
    "vocab_layer_norm.",
    "vocab_projector.",
    "generator_predictions.",
    "generator_lm_head.",
    "discriminator_predictions.",
    "predictions.",
    "sop_classifier.",
)
# More that share their weights are no model's, and would be a plan without end.
_MOST_SHARED_LAYERS = 1000


def read_plan(
    config: Config, source: Path, tensors: Mapping[str, Constant], task: str
) -> tuple[Plan, list[str]]:
    """The plan of a model, for one of ``config.tasks``.

    Args:
        config: its ``config.json``.
        source, tensors: the file that holds or lists its weights, and they; see
            `bertrt.models.huggingface.weights`.
        task: the task.

    Returns:
        The plan, and the names of the tensors that it has no use for: heads of pretraining, a
        pooler that nothing reads, and others, of which a BertrtWarning tells. The plan's weights
        have the names that transformers gives them today, without the encoder's prefix (``bert.``,
        ``roberta.``, ...).

    Raises:
        ModelFormatError: tensors are missing, or of the wrong shape (all are named); not finite,
            where they are read: of those that lie in files then, whoever reads them.
            UnsupportedModelError where they are no floats, or stand for something that a plan
            cannot say.
    """
    net = _Net(config, source, tensors)
    outputs = net.outputs(task)
    left_out = net.check()
    weights = {name: net.weight(name) for name in net.shapes}
    inputs: dict[str, str | None] = {name: name for name in INPUTS}
    if not config.family.token_types:
        inputs["token_types"] = None
    if "masked_lm_outputs" not in outputs:
        inputs["masked_positions"] = None
    return Plan(inputs, tuple(net.steps), outputs, weights), left_out


# The extent of a weight: a setting's name, or a number that is always the same.
_Extent = str | int


class _Net:
    """A network as it is written down: its steps, and the tensors that they read.

    Attributes:
        steps: the plan's steps.
        shapes: the tensors that the steps read, by name.
    """

    def __init__(self, config: Config, source: Path, tensors: Mapping[str, Constant]) -> None:
        self.steps: list[Step] = []
        self.shapes: dict[str, tuple[_Extent, ...]] = {}
        self._config = config
        self._source = source
        self._tensors = dict(tensors)
        # A file that holds shared tensors once may have this one under its other name.
        decoder = tensors.get(config.family.masked_lm.decoder)
        if config.tied and decoder is not None:
            self._tensors.setdefault(_WORDS, dataclasses.replace(decoder, name=_WORDS))

    # --- what there is in the files -----------------------------------------------------------

    def check(self) -> list[str]:
        """Hold the tensors against `shapes`; returns the names of those that have no use."""
        missing = [name for name in self.shapes if name not in self._tensors]
        wrong = []
        for name in self.shapes:
            if name not in self._tensors:
                continue
            found, expected = self._tensors[name].shape, self._sizes(name)
            if found != expected:
                settings = [
                    self._config.origin(extent)
                    for extent in self.shapes[name]
                    if isinstance(extent, str)
                ]
                wrong.append(
                    f"{name} is {found} and should be {expected}, by {' and '.join(settings)}"
                )
        problems = [
            f"{title}: {some(items)}"
            for title, items in (("missing", missing), ("of the wrong shape", wrong))
            if items
        ]
        if problems:
            if any(name.startswith("module.") for name in self._tensors):
                problems.append(
                    "names there begin with module., as DataParallel leaves them: save the model "
                    "inside it"
                )
            raise ModelFormatError(
                f"{self._source} does not fit its {self._config.path.name}: {'; '.join(problems)}"
            )
        for name in self.shapes:
            self._check_numbers(name)
        copies = self._copies()
        left_out = [n for n in self._tensors if n not in self.shapes and n not in copies]
        self._tell_unread([n for n in left_out if not n.startswith((*_PRETRAINING, "pooler."))])
        return left_out

    def _check_numbers(self, name: str) -> None:
        tensor = self._tensors[name]
        if tensor.dtype != np.float32:
            raise UnsupportedModelError(
                f"{self._source}: the tensor {name} has type {tensor.dtype}, expected floats"
            )

        def check(numbers: np.ndarray) -> None:
            if not np.isfinite(numbers).all():
                raise ModelFormatError(
                    f"{self._source}: the tensor {name} holds numbers that are not finite"
                )

        tensor.check_with(check)

    def _tell_unread(self, names: list[str]) -> None:
        for name in names:
            if "distance_embedding" in name:
                raise UnsupportedModelError(
                    f"{self._source}: the tensor {name} belongs to relative positions, which are "
                    "not supported"
                )
        if names:
            reason = (
                f"; {self._config.path.name} names no architectures, and so stands for a model "
                "without head"
                if self._config.architecture is None
                else ""
            )
            warnings.warn(
                f"{self._source}: nothing reads {some(names)}{reason}", BertrtWarning, stacklevel=2
            )

    def _copies(self) -> set[str]:
        """The tensors that are there again under another name."""
        copies: set[str] = set()
        for step in self.steps if self._config.tied else ():
            if step.output != _DECODER:
                continue
            head = self._config.family.masked_lm
            for used, other in (
                (step.weights["weight"][0], head.decoder),
                *((step.weights["bias"][0], name) for name in head.biases),
            ):
                if used == other or used not in self._tensors or other not in self._tensors:
                    continue
                if not np.array_equal(self._tensors[used].array, self._tensors[other].array):
                    raise ModelFormatError(
                        f"{self._source}: {other} differs from {used}, and they are one by "
                        f"tie_word_embeddings in {self._config.path.name}"
                    )
                copies.add(other)
        return copies

    def weight(self, name: str) -> Constant:
        """A tensor as the plan wants it."""
        constant, skipped = self._tensors[name], self._config.first_position
        if name == self._config.family.distances:
            return Constant(name, distance_bias(constant.array, self._config.max_length))
        if name != _POSITIONS or skipped == 0:
            return constant
        return constant.rows(name, skipped, constant.shape[0])

    def _sizes(self, name: str) -> tuple[int, ...]:
        return tuple(
            extent if isinstance(extent, int) else self._config.count(extent)
            for extent in self.shapes[name]
        )

    # --- steps --------------------------------------------------------------------------------

    def _add(
        self, op: str, name: str, inputs: tuple[str, ...], weights: Weights, **fields: Any
    ) -> str:
        self.steps.append(Step(op, name, inputs, name, weights, fields))
        return name

    def _dense(self, rows: _Extent, columns: _Extent, *names: str) -> dict[str, tuple[str, ...]]:
        for name in names:
            self.shapes[f"{name}.weight"] = (rows, columns)
            self.shapes[f"{name}.bias"] = (rows,)
        return {part: tuple(f"{name}.{part}" for name in names) for part in ("weight", "bias")}

    def _norm(self, width: _Extent, name: str) -> dict[str, tuple[str, ...]]:
        self.shapes[f"{name}.weight"] = self.shapes[f"{name}.bias"] = (width,)
        return {"gamma": (f"{name}.weight",), "beta": (f"{name}.bias",)}

    def _linear(
        self,
        step: str,
        x: str,
        name: str,
        activation: str = "none",
        *,
        rows: _Extent = "hidden_size",
        columns: _Extent = "hidden_size",
    ) -> str:
        weights = self._dense(rows, columns, name)
        return self._add("linear", step, (x,), weights, activation=activation, transposed=False)

    # --- parts --------------------------------------------------------------------------------

    def outputs(self, task: str) -> dict[str, str]:
        """Write down what a task needs; returns the plan's outputs."""
        head = self._config.head
        x = self._encoder()
        sequence = {"sequence_output": x}
        if head == "ForSequenceClassification" and task != "embedding":
            return {"logits": self._sequence_classifier(x)}
        if head in ("ForQuestionAnswering", "ForTokenClassification") and task != "embedding":
            name = "qa_outputs" if head == "ForQuestionAnswering" else "classifier"
            if name == "qa_outputs" and self._config.count("num_labels") != 2:
                raise UnsupportedModelError(
                    f"{self._config.path}: {self._config.name('num_labels')} is "
                    f"{self._config.count('num_labels')}, and question answering has 2 outputs, "
                    "for start and end"
                )
            return {"logits": self._linear("logits", x, name, rows="num_labels")}
        if head == "ForPreTraining" and self._config.family.discriminator:
            return sequence | {"logits": self._discriminator(x)}
        outputs = sequence
        if head == "Model" or task == "embedding":
            if f"{self._config.family.pooler}.weight" in self._tensors:
                outputs |= {"pooled_output": self._pooler(x)}
            return outputs
        if head in ("ForPreTraining", "ForNextSentencePrediction"):
            pooled = self._pooler(x)
            name = "next_sentence_classifier_output"
            classifier = self._linear(name, pooled, self._config.family.next_sentence, rows=2)
            outputs |= {"pooled_output": pooled, name: classifier}
        if head in ("ForPreTraining", "ForMaskedLM"):
            outputs |= {"masked_lm_outputs": self._masked_lm(x)}
        return outputs

    def _encoder(self) -> str:
        config, layer = self._config, self._config.family.layer
        eps = config.layer_norm_eps
        tables = {"word": (_WORDS, "vocab_size")}
        if config.family.token_types:
            tables["type"] = ("embeddings.token_type_embeddings.weight", "type_vocab_size")
        tables["position"] = (_POSITIONS, "max_position_embeddings")
        self.shapes |= {name: (rows, config.table_width) for name, rows in tables.values()}
        x = self._add(
            "embed_layer_norm",
            "embeddings",
            (),
            {role: (name,) for role, (name, _) in tables.items()}
            | self._norm(config.table_width, "embeddings.LayerNorm"),
            eps=eps,
        )
        projection = config.family.projection
        same = config.count(config.table_width) == config.count("hidden_size")
        if projection and (config.family.always_projected or not same):
            x = self._linear("projection", x, projection, columns=config.table_width)
        heads = config.count("num_attention_heads")
        head_dim = config.count("hidden_size") // heads
        bias = self._distances()
        for index, prefix in enumerate(self._layers()):
            step = f"layer{index}"
            qkv = self._add(
                "qkv_linear",
                f"{step}.qkv",
                (x,),
                self._dense(
                    "hidden_size", "hidden_size", *(f"{prefix}.{part}" for part in layer.qkv)
                ),
                heads=heads,
                head_dim=head_dim,
                weight_layout="separate",
                bias_layout="separate",
                transposed=False,
            )
            context = self._add(
                "attention",
                f"{step}.attention",
                (qkv,),
                bias,
                heads=heads,
                head_dim=head_dim,
                # In float32, as a graph has it
                scale=float(np.float32(1 / math.sqrt(head_dim))),
                mask="valid_length",
            )
            attended = self._add(
                "linear_add_layer_norm",
                f"{step}.attention_output",
                (context, x),
                self._dense("hidden_size", "hidden_size", f"{prefix}.{layer.attention_output}")
                | self._norm("hidden_size", f"{prefix}.{layer.attention_norm}"),
                eps=eps,
                transposed=False,
            )
            inner = self._linear(
                f"{step}.ffn",
                attended,
                f"{prefix}.{layer.ffn}",
                config.activation,
                rows="intermediate_size",
            )
            x = self._add(
                "linear_add_layer_norm",
                f"{step}.ffn_output",
                (inner, attended),
                self._dense("hidden_size", "intermediate_size", f"{prefix}.{layer.ffn_output}")
                | self._norm("hidden_size", f"{prefix}.{layer.ffn_norm}"),
                eps=eps,
                transposed=False,
            )
        return x

    def _layers(self) -> list[str]:
        """What the names of each layer's tensors begin with, in the order in which layers run."""
        config, prefix = self._config, self._config.family.layer.prefix
        layers = config.count("num_hidden_layers")
        if not config.family.shared:
            if layers > len(self._tensors):
                raise ModelFormatError(
                    f"{config.path}: {config.name('num_hidden_layers')} is {layers}, and "
                    f"{self._source.name} has only {len(self._tensors)} tensors"
                )
            return [f"{prefix}.{index}" for index in range(layers)]
        groups, inner = config.count("num_hidden_groups"), config.count("inner_group_num")
        if layers * inner > _MOST_SHARED_LAYERS:
            raise UnsupportedModelError(
                f"{config.path}: num_hidden_layers is {layers} and inner_group_num {inner}; at "
                f"most {_MOST_SHARED_LAYERS} layers together are supported"
            )
        return [
            f"{prefix}.{int(index / (layers / groups))}.albert_layers.{number}"
            for index in range(layers)
            for number in range(inner)
        ]

    def _distances(self) -> Weights:
        """What every layer's attention reads."""
        config, name = self._config, self._config.family.distances
        if name is None:
            return {}
        rows = "relative_attention_num_buckets"
        if config.count(rows) < BUCKETS:
            raise UnsupportedModelError(
                f"{config.path}: {rows} is {config.count(rows)}, and there are {BUCKETS} buckets "
                "of distances, however many the setting says"
            )
        self.shapes[name] = (rows, "num_attention_heads")
        return {"bias": (name,)}

    def _pooler(self, x: str) -> str:
        first = self._add("first_token", "first_token", (x,), {})
        return self._linear("pooler", first, self._config.family.pooler, "tanh")

    def _sequence_classifier(self, x: str) -> str:
        x = self._add("first_token", "first_token", (x,), {})
        (name, activation), (last, _) = self._config.family.classifier
        x = self._linear("pooler", x, name, activation)
        return self._linear("logits", x, last, rows="num_labels")

    def _discriminator(self, x: str) -> str:
        name, activation = "discriminator_predictions", self._config.activation
        x = self._linear("discriminator", x, f"{name}.dense", activation)
        return self._linear("logits", x, f"{name}.dense_prediction", rows=1)

    def _masked_lm(self, x: str) -> str:
        config, head = self._config, self._config.family.masked_lm
        activation = head.activation or config.activation
        x = self._add("gather_positions", "gather_positions", (x,), {})
        x = self._linear("masked_lm.linear", x, head.dense, activation, rows=config.table_width)
        norm = self._norm(config.table_width, head.norm)
        x = self._add("layer_norm", "masked_lm.layer_norm", (x,), norm, eps=config.layer_norm_eps)
        weight = _WORDS if config.tied else head.decoder
        # Only the first is read; the others have been names for it.
        bias = next((name for name in head.biases if name in self._tensors), head.biases[0])
        self.shapes |= {weight: ("vocab_size", config.table_width), bias: ("vocab_size",)}
        roles: Weights = {"weight": (weight,), "bias": (bias,)}
        return self._add("linear", _DECODER, (x,), roles, activation="none", transposed=False)
