"""From a Hugging Face BERT directory to a Gluon net, and so to a bundle.

What Hugging Face stores is the same network under other names. The conversion renames the weights
and refuses, by name, every setting that would change the numbers and that Gluon's BERT lacks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bertrt.errors import (
    InvalidInputError,
    MissingDependencyError,
    MissingFileError,
    ModelFormatError,
    UnsupportedModelError,
)
from bertrt.graph.bundle import TASKS, read_json

from .gluon_to_symbol import import_gluon, set_parameters
from .model import TokenizerFile, write_bundle

__all__ = ["HuggingFaceModel", "import_huggingface", "read_huggingface"]

_CLASSIFIER = "BertForSequenceClassification"
# These carry pretraining heads (cls.*), which an embedding has no use for.
_ENCODERS = ("BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForNextSentencePrediction")

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "approx_gelu",
    "gelu_pytorch_tanh": "approx_gelu",
    "relu": "relu",
}

# Hugging Face's names as patterns, and GluonNLP's. LayerNorm's weight and bias are gamma and beta
# in Gluon, and in files of the first converters on either side.
_RENAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"embeddings\.word_embeddings\.weight", "word_embed.0.weight"),
        (r"embeddings\.token_type_embeddings\.weight", "token_type_embed.0.weight"),
        (r"embeddings\.position_embeddings\.weight", "encoder.position_weight"),
        (r"embeddings\.LayerNorm\.(gamma|beta)", r"encoder.layer_norm.\1"),
        (
            r"encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.(weight|bias)",
            r"encoder.transformer_cells.\1.attention_cell.proj_\2.\3",
        ),
        (
            r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(weight|bias)",
            r"encoder.transformer_cells.\1.proj.\2",
        ),
        (
            r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(gamma|beta)",
            r"encoder.transformer_cells.\1.layer_norm.\2",
        ),
        (
            r"encoder\.layer\.(\d+)\.intermediate\.dense\.(weight|bias)",
            r"encoder.transformer_cells.\1.ffn.ffn_1.\2",
        ),
        (
            r"encoder\.layer\.(\d+)\.output\.dense\.(weight|bias)",
            r"encoder.transformer_cells.\1.ffn.ffn_2.\2",
        ),
        (
            r"encoder\.layer\.(\d+)\.output\.LayerNorm\.(gamma|beta)",
            r"encoder.transformer_cells.\1.ffn.layer_norm.\2",
        ),
        (r"pooler\.dense\.(weight|bias)", r"pooler.\1"),
    )
)
_LAYER_NORM = {"weight": "gamma", "bias": "beta"}


@dataclasses.dataclass(frozen=True)
class HuggingFaceModel:
    """What a Hugging Face directory holds, as Gluon and the bundle want it.

    Attributes:
        net: an initialised GluonNLP ``BERTModel`` or ``BERTClassifier``.
        tokenizer: the tokenizer, with Hugging Face's rules.
        task: ``"embedding"``, ``"classification"`` or ``"regression"``.
        labels: the names of the classes; None for the other tasks.
        pooling: ``{"mode": ..., "normalize": ...}`` for embeddings, None otherwise.
        origin: what is known about where the model comes from.
    """

    net: Any
    tokenizer: TokenizerFile
    task: str
    labels: list[str] | None
    pooling: dict[str, Any] | None
    origin: dict[str, Any]


def import_huggingface(
    path: str | os.PathLike[str], out: str | os.PathLike[str], task: str | None = None
) -> Path:
    """Convert a Hugging Face or sentence-transformers directory to a bundle.

    Args:
        path: a directory with ``config.json``, ``model.safetensors`` and ``tokenizer.json`` or
            ``vocab.txt``, of a ``BertModel`` or ``BertForSequenceClassification``; or one with the
            ``modules.json`` of sentence-transformers, whose pooling and normalisation come along.
        out: where the bundle goes; nothing may be there yet.
        task: the task that the model is expected to have; found in the directory if left out.

    Returns:
        The path of the bundle.

    Raises:
        MissingFileError: the directory or one of its files is not there.
        ModelFormatError: a file is broken, or the weights do not fit the configuration.
        UnsupportedModelError: the model has a setting or a part that the runtime does not have.
        InvalidInputError: the model is not for `task`.
        OutputExistsError: `out` exists.
        MissingDependencyError: mxnet, gluonnlp, onnx or safetensors is not installed.
        BertrtError: the finished bundle gives other numbers than the net; it is not kept.
    """
    model = read_huggingface(path)
    if task is not None and task != model.task:
        raise InvalidInputError(
            f"{path} holds a model for {model.task}; "
            f"it cannot be imported for the task {task!r}"
            + ("" if task in TASKS else f" (tasks are {', '.join(TASKS)})")
        )
    return write_bundle(
        model.net,
        out,
        tokenizer=model.tokenizer,
        task=model.task,
        labels=model.labels,
        pooling=model.pooling,
        origin=model.origin,
    )


def read_huggingface(path: str | os.PathLike[str]) -> HuggingFaceModel:
    """Read a Hugging Face or sentence-transformers directory into a Gluon net.

    The errors are those of :func:`import_huggingface`.
    """
    root = Path(path)
    if not root.is_dir():
        raise MissingFileError(f"{root} is no directory; a Hugging Face model directory is wanted")
    directory, pooling = _sentence_transformer(root)
    config = _Config.read(directory / "config.json")
    weights = _read_safetensors(directory / "model.safetensors")
    classifier = config.architecture == _CLASSIFIER or (
        config.architecture is None and "classifier.weight" in weights
    )
    if classifier and pooling is not None:
        raise UnsupportedModelError(f"{root} has a pooling on top of a {_CLASSIFIER}")
    arrays, left_out = _rename(weights, classifier)
    task, labels = config.head() if classifier else ("embedding", None)
    net = _build(config, arrays, len(labels or [""]) if classifier else None)
    set_parameters(net, arrays, str(directory / "model.safetensors"))
    return HuggingFaceModel(
        net,
        _tokenizer(directory, config),
        task,
        labels if task == "classification" else None,
        None if classifier else pooling or {"mode": "mean", "normalize": False},
        {
            "framework": "huggingface",
            "model": config.content.get("_name_or_path") or root.resolve().name,
            "architecture": config.architecture,
            "left_out": left_out,
        },
    )


@dataclasses.dataclass(frozen=True)
class _Config:
    """A ``config.json`` that has been found to describe a BERT that Gluon can run."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> _Config:
        config = cls(path, _read_object(path))
        config._refuse("model_type", "bert", "bert")
        config._refuse("position_embedding_type", "absolute", "absolute")
        config._refuse("is_decoder", False, False)
        config._refuse("add_cross_attention", False, False)
        for name in ("pruned_heads", "quantization_config"):
            if config.content.get(name):
                raise UnsupportedModelError(f"{path}: {name} is set, which is not supported")
        architecture = config.architecture
        if architecture is not None and architecture not in (_CLASSIFIER, *_ENCODERS):
            raise UnsupportedModelError(
                f"{path}: the architecture {architecture!r} is not supported; "
                f"supported are {', '.join((_CLASSIFIER, *_ENCODERS))}"
            )
        config.activation  # noqa: B018 - for its error
        if config.count("hidden_size") % config.count("num_attention_heads"):
            raise ModelFormatError(
                f"{path}: hidden_size {config.count('hidden_size')} is no multiple of "
                f"num_attention_heads {config.count('num_attention_heads')}"
            )
        return config

    @property
    def architecture(self) -> str | None:
        names = self.content.get("architectures")
        if not names:
            return None
        if not isinstance(names, list) or not isinstance(names[0], str):
            raise ModelFormatError(f"{self.path}: architectures should be a list of names")
        return names[0]

    @property
    def activation(self) -> str:
        name = self.content.get("hidden_act", "gelu")
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            raise UnsupportedModelError(
                f"{self.path}: hidden_act {name!r} is not supported; "
                f"supported are {', '.join(_ACTIVATIONS)}"
            )
        return _ACTIVATIONS[name]

    @property
    def layer_norm_eps(self) -> float:
        value = self.content.get("layer_norm_eps", 1e-12)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise ModelFormatError(
                f"{self.path}: layer_norm_eps should be a small number, found {value!r}"
            )
        return float(value)

    def count(self, name: str) -> int:
        value = self.content.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelFormatError(
                f"{self.path}: {name} should be a whole number from 1, found {value!r}"
            )
        return value

    def head(self) -> tuple[str, list[str]]:
        """Task and labels of a sequence classifier, by the rules of transformers."""
        count = self.count("num_labels") if "num_labels" in self.content else 2
        names = self.content.get("id2label") or {str(i): f"LABEL_{i}" for i in range(count)}
        try:
            labels = [str(names[str(index)]) for index in range(len(names))]
        except (KeyError, TypeError) as error:
            raise ModelFormatError(
                f"{self.path}: id2label should map 0, 1, ... to names, found {names!r}"
            ) from error
        kind = self.content.get("problem_type")
        if kind not in (None, "single_label_classification", "regression"):
            raise UnsupportedModelError(f"{self.path}: problem_type {kind!r} is not supported")
        if kind == "regression" and len(labels) != 1:
            raise UnsupportedModelError(
                f"{self.path}: regression with {len(labels)} outputs is not supported"
            )
        if kind == "regression" or (kind is None and len(labels) == 1):
            return "regression", labels
        return "classification", labels

    def _refuse(self, name: str, default: Any, supported: Any) -> None:
        found = self.content.get(name, default)
        if found is None:
            found = default
        if found != supported:
            raise UnsupportedModelError(
                f"{self.path}: {name} is {found!r}, and only {supported!r} is supported"
            )


def _build(config: _Config, arrays: Mapping[str, Any], classes: int | None) -> Any:
    _, gluonnlp = import_gluon()
    bert = gluonnlp.model.bert
    units = config.count("hidden_size")
    encoder = bert.BERTEncoder(
        num_layers=config.count("num_hidden_layers"),
        units=units,
        hidden_size=config.count("intermediate_size"),
        max_length=config.count("max_position_embeddings"),
        num_heads=config.count("num_attention_heads"),
        dropout=0.0,
        activation=config.activation,
        layer_norm_eps=config.layer_norm_eps,
    )
    model = bert.BERTModel(
        encoder,
        vocab_size=config.count("vocab_size"),
        token_type_vocab_size=config.count("type_vocab_size"),
        units=units,
        embed_size=units,
        use_pooler=classes is not None or "pooler.weight" in arrays,
        use_decoder=False,
        use_classifier=False,
    )
    if classes is None:
        return model
    return bert.BERTClassifier(model, num_classes=classes, dropout=0.0)


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ModelFormatError(f"{path} should hold a JSON object")
    return content


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The float tensors of a safetensors file, as float32."""
    if not path.is_file():
        pickled = path.with_name("pytorch_model.bin").exists()
        sharded = path.with_name(path.name + ".index.json").exists()
        hint = ""
        if sharded:
            hint = "; the weights are in several shards: save them as one file"
        elif pickled:
            hint = "; pytorch_model.bin is a pickle and is never read: save it as safetensors"
        raise MissingFileError(f"{path} does not exist{hint}")
    try:
        import safetensors
    except ImportError as error:
        raise MissingDependencyError(
            "reading Hugging Face weights needs safetensors: pip install 'bertrt[export]'"
        ) from error
    try:
        entries = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ModelFormatError(f"{path} is not a readable safetensors file: {error}") from error
    arrays = {}
    for name, entry in entries:
        if name.endswith("position_ids"):  # a buffer of 0, 1, 2, ...; not a weight
            continue
        array = _FLOATS.get(entry["dtype"], _not_a_float)(entry["data"])
        if array is None:
            raise UnsupportedModelError(f"{path}: the tensor {name} has type {entry['dtype']}")
        arrays[name] = array.reshape(entry["shape"])
    return arrays


def _not_a_float(data: bytes) -> None:
    return None


def _bfloat16(data: bytes) -> np.ndarray:
    # A bfloat16 is the upper half of a float32.
    return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")


_FLOATS = {
    "F64": lambda data: np.frombuffer(data, "<f8").astype(np.float32),
    "F32": lambda data: np.frombuffer(data, "<f4"),
    "F16": lambda data: np.frombuffer(data, "<f2").astype(np.float32),
    "BF16": _bfloat16,
}


def _rename(
    weights: Mapping[str, np.ndarray], classifier: bool
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The weights under GluonNLP's names, and the names of those that have no use.

    A name that is neither stays as it is, for :func:`set_parameters` to refuse.
    """
    arrays, left_out = {}, []
    prefix = "bert." if classifier else ""
    for name, array in weights.items():
        if not classifier and name.startswith(("cls.", "classifier.")):
            left_out.append(name)
            continue
        if classifier and name in ("classifier.weight", "classifier.bias"):
            arrays[name.replace("classifier.", "classifier.0.")] = array
            continue
        plain = re.sub(
            r"(?<=LayerNorm\.)(weight|bias)$",
            lambda match: _LAYER_NORM[match[0]],
            name.removeprefix("bert."),
        )
        for pattern, target in _RENAMES:
            if match := pattern.fullmatch(plain):
                arrays[prefix + match.expand(target)] = array
                break
        else:
            arrays[name] = array
    return arrays, left_out


def _sentence_transformer(root: Path) -> tuple[Path, dict[str, Any] | None]:
    """Where the transformer lies, and the pooling if the directory brings one."""
    modules_path = root / "modules.json"
    if not modules_path.exists():
        alone = root / "1_Pooling" / "config.json"
        return root, _pooling(alone, normalize=False) if alone.exists() else None
    modules = read_json(modules_path)
    if not isinstance(modules, list) or not all(
        isinstance(m, dict) and isinstance(m.get("type"), str) and isinstance(m.get("path"), str)
        for m in modules
    ):
        raise ModelFormatError(f"{modules_path} should list modules with a type and a path each")
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UnsupportedModelError(
            f"{modules_path}: the modules {', '.join(kinds)} are not supported; "
            "supported is Transformer, Pooling and, if wanted, Normalize"
        )
    for module in modules:
        inside = (root / module["path"]).resolve()
        if inside != root.resolve() and root.resolve() not in inside.parents:
            raise ModelFormatError(f"{modules_path}: {module['path']!r} leads out of the directory")
    prompts = root / "config_sentence_transformers.json"
    if prompts.exists() and (prompt := _read_object(prompts).get("default_prompt_name")):
        raise UnsupportedModelError(
            f"{prompts}: default_prompt_name {prompt!r} puts text before every input, "
            "which is not supported"
        )
    pooling = _pooling(
        root / modules[1]["path"] / "config.json", normalize=kinds[-1] == "Normalize"
    )
    return root / modules[0]["path"], pooling


_POOLING_NAMES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}


def _pooling(path: Path, *, normalize: bool) -> dict[str, Any]:
    config = _read_object(path)
    if isinstance(config.get("pooling_mode"), str):  # the short form of newer versions
        chosen = [config["pooling_mode"]]
    else:
        chosen = [
            _POOLING_NAMES.get(name, name)
            for name, value in config.items()
            if name.startswith("pooling_mode_") and value
        ]
    if len(chosen) != 1 or chosen[0] not in _POOLING_NAMES.values():
        raise UnsupportedModelError(
            f"{path}: the pooling {' + '.join(chosen) or 'none'} is not supported; "
            "supported are mean and cls"
        )
    return {"mode": chosen[0], "normalize": normalize}


def _tokenizer(directory: Path, config: _Config) -> TokenizerFile:
    settings: dict[str, Any] = {}
    if (directory / "tokenizer_config.json").exists():
        settings = _read_object(directory / "tokenizer_config.json")
    sentence: dict[str, Any] = {}
    if (directory / "sentence_bert_config.json").exists():
        sentence = _read_object(directory / "sentence_bert_config.json")
    limits = [config.count("max_position_embeddings")]
    for source, name in ((sentence, "max_seq_length"), (settings, "model_max_length")):
        value = source.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 3:
                raise ModelFormatError(
                    f"{directory}: {name} should be a whole number from 3, found {value!r}"
                )
            limits.append(int(value))
            break
    if (directory / "tokenizer.json").exists():
        tokenizer = _load_tokenizer(directory / "tokenizer.json", settings)
    elif (directory / "vocab.txt").exists():
        tokenizer = _make_tokenizer(directory / "vocab.txt", settings)
    else:
        raise MissingFileError(f"{directory} holds neither tokenizer.json nor vocab.txt")
    normalizer = json.loads(tokenizer.to_str())["normalizer"] or {}
    lower = bool(normalizer.get("lowercase")) or normalizer.get("type") == "Lowercase"
    if sentence.get("do_lower_case") and not lower:
        raise UnsupportedModelError(
            f"{directory / 'sentence_bert_config.json'}: do_lower_case with a tokenizer that "
            "keeps case is not supported"
        )
    size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    return TokenizerFile("huggingface", tokenizer.to_str(), lower, min(limits), size)


_NORMALIZER_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def _load_tokenizer(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
    content = _read_object(path)
    # transformers lets tokenizer_config.json overrule what tokenizer.json says.
    normalizer = content.get("normalizer")
    if isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer":
        for name, field in _NORMALIZER_SETTINGS.items():
            if name in settings:
                normalizer[field] = settings[name]
    # The engine truncates to the model's length and never pads.
    content["truncation"] = content["padding"] = None
    try:
        return Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises plain Exception
        raise ModelFormatError(f"{path} is not a readable tokenizer: {error}") from error


def _make_tokenizer(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a ``vocab.txt``, as transformers would make it."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path} is not UTF-8 text: {error}") from error
    if lines and lines[-1] == "":
        lines.pop()
    vocab = {token: index for index, token in enumerate(lines)}
    special = {
        name: str(settings.get(f"{name}_token") or f"[{name.upper()}]")
        for name in ("unk", "sep", "pad", "cls", "mask")
    }
    for name in ("unk", "sep", "cls"):
        if special[name] not in vocab:
            raise ModelFormatError(f"{path} does not hold the token {special[name]}")
    tokenizer = Tokenizer(
        models.WordPiece(vocab, unk_token=special["unk"], max_input_chars_per_word=100)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = special["cls"], special["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens([token for token in special.values() if token in vocab])
    return tokenizer
