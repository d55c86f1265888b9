"""A Hugging Face or sentence-transformers directory, read without any of their packages."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bertrt.errors import MissingFileError, ModelFormatError, UnsupportedModelError
from bertrt.graph.bundle import MANIFEST, read_json
from bertrt.graph.ir import Constant
from bertrt.graph.plan import Plan
from bertrt.graph.read_huggingface import Config, make_plan, read_object, read_weights
from bertrt.paths import check_path
from bertrt.tokenizer import HuggingFaceTokenizer, check_vocabulary

__all__ = ["HuggingFaceModel", "is_huggingface"]


@dataclass(frozen=True)
class HuggingFaceModel:
    """What a directory holds.

    Attributes:
        config: its ``config.json``.
        weights: the weights, by the names of `bertrt.graph.read_huggingface.read_weights`.
        task: "embedding", "classification" or "regression".
        labels: the names of the classes; None for the other tasks.
        pooling: ``{"mode": ..., "normalize": ...}`` for embeddings, None otherwise.
        tokenizer: the tokenizer, with Hugging Face's rules.
        origin: what is known about where the model comes from.
    """

    config: Config
    weights: Mapping[str, Constant]
    task: str
    labels: list[str] | None
    pooling: dict[str, Any] | None
    tokenizer: HuggingFaceTokenizer
    origin: dict[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> HuggingFaceModel:
        """Open a directory with ``config.json``, ``model.safetensors`` and ``tokenizer.json`` or
        ``vocab.txt``, of a ``BertModel`` or ``BertForSequenceClassification``; or one with the
        ``modules.json`` of sentence-transformers, whose pooling and normalisation come along.

        Raises:
            MissingFileError: the directory or one of its files is not there.
            ModelFormatError: a file is broken, or the weights do not fit the configuration.
            UnsupportedModelError: the model has a setting or a part that the runtime does not have.
        """
        root = check_path("path", path)
        if not root.is_dir():
            raise MissingFileError(
                f"{root} is no directory; a Hugging Face model directory is wanted"
            )
        directory, pooling = _sentence_transformer(root)
        if not (directory / "config.json").exists():
            bundle = (root / MANIFEST).is_file()
            raise MissingFileError(
                f"{directory / 'config.json'} does not exist: {root} is "
                + ("a bundle already" if bundle else "no Hugging Face model directory")
            )
        config = Config.read(directory / "config.json")
        weights, left_out = read_weights(config)
        classifier = "classifier.weight" in weights
        if classifier and pooling is not None:
            raise UnsupportedModelError(f"{root} has a pooling on top of a sequence classifier")
        task, labels = config.head() if classifier else ("embedding", None)
        return cls(
            config,
            weights,
            task,
            labels,
            None if classifier else pooling or {"mode": "mean", "normalize": False},
            _tokenizer(directory, config),
            {
                "framework": "huggingface",
                "model": config.content.get("_name_or_path") or root.resolve().name,
                "architecture": config.architecture,
                "left_out": left_out,
            },
        )

    def plan(self) -> Plan:
        """The fused plan.

        Raises:
            ModelFormatError: a weight holds numbers that are not finite.
        """
        return make_plan(self.config, self.weights)


def is_huggingface(directory: Path) -> bool:
    """Whether a directory looks like one of Hugging Face's."""
    return any((directory / name).is_file() for name in ("config.json", "modules.json"))


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
        if "\0" in module["path"]:  # which no file system takes
            raise ModelFormatError(f"{modules_path}: {module['path']!r} is no path")
        inside = (root / module["path"]).resolve()
        if inside != root.resolve() and root.resolve() not in inside.parents:
            raise ModelFormatError(f"{modules_path}: {module['path']!r} leads out of the directory")
    prompts = root / "config_sentence_transformers.json"
    if prompts.exists() and (prompt := read_object(prompts).get("default_prompt_name")):
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
    config = read_object(path)
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


def _tokenizer(directory: Path, config: Config) -> HuggingFaceTokenizer:
    settings: dict[str, Any] = {}
    if (directory / "tokenizer_config.json").exists():
        settings = read_object(directory / "tokenizer_config.json")
    sentence: dict[str, Any] = {}
    if (directory / "sentence_bert_config.json").exists():
        sentence = read_object(directory / "sentence_bert_config.json")
    limits = [config.count("max_position_embeddings")]
    for source, name in ((sentence, "max_seq_length"), (settings, "model_max_length")):
        value = source.get(name)
        if value is not None:
            if not isinstance(value, (int, float)) or not 3 <= value < math.inf:
                raise ModelFormatError(
                    f"{directory}: {name} should be a whole number from 3, found {value!r}"
                )
            limits.append(int(value))
            break
    if min(limits) < 3:
        raise ModelFormatError(
            f"{config.path}: max_position_embeddings is {min(limits)}; at least 3 are needed, for "
            "[CLS], a token and [SEP]"
        )
    if (path := directory / "tokenizer.json").exists():
        made = _load_tokenizer(path, settings)
    elif (path := directory / "vocab.txt").exists():
        made = _make_tokenizer(path, settings)
    else:
        raise MissingFileError(f"{directory} holds neither tokenizer.json nor vocab.txt")
    tokenizer = HuggingFaceTokenizer(made, max_length=min(limits))
    check_vocabulary(tokenizer, config.count("vocab_size"), path)
    if sentence.get("do_lower_case") and not tokenizer.lower:
        raise UnsupportedModelError(
            f"{directory / 'sentence_bert_config.json'}: do_lower_case with a tokenizer that "
            "keeps case is not supported"
        )
    return tokenizer


_NORMALIZER_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def _load_tokenizer(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
    content = read_object(path)
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
    special = {}
    for name in ("unk", "sep", "pad", "cls", "mask"):
        token = settings.get(f"{name}_token") or f"[{name.upper()}]"
        special[name] = str(token.get("content") if isinstance(token, dict) else token)
    for name in ("unk", "sep", "cls"):
        if special[name] not in vocab:
            raise ModelFormatError(f"{path} does not hold the token {special[name]}")
    tokenizer = Tokenizer(
        models.WordPiece(vocab, unk_token=special["unk"], max_input_chars_per_word=100)
    )
    for name in _NORMALIZER_SETTINGS:
        if not isinstance(settings.get(name), (bool, type(None))):
            raise ModelFormatError(
                f"{path.with_name('tokenizer_config.json')}: {name} should be true, false or null, "
                f"found {settings[name]!r}"
            )
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars") is not False,
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case") is not False,
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
