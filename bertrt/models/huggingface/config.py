"""What a Hugging Face ``config.json`` says of an encoder.

`bertrt.models.huggingface.families` holds in what kinds of models differ. A setting that would
change the numbers, and that a plan cannot say, is refused by its name.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.host.cached import cached
from bertrt.host.files import read_object
from bertrt.models.huggingface.families import DEFAULTS, FAMILIES, Family

__all__ = ["Config"]

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
# Heads that compute what another one does, as long as `is_decoder` is not set.
_SAME_HEADS = {"LMHeadModel": "ForMaskedLM", "ForCausalLM": "ForMaskedLM"}
# TensorFlow's and JAX's classes have the names of torch's behind two prefixes.
_CLASS = re.compile(r"(?:TF|Flax)?(\w*?)(Model|LMHeadModel|For[A-Z]\w*)")
_SINGLE, _MULTI = "single_label_classification", "multi_label_classification"

# Set to anything, these change the numbers.
_FORBIDDEN = ("pruned_heads", "quantization_config", "adapters", "adapter_fusions")


def _short(value: Any) -> str:
    """A value of the file in a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


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

    @cached
    def _class(self) -> tuple[Family, str]:
        """The family, and how the class's name ends.

        By transformers' rules the family is that of `model_type`, whatever the class's name begins
        with. A class that is none of transformers', without "For" in its name, adds nothing to the
        encoder that could be known.
        """
        families = {kind: family for family in FAMILIES for kind in family.model_types}
        begins = {begin: kind for f in FAMILIES for kind, begin in f.model_types.items()}
        kind, architecture = self.content.get("model_type"), self.architecture
        if kind is not None and (not isinstance(kind, str) or kind not in families):
            raise UnsupportedModelError(
                f"{self.path}: model_type is {kind!r}; supported are {', '.join(families)}"
            )
        if architecture is None:
            return families[kind or "bert"], "Model"
        match = _CLASS.fullmatch(architecture)
        begin, end = match.groups() if match else ("", "" if kind else architecture)
        family = families.get(kind or begins.get(begin, ""))
        head = _SAME_HEADS.get(end, end) or "Model"
        if family is None or head not in family.heads:
            known = [
                begin + head
                for f in ([family] if family else FAMILIES)
                for k, begin in f.model_types.items()
                for head in (f.heads if kind in (None, k) else ())
            ]
            raise UnsupportedModelError(
                f"{self.path}: the architecture {architecture!r} is not supported; "
                f"supported are {', '.join(known)}"
            )
        return family, head

    def without_head(self) -> Config:
        """The same encoder alone."""
        return Config(self.path, self.content | {"architectures": None})

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
        if self.head == "ForPreTraining" and self.family.discriminator:
            return ("embedding",)
        return _TASKS[self.head]

    def name(self, setting: str) -> str:
        """How the file names the setting that BERT names `setting`."""
        if setting == "num_labels":
            return "id2label" if self._names() is not None else "num_labels"
        if setting in self.family.aliased and setting in self.content:
            return setting
        return self.family.settings.get(setting, setting)

    def origin(self, setting: str) -> str:
        """As `name`, for a message: with what it is where the file leaves it out."""
        name = self.name(setting)
        if name in self.content:
            return name
        return f"{name}, which is left out and so {self.count(setting)}"

    @property
    def activation(self) -> str:
        """The activation of the feed-forward blocks, by its name in plans."""
        setting = self.name("hidden_act")
        value = self.content.get(setting, self.family.activation)
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
        default = (DEFAULTS | dict(self.family.defaults)).get(setting)
        return self._whole(self.name(setting), default)

    def _whole(self, name: str, default: int | None) -> int:
        value = self.content.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
            raise ModelFormatError(
                f"{self.path}: {name} should be a whole number from 1, found {value!r}"
            )
        return value

    @property
    def table_width(self) -> str:
        """The setting that says how wide the embedding tables are."""
        return "embedding_size" if self.family.projection else "hidden_size"

    @property
    def first_position(self) -> int:
        """The row of the position table that a sequence's first token has."""
        if not self.family.padded_positions:
            return 0
        padding, rows = self.content.get("pad_token_id", 1), self.count("max_position_embeddings")
        if self.family.padding is not None:
            padding = self.family.padding
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

    def _names(self) -> dict[int, str] | None:
        """What ``id2label`` calls the outputs, by their numbers; None where nothing does.

        A ``num_labels`` that is there too, and says another number, is the one that counts.
        """
        names = self.content.get("id2label")
        if names is None or names == {}:
            return None
        if not isinstance(names, dict) or not all(re.fullmatch(r"\s*\d{1,9}\s*", n) for n in names):
            raise ModelFormatError(
                f"{self.path}: id2label should map 0, 1, ... to names, found {_short(names)}"
            )
        found = {int(number): str(name) for number, name in names.items()}
        return found if self._whole("num_labels", len(found)) == len(found) else None

    def _classes(self) -> int:
        names = self._names()
        if names is None:
            return self._whole("num_labels", 2)
        return len(names)

    @property
    def labels(self) -> list[str]:
        """The names of a classifier's outputs, several of which may have the same.

        To be asked for when the weights have been found to have as many.
        """
        classes, names = self._classes(), self._names()
        if names is None:
            return [f"LABEL_{i}" for i in range(classes)]
        if names.keys() != set(range(classes)):
            raise ModelFormatError(
                f"{self.path}: id2label should map 0, 1, ... to names, found {_short(names)}"
            )
        return [names[i] for i in range(classes)]

    def _problem(self) -> str:
        """What the outputs of a sequence classifier are, as transformers' pipelines take them."""
        classes, kind = self._classes(), self.content.get("problem_type")
        if kind is None:
            return "regression" if classes == 1 else _SINGLE
        if kind not in ("regression", _SINGLE, _MULTI):
            raise UnsupportedModelError(
                f"{self.path}: problem_type is {_short(kind)}; supported are regression, {_SINGLE} "
                f"and {_MULTI}"
            )
        if kind == _SINGLE and classes == 1:
            raise ModelFormatError(
                f"{self.path}: problem_type is {_SINGLE}, and the model has a single output, which "
                "tells no classes apart: 'regression' would be its number, "
                f"{_MULTI!r} a probability"
            )
        return str(kind)

    def _classifier_task(self) -> str:
        regression = self._problem() == "regression" and self._classes() == 1
        return "regression" if regression else "classification"
