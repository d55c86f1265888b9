"""What a Hugging Face ``config.json`` says of an encoder.

Families of models differ in names, in few settings and in their heads; `Family` holds the
differences. What each class computes is read from transformers 5, ``models/*/modeling_*.py``. A
setting that would change the numbers, and that a plan cannot say, is refused by its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.host.files import read_object

__all__ = ["Config", "Family", "Layer", "MaskedLM"]

# By the names that transformers has for them. The tanh approximations among them differ in how the
# constant is written down, not in its value.
_ACTIVATIONS = {
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "tanh": "tanh",
}

# The part of a class's name behind its family's, and the tasks of such a model; the first is the
# one that it has unless another is asked for.
_TASKS = {
    "Model": ("embedding",),
    "ForSequenceClassification": ("classification", "regression"),
    "ForQuestionAnswering": ("question-answering",),
    "ForTokenClassification": ("tagging",),
    "ForMaskedLM": ("fill-mask", "embedding"),
    "ForPreTraining": ("fill-mask", "next-sentence", "embedding"),
    "ForNextSentencePrediction": ("next-sentence", "embedding"),
}
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
        eps: the epsilon of the layer normalisations, where it is no setting.
        token_types: whether there are token types.
        padded_positions: whether positions begin behind that of the padding token.
        projected: whether the embeddings may be narrower than the layers.
    """

    model_types: Mapping[str, str]
    heads: tuple[str, ...]
    prefix: str
    layer: Layer
    classifier: tuple[tuple[str, str], tuple[str, str]]
    masked_lm: MaskedLM
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    eps: float | None = None
    token_types: bool = True
    padded_positions: bool = False
    projected: bool = False


_BERT_LAYER = Layer(
    "encoder.layer",
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
_FAMILIES = (
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
    Family(
        model_types={
            "roberta": "Roberta",
            "xlm-roberta": "XLMRoberta",
            "camembert": "Camembert",
        },
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
        padded_positions=True,
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
        projected=True,
    ),
)

# Set to anything, these change the numbers.
_FORBIDDEN = ("pruned_heads", "quantization_config", "adapters", "adapter_fusions")


@dataclasses.dataclass(frozen=True)
class Config:
    """A ``config.json`` that describes an encoder that a plan can say.

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
        config.family, config.head  # noqa: B018 - for their errors
        for name, supported in (
            ("position_embedding_type", "absolute"),
            ("is_decoder", False),
            ("is_encoder_decoder", False),
            ("add_cross_attention", False),
        ):
            found = config.content.get(name)
            if found is not None and found != supported:
                raise UnsupportedModelError(
                    f"{path}: {name} is {found!r}, and only {supported!r} is supported"
                )
        for name in _FORBIDDEN:
            if config.content.get(name):
                raise UnsupportedModelError(f"{path}: {name} is set, which is not supported")
        code = config.content.get("auto_map")
        if isinstance(code, dict) and (named := [n for n in code if n.startswith("AutoModel")]):
            raise UnsupportedModelError(
                f"{path}: auto_map names code of its own for {', '.join(named)}, which may compute "
                "something else and is never run"
            )
        config.activation, config.layer_norm_eps  # noqa: B018 - for their errors
        hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
        if hidden % heads:
            raise ModelFormatError(
                f"{path}: {config.name('hidden_size')} {hidden} is no multiple of "
                f"{config.name('num_attention_heads')} {heads}"
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

    @cached_property
    def _class(self) -> tuple[Family, str]:
        """The family, and how the class's name ends."""
        families = {kind: family for family in _FAMILIES for kind in family.model_types}
        classes = {
            begin + head: (kind, family, head)
            for family in _FAMILIES
            for kind, begin in family.model_types.items()
            for head in family.heads
        }
        kind, architecture = self.content.get("model_type"), self.architecture
        if kind is not None and (not isinstance(kind, str) or kind not in families):
            raise UnsupportedModelError(
                f"{self.path}: model_type is {kind!r}; supported are {', '.join(families)}"
            )
        if architecture is None:
            return families[kind or "bert"], "Model"
        if architecture not in classes:
            known = [name for name, (k, _, _) in classes.items() if kind in (None, k)]
            raise UnsupportedModelError(
                f"{self.path}: the architecture {architecture!r} is not supported; "
                f"supported are {', '.join(known)}"
            )
        expected, family, head = classes[architecture]
        if kind not in (None, expected):
            raise ModelFormatError(
                f"{self.path}: model_type is {kind!r}, and the architecture {architecture!r} "
                f"belongs to {expected!r}"
            )
        return family, head

    @property
    def family(self) -> Family:
        """What the model's kind fixes."""
        return self._class[0]

    @property
    def head(self) -> str:
        """How the class's name ends: "Model", "ForMaskedLM" and so on."""
        return self._class[1]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of such a model; the first is its own."""
        if self.head == "ForSequenceClassification":
            return (self._classifier_task(),)
        if self.head == "ForPreTraining" and self.family.projected:  # ELECTRA's discriminator
            return ("embedding",)
        return _TASKS[self.head]

    def name(self, setting: str) -> str:
        """How the file names the setting that BERT names `setting`."""
        if setting == "num_labels" and self.content.get("id2label"):
            return "id2label"
        return self.family.settings.get(setting, setting)

    @property
    def activation(self) -> str:
        """The activation of the feed-forward blocks, by its name in plans."""
        setting = self.name("hidden_act")
        value = self.content.get(setting, "gelu")
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise UnsupportedModelError(
                f"{self.path}: {setting} {value!r} is not supported; "
                f"supported are {', '.join(_ACTIVATIONS)}"
            )
        return _ACTIVATIONS[value]

    @property
    def layer_norm_eps(self) -> float:
        """The epsilon of every layer normalisation."""
        if self.family.eps is not None:
            return self.family.eps
        value = self.content.get("layer_norm_eps", 1e-12)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise ModelFormatError(
                f"{self.path}: layer_norm_eps should be a small number, found {value!r}"
            )
        return float(value)

    def count(self, setting: str) -> int:
        """The setting that BERT names `setting`, which has to be a whole number from 1; for
        "num_labels" as many as there are, by the rules of transformers."""
        if setting == "num_labels":
            return self._classes()
        return self._count(setting)

    def _count(self, setting: str) -> int:
        name = self.name(setting)
        value = self.content.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
            raise ModelFormatError(
                f"{self.path}: {name} should be a whole number from 1, found {value!r}"
            )
        return value

    @property
    def table_width(self) -> str:
        """The setting that says how wide the embedding tables are."""
        return "embedding_size" if self.family.projected else "hidden_size"

    @property
    def first_position(self) -> int:
        """The row of the position table that a sequence's first token has."""
        if not self.family.padded_positions:
            return 0
        padding, rows = self.content.get("pad_token_id", 1), self.count("max_position_embeddings")
        if type(padding) is not int or not 0 <= padding < rows - 1:
            raise ModelFormatError(
                f"{self.path}: pad_token_id should be a whole number below "
                f"max_position_embeddings {rows}, behind which positions begin; found {padding!r}"
            )
        return padding + 1

    @property
    def max_length(self) -> int:
        """The tokens that a sequence may have."""
        return self.count("max_position_embeddings") - self.first_position

    @property
    def tied(self) -> bool:
        """Whether the masked language model's decoder is the table of words."""
        value = self.content.get("tie_word_embeddings", True)
        if not isinstance(value, bool):
            raise ModelFormatError(
                f"{self.path}: tie_word_embeddings should be true or false, found {value!r}"
            )
        return value

    def _classes(self) -> int:
        if names := self.content.get("id2label"):
            if not isinstance(names, dict):
                raise ModelFormatError(
                    f"{self.path}: id2label should map 0, 1, ... to different names, "
                    f"found {names!r}"
                )
            return len(names)
        return self._count("num_labels") if "num_labels" in self.content else 2

    @property
    def labels(self) -> list[str]:
        """The names of a classifier's outputs.

        To be asked for when the weights have been found to have as many.
        """
        classes = self._classes()
        names = self.content.get("id2label") or {str(i): f"LABEL_{i}" for i in range(classes)}
        labels = [str(names.get(str(index), "")) for index in range(classes)]
        if "" in labels or len(set(labels)) < classes:
            raise ModelFormatError(
                f"{self.path}: id2label should map 0, 1, ... to different names, found {names!r}"
            )
        return labels

    def _classifier_task(self) -> str:
        classes, kind = self._classes(), self.content.get("problem_type")
        if kind not in (None, "single_label_classification", "regression"):
            raise UnsupportedModelError(f"{self.path}: problem_type {kind!r} is not supported")
        if kind == "regression" and classes != 1:
            raise UnsupportedModelError(
                f"{self.path}: regression with {classes} outputs is not supported"
            )
        return (
            "regression"
            if kind == "regression" or (kind is None and classes == 1)
            else ("classification")
        )
