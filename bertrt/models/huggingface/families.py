"""The families of Hugging Face's encoders that a plan can say, and in what they differ: the names
of tensors and settings, the heads, and what a setting is that a file leaves out. What each class
computes is read from transformers 5, ``models/*/modeling_*.py`` and ``configuration_*.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

__all__ = ["DEFAULTS", "FAMILIES", "Family", "Layer", "MaskedLM"]

# What transformers' classes of configurations take where a file leaves a setting out.
DEFAULTS = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}

# How the names of classes may end.
_COMMON = (
    "Model",
    "ForSequenceClassification",
    "ForQuestionAnswering",
    "ForTokenClassification",
    "ForMaskedLM",
)


@dataclasses.dataclass(frozen=True)
class Layer:
    """The names of a layer's tensors, without ``.weight`` and ``.bias``."""

    prefix: str
    qkv: tuple[str, str, str]
    attention_output: str
    attention_norm: str
    ffn: str
    ffn_output: str
    ffn_norm: str


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """The masked language model's head: dense, activation (None: the layers'), norm, decoder. The
    decoder's bias has one of the names."""

    dense: str
    activation: str | None
    norm: str
    decoder: str
    biases: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Family:
    """What tells one kind of model from another.

    Attributes:
        model_types: ``model_type`` -> how the names of its classes begin.
        heads: how the names of its classes may end.
        prefix: what the encoder's tensors' names begin with in a model with a head.
        layer: the names of a layer's tensors.
        classifier: the steps of a sequence classifier on the first token: name and activation.
        masked_lm: the masked language model's head.
        settings: the names of settings that differ from BERT's.
        aliased: those of them that may have BERT's name too, which then is the one that counts.
        defaults: what settings are that a file leaves out, where it is not what BERT has.
        activation: likewise, of the layers' activation.
        eps: the epsilon of the layer normalisations, where it is no setting.
        token_types: whether there are token types.
        padded_positions: whether positions begin behind that of the padding token.
        padding: that position, where it is no setting.
        projection: what brings the embeddings, which then have a width of their own, to the
            layers' width.
        always_projected: whether it is there, too, where the widths are the same.
        shared: whether layers go in groups that share their weights.
        distances: the table of what attention adds to scores by the distance of a key.
        pooler: the dense layer on the first token.
        next_sentence: the classifier of pairs in ForPreTraining and ForNextSentencePrediction.
        discriminator: whether ForPreTraining tells replaced tokens from others.
    """

    model_types: Mapping[str, str]
    heads: tuple[str, ...]
    prefix: str
    layer: Layer
    classifier: tuple[tuple[str, str], tuple[str, str]]
    masked_lm: MaskedLM
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    aliased: tuple[str, ...] = ()
    defaults: Mapping[str, int] = dataclasses.field(default_factory=dict)
    activation: str = "gelu"
    eps: float | None = None
    token_types: bool = True
    padded_positions: bool = False
    padding: int | None = None
    projection: str | None = None
    always_projected: bool = False
    shared: bool = False
    distances: str | None = None
    pooler: str = "pooler.dense"
    next_sentence: str = "cls.seq_relationship"
    discriminator: bool = False


_BERT_LAYER = Layer(
    "encoder.layer",
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
_ROBERTA = Family(
    model_types={"roberta": "Roberta"},
    heads=_COMMON,
    prefix="roberta.",
    layer=_BERT_LAYER,
    classifier=(("classifier.dense", "tanh"), ("classifier.out_proj", "none")),
    masked_lm=MaskedLM(
        "lm_head.dense",
        "gelu_erf",
        "lm_head.layer_norm",
        "lm_head.decoder.weight",
        ("lm_head.decoder.bias", "lm_head.bias"),
    ),
    defaults={"vocab_size": 50_265},
    padded_positions=True,
)
FAMILIES = (
    Family(
        model_types={"bert": "Bert"},
        heads=(*_COMMON, "ForPreTraining", "ForNextSentencePrediction"),
        prefix="bert.",
        layer=_BERT_LAYER,
        classifier=(("pooler.dense", "tanh"), ("classifier", "none")),
        masked_lm=MaskedLM(
            "cls.predictions.transform.dense",
            None,
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.decoder.weight",
            ("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ),
    ),
    _ROBERTA,
    dataclasses.replace(
        _ROBERTA,
        model_types={"xlm-roberta": "XLMRoberta", "camembert": "Camembert"},
        defaults={},
    ),
    Family(
        model_types={"distilbert": "DistilBert"},
        heads=_COMMON,
        prefix="distilbert.",
        layer=Layer(
            "transformer.layer",
            ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
            "attention.out_lin",
            "sa_layer_norm",
            "ffn.lin1",
            "ffn.lin2",
            "output_layer_norm",
        ),
        classifier=(("pre_classifier", "relu"), ("classifier", "none")),
        masked_lm=MaskedLM(
            "vocab_transform",
            None,
            "vocab_layer_norm",
            "vocab_projector.weight",
            ("vocab_projector.bias",),
        ),
        settings={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
        aliased=("hidden_size", "num_hidden_layers", "num_attention_heads"),
        defaults={"num_hidden_layers": 6},
        eps=1e-12,
        token_types=False,
    ),
    Family(
        model_types={"electra": "Electra"},
        heads=(*_COMMON, "ForPreTraining"),
        prefix="electra.",
        layer=_BERT_LAYER,
        classifier=(("classifier.dense", "gelu_erf"), ("classifier.out_proj", "none")),
        masked_lm=MaskedLM(
            "generator_predictions.dense",
            "gelu_erf",
            "generator_predictions.LayerNorm",
            "generator_lm_head.weight",
            ("generator_lm_head.bias",),
        ),
        defaults={
            "embedding_size": 128,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        },
        projection="embeddings_project",
        discriminator=True,
    ),
    Family(
        model_types={"albert": "Albert"},
        heads=(*_COMMON, "ForPreTraining"),
        prefix="albert.",
        layer=Layer(
            "encoder.albert_layer_groups",
            ("attention.query", "attention.key", "attention.value"),
            "attention.dense",
            "attention.LayerNorm",
            "ffn",
            "ffn_output",
            "full_layer_layer_norm",
        ),
        classifier=(("pooler", "tanh"), ("classifier", "none")),
        masked_lm=MaskedLM(
            "predictions.dense",
            None,
            "predictions.LayerNorm",
            "predictions.decoder.weight",
            ("predictions.decoder.bias", "predictions.bias"),
        ),
        defaults={
            "vocab_size": 30_000,
            "embedding_size": 128,
            "hidden_size": 4096,
            "num_attention_heads": 64,
            "intermediate_size": 16_384,
            "num_hidden_groups": 1,
            "inner_group_num": 1,
        },
        activation="gelu_new",
        projection="encoder.embedding_hidden_mapping_in",
        always_projected=True,
        shared=True,
        pooler="pooler",
        next_sentence="sop_classifier.classifier",
    ),
    dataclasses.replace(
        _ROBERTA,
        model_types={"mpnet": "MPNet"},
        prefix="mpnet.",
        layer=dataclasses.replace(
            _BERT_LAYER,
            qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
            attention_output="attention.attn.o",
            attention_norm="attention.LayerNorm",
        ),
        defaults={"vocab_size": 30_527, "relative_attention_num_buckets": 32},
        token_types=False,
        padding=1,
        distances="encoder.relative_attention_bias.weight",
    ),
)
