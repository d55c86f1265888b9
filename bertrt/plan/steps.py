"""A plan's vocabulary: its inputs, steps and outputs, and the facts of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypedDict

from bertrt.plan.weights import Weights

__all__ = [
    "ACTIVATIONS",
    "INPUTS",
    "LAYOUTS",
    "OUTPUT_ROWS",
    "POSITIONS",
    "PRECISIONS",
    "STACKED",
    "Architecture",
    "Step",
    "layer_outputs",
    "output_kind",
]

# In the order in which GluonNLP's blocks take them.
INPUTS = ("token_ids", "token_types", "valid_length", "masked_positions")
# An input that a graph may have beside these: 0, 1, 2, ... of every sequence.
POSITIONS = "position_ids"
ACTIVATIONS = ("none", "relu", "gelu_erf", "gelu_tanh", "tanh")
LAYOUTS = ("separate", "interleaved")
# From the most exact on.
PRECISIONS = ("fp32", "bf16", "int8", "fp8")
# The kinds of rows that an output may have. `embedding_output` is what the first layer reads,
# `encoding_0`, ... are what a layer before the last one returns, `attention_weights_0`, ... the
# probabilities of each layer.
OUTPUT_ROWS = {
    "sequence_output": ("tokens",),
    "embedding_output": ("tokens",),
    "encoding": ("tokens",),
    "attention_weights": ("pairs",),
    "pooled_output": ("seqs",),
    "logits": ("seqs", "tokens"),
    "next_sentence_classifier_output": ("seqs",),
    "masked_lm_outputs": ("positions",),
    "probabilities": ("seqs",),
}
_OF_LAYERS = ("encoding", "attention_weights")
# What `Engine.run` makes of them: arrays whose first axis is the layer.
STACKED = ("all_encodings", "attention_weights")


def output_kind(name: str) -> str | None:
    """What an output is: its name, without the number of a layer; None for a name that no output
    has."""
    kind, _, number = name.rpartition("_")
    if kind in _OF_LAYERS and re.fullmatch(r"[0-9]{1,9}", number):
        return kind
    return name if name in OUTPUT_ROWS and name not in _OF_LAYERS else None


def layer_outputs(outputs: Iterable[str], kind: str) -> list[str]:
    """The outputs of this kind, "encoding" or "attention_weights", by layer."""
    found = [name for name in outputs if output_kind(name) == kind]
    return sorted(found, key=lambda name: int(name.rpartition("_")[2]))


class Architecture(TypedDict):
    """The facts of a model. Every layer is alike; ``type_vocab_size`` is 0 without token types."""

    hidden: int
    layers: int
    heads: int
    head_dim: int
    ffn: int
    vocab_size: int
    type_vocab_size: int
    max_length: int
    activation: str
    layer_norm_eps: float


@dataclass(frozen=True)
class Step:
    """One fused operation.

    ``inputs`` and ``output`` name values, ``weights`` maps a role to the names of its arrays, and
    ``fields`` holds what belongs to this kind of step (``eps``, ``heads``, ``activation``, ...).
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    weights: Weights = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
