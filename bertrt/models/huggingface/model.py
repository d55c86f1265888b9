"""A Hugging Face or sentence-transformers directory, read without any of their packages."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from bertrt.errors import (
    InvalidInputError,
    MissingFileError,
    ModelFormatError,
    UnsupportedModelError,
)
from bertrt.host.paths import check_path
from bertrt.models.bundle import MANIFEST, read_json
from bertrt.models.huggingface.config import Config, read_object
from bertrt.models.huggingface.plan import read_plan
from bertrt.plan.plan import Plan
from bertrt.tasks.settings import LABELLED, TASKS, complete_settings
from bertrt.text.tokenizer import HuggingFaceTokenizer, check_vocabulary

__all__ = ["HuggingFaceModel", "is_huggingface"]


@dataclass(frozen=True)
class HuggingFaceModel:
    """What a directory holds.

    Attributes:
        config: its ``config.json``.
        plan: the fused plan, its weights mapped where they are float32.
        task: what the model is for.
        labels: the names of the classes or tags; None for the tasks without them.
        pooling: ``{"mode": ..., "normalize": ...}`` for embeddings, None otherwise.
        settings: what is set for the task, see `bertrt.tasks.settings`; the defaults.
        tokenizer: the tokenizer, with Hugging Face's rules.
        origin: what is known about where the model comes from.
    """

    config: Config
    plan: Plan
    task: str
    labels: list[str] | None
    pooling: dict[str, Any] | None
    settings: dict[str, Any]
    tokenizer: HuggingFaceTokenizer
    origin: dict[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike[str], task: str | None = None) -> HuggingFaceModel:
        """Open a directory with a ``config.json``, with weights in ``model.safetensors`` or in the
        shards of a ``model.safetensors.index.json``, and with a ``tokenizer.json``, a
        ``vocab.txt``, or a ``vocab.json`` with ``merges.txt``; or one with the ``modules.json`` of
        sentence-transformers, whose pooling and normalisation come along.

        Args:
            path: the directory.
            task: which of its tasks a model with heads of pretraining is wanted for: such a one
                makes embeddings too. Its own task, the first of `Config.tasks`, if left out, and
                "embedding" where the directory brings a pooling.

        Raises:
            MissingFileError: the directory or one of its files is not there.
            ModelFormatError: a file is broken, or the weights do not fit the configuration.
            UnsupportedModelError: the model has a setting or a part that the runtime does not have.
            InvalidInputError: the model is not for `task`.
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
        if (adapter := directory / "adapter_config.json").exists():
            raise UnsupportedModelError(
                f"{adapter}: adapters are not supported: merge it into the model and save that"
            )
        config = Config.read(directory / "config.json")
        tasks = config.tasks
        if pooling is not None:
            if "embedding" not in tasks:
                raise UnsupportedModelError(
                    f"{root} has a pooling on top of a model for {tasks[0]}, {config.architecture}"
                )
            tasks = ("embedding",)
        if task is not None and task not in tasks:
            raise InvalidInputError(
                f"{path} holds a model for {', '.join(tasks)}; "
                f"it cannot be taken for the task {task!r}"
                + ("" if task in TASKS else f" (tasks are {', '.join(TASKS)})")
            )
        task = task or tasks[0]
        plan, left_out = read_plan(config, task)
        if task == "embedding" and pooling is None:
            pooling = {"mode": "mean", "normalize": False}
        tokenizer = _tokenizer(directory, config)
        return cls(
            config,
            plan,
            task,
            config.labels if task in LABELLED else None,
            pooling,
            complete_settings(None, task, tokenizer.max_length),
            tokenizer,
            {
                "framework": "huggingface",
                "model": config.content.get("_name_or_path") or root.resolve().name,
                "architecture": config.architecture,
                "left_out": left_out,
            },
        )


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


# Before modules had one name for it, each family of transformers had its own.
_SENTENCE_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "xlm-roberta", "electra")
)


def _tokenizer(directory: Path, config: Config) -> HuggingFaceTokenizer:
    settings: dict[str, Any] = {}
    if (directory / "tokenizer_config.json").exists():
        settings = read_object(directory / "tokenizer_config.json")
    sentence_path = next(
        (path for name in _SENTENCE_CONFIGS if (path := directory / name).exists()), None
    )
    sentence = read_object(sentence_path) if sentence_path is not None else {}
    limits = [config.max_length]
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
            f"{config.path}: max_position_embeddings is "
            f"{config.count('max_position_embeddings')}, which is enough for {min(limits)} tokens; "
            "at least 3 are needed, for [CLS], a token and [SEP]"
        )
    path = _tokenizer_file(directory)
    made = {
        "tokenizer.json": _load_tokenizer,
        "vocab.txt": _make_word_pieces,
        "vocab.json": _make_byte_pairs,
    }[path.name](path, settings)
    tokenizer = HuggingFaceTokenizer(made, max_length=min(limits))
    check_vocabulary(tokenizer, config.count("vocab_size"), path)
    if sentence_path is not None and sentence.get("do_lower_case") and not tokenizer.lower:
        raise UnsupportedModelError(
            f"{sentence_path}: do_lower_case with a tokenizer that keeps case is not supported"
        )
    return tokenizer


def _tokenizer_file(directory: Path) -> Path:
    """The file to make the tokenizer of: the most complete that there is."""
    for name in ("tokenizer.json", "vocab.txt", "vocab.json"):
        if not (path := directory / name).exists():
            continue
        added = directory / "added_tokens.json"
        if name != "tokenizer.json" and added.exists() and read_object(added):
            raise UnsupportedModelError(
                f"{added}: added tokens beside a {name} are not supported: save the tokenizer with "
                "transformers, which writes a tokenizer.json"
            )
        return path
    for path in directory.glob("*.model"):
        raise UnsupportedModelError(
            f"{path}: a SentencePiece model alone is not supported: save the tokenizer with "
            "transformers, which writes a tokenizer.json"
        )
    raise MissingFileError(
        f"{directory} holds no tokenizer.json, no vocab.txt, and no vocab.json with merges.txt"
    )


_NORMALIZER_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def _load_tokenizer(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
    content = read_object(path)
    # transformers lets tokenizer_config.json overrule what tokenizer.json says.
    normalizer, pre_tokenizer = content.get("normalizer"), content.get("pre_tokenizer")
    if isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer":
        for name, field in _NORMALIZER_SETTINGS.items():
            if name in settings:
                normalizer[field] = settings[name]
    if isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "ByteLevel":
        pre_tokenizer["add_prefix_space"] = settings.get(
            "add_prefix_space", pre_tokenizer.get("add_prefix_space")
        )
    # The engine truncates to the model's length and never pads.
    content["truncation"] = content["padding"] = None
    try:
        return Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises plain Exception
        raise ModelFormatError(f"{path} is not a readable tokenizer: {error}") from error


def _make_word_pieces(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a ``vocab.txt``, as transformers would make it."""
    lines = _read_lines(path)
    vocab = {token: index for index, token in enumerate(lines)}
    names = {name: f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    special = _special_tokens(path, vocab, names, settings)
    tokenizer = Tokenizer(
        models.WordPiece(vocab, unk_token=special["unk"], max_input_chars_per_word=100)
    )
    _check_switches(path, settings, _NORMALIZER_SETTINGS)
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
    tokenizer.add_special_tokens(_added_tokens(special, vocab, settings))
    return tokenizer


def _make_byte_pairs(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """The byte-level BPE tokenizer of a ``vocab.json`` and a ``merges.txt``, as transformers would
    make RoBERTa's."""
    vocab = read_object(path)
    if not vocab or not all(type(index) is int and index >= 0 for index in vocab.values()):
        raise ModelFormatError(f"{path} should give each token its id, a whole number from 0")
    merges = []
    for number, line in enumerate(_read_lines(path.with_name("merges.txt")), 1):
        if line.startswith("#version") or not line:
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise ModelFormatError(
                f"{path.with_name('merges.txt')}, line {number}: {line[:80]!r} should be two tokens"
            )
        merges.append((parts[0], parts[1]))
    names = {"unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
    special = _special_tokens(path, vocab, names, settings)
    try:
        tokenizer = Tokenizer(models.BPE(vocab, merges))
    except Exception as error:  # the library raises plain Exception
        raise ModelFormatError(
            f"{path.with_name('merges.txt')} does not fit {path}: {error}"
        ) from None
    _check_switches(path, settings, ("add_prefix_space",))
    prefix = settings.get("add_prefix_space") is True
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.post_processor = processors.RobertaProcessing(
        (special["sep"], vocab[special["sep"]]),
        (special["cls"], vocab[special["cls"]]),
        add_prefix_space=prefix,
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_added_tokens(special, vocab, settings))
    return tokenizer


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path} is not UTF-8 text: {error}") from error
    if lines and lines[-1] == "":
        lines.pop()
    return lines


def _special_tokens(
    path: Path, vocab: Mapping[str, int], names: Mapping[str, str], settings: Mapping[str, Any]
) -> dict[str, str]:
    """The special tokens by their roles, those in `names` where the settings say nothing."""
    special = {}
    for name, usual in names.items():
        token = settings.get(f"{name}_token") or usual
        special[name] = str(token.get("content") if isinstance(token, dict) else token)
    for name in ("unk", "sep", "cls"):
        if special[name] not in vocab:
            raise ModelFormatError(f"{path} does not hold the token {special[name]}")
    return special


def _added_tokens(
    special: Mapping[str, str], vocab: Mapping[str, int], settings: Mapping[str, Any]
) -> list[AddedToken]:
    """The special tokens that have an id, as a text may hold them; the settings may say whether
    they swallow the white space beside them."""
    added = []
    for name, token in special.items():
        found = settings.get(f"{name}_token")
        options = found if isinstance(found, dict) else {}
        sides = {side: options.get(side) is True for side in ("lstrip", "rstrip", "single_word")}
        if token in vocab:
            added.append(AddedToken(token, special=True, normalized=False, **sides))
    return added


def _check_switches(path: Path, settings: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if not isinstance(settings.get(name), (bool, type(None))):
            raise ModelFormatError(
                f"{path.with_name('tokenizer_config.json')}: {name} should be true, false or null, "
                f"found {settings[name]!r}"
            )
