"""The tokenizer of a Hugging Face directory, made of the files and settings that lie there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
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

from bertrt.errors import MissingFileError, ModelFormatError, UnsupportedModelError
from bertrt.host.files import read_object
from bertrt.models.huggingface.config import Config
from bertrt.models.huggingface.sentence_transformers import SENTENCE_CONFIGS
from bertrt.text.huggingface import HuggingFaceTokenizer

__all__ = ["make_tokenizer"]


def make_tokenizer(directory: Path, config: Config) -> HuggingFaceTokenizer:
    """The tokenizer of the directory with this ``config.json``.

    Raises MissingFileError without its files, ModelFormatError for broken ones and for a vocabulary
    that does not fit the model, UnsupportedModelError for a setting that is not supported.
    """
    settings: dict[str, Any] = {}
    if (directory / "tokenizer_config.json").exists():
        settings = read_object(directory / "tokenizer_config.json")
    sentence_path = next(
        (path for name in SENTENCE_CONFIGS if (path := directory / name).exists()), None
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
