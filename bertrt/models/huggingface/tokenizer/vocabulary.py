"""Vocabularies of Hugging Face tokenizers, from whichever file holds one.

What is read of each file follows transformers 5: ``tokenization_utils_tokenizers.py``
(``convert_to_native_format``) and ``convert_slow_tokenizer.py``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

from bertrt.errors import MissingFileError, ModelFormatError, UnsupportedModelError
from bertrt.host.files import LARGEST_VOCABULARY, check_size
from bertrt.models.huggingface.tokenizer.sentencepiece import read_sentencepiece
from bertrt.models.huggingface.tokenizer.settings import Settings
from bertrt.text.charsmap import check_charsmaps
from bertrt.text.huggingface import check_pieces, refusing, without_vocabulary

__all__ = ["Values", "Vocabulary", "read_vocabulary"]

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Vocabulary:
    """What a class is built from.

    Attributes:
        path: the file that it comes from.
        pieces: tokens and their ids; for Unigram, tokens and their scores.
        merges: for byte pairs.
        charsmap: for Unigram, the compiled table of normalisation.
        file: the parts of a ``tokenizer.json`` beside its vocabulary; None without one.
    """

    path: Path
    pieces: Any
    merges: Sequence[Any] = ()
    charsmap: bytes | None = None
    file: Tokenizer | None = None


_FILES = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
_MODEL_TYPES = ("WordPiece", "BPE", "Unigram", "WordLevel", None)
# Files that transformers takes for a vocabulary of another kind, where there is no tokenizer.json.
_FOREIGN = ("tekken.json", "tiktoken.model", "tokenizer.model")


def read_vocabulary(
    name: str, model: str | None, files: tuple[str, ...], settings: Settings, values: Values
) -> Vocabulary:
    """Read what a class is built from.

    Args:
        name: the class's.
        model: "words", "bytes" or "unigram"; None for whatever a ``tokenizer.json`` holds.
        files: what it is built from where there is no ``tokenizer.json``.
        settings: which gain the tokens that a SentencePiece model says are special.
        values: the settings with the class's own where they are silent.

    Raises:
        MissingFileError: there is none of the files.
        ModelFormatError: a file is broken, or holds the vocabulary of another kind of model.
        UnsupportedModelError: a file of another kind would be read.
    """
    directory = settings.directory
    path = directory / "tokenizer.json"
    if settings.content is not None:
        return _of_tokenizer_file(name, model, path, settings.content)
    paths = [directory / file for file in files]
    for found in sorted(directory.iterdir()):
        if any(foreign in found.name for foreign in _FOREIGN):
            if model != "unigram" or found.name != "tokenizer.model":
                raise UnsupportedModelError(
                    f"{found}: a file of this name, without a tokenizer.json, is not supported for "
                    f"{name}"
                )
            paths = [found]
    missing = [path.name for path in paths if not path.exists()]
    if missing or not paths:
        there = [file for file in _FILES if (directory / file).exists()]
        hint = (
            f"; it holds {there[0]}: if that is the vocabulary, tokenizer_config.json should name "
            "the tokenizer_class"
            if there
            else ""
        )
        raise MissingFileError(
            f"{directory} holds no tokenizer.json"
            + "".join(f" and no {file}" for file in missing)
            + f", which {name} is made of{hint}"
        )
    for path in paths:
        check_size(path, LARGEST_VOCABULARY)
    if model == "unigram":
        return _of_sentencepiece(name, paths[0], settings, values)
    with refusing(f"{' and '.join(map(str, paths))} cannot be read"):
        if model == "words":
            return Vocabulary(paths[0], models.WordPiece.read_file(str(paths[0])))
        pieces, merges = models.BPE.read_file(*map(str, paths))
        return Vocabulary(paths[0], pieces, merges)


def _of_tokenizer_file(
    name: str, model: str | None, path: Path, content: dict[str, Any]
) -> Vocabulary:
    said = content["model"]
    if said.get("type") not in _MODEL_TYPES:
        raise ModelFormatError(f"{path}: the model's type {said['type']!r} is not known")
    with refusing(f"{path} is not a readable tokenizer"):
        check_charsmaps(content, path)
        if model is None:
            check_pieces(said.get("vocab"), path)
            return Vocabulary(path, None, file=Tokenizer.from_str(json.dumps(content)))
        parts = without_vocabulary(content)
        pieces, merges = said.get("vocab"), []
        if model == "unigram":
            if not isinstance(pieces, list) or not all(
                isinstance(piece, list) and len(piece) == 2 for piece in pieces
            ):
                raise ModelFormatError(
                    f"{path}: {name} needs a Unigram vocabulary, a list of tokens with scores"
                )
            check_pieces(pieces, path)
            pieces = [tuple(piece) for piece in pieces]
            return Vocabulary(path, pieces, charsmap=_charsmap(content), file=parts)
        if isinstance(pieces, list):
            pieces = {
                piece[0] if isinstance(piece, list) and piece else piece: index
                for index, piece in enumerate(pieces)
            }
        if not isinstance(pieces, dict):
            raise ModelFormatError(f"{path}: {name} needs a vocabulary of tokens with their ids")
        if model == "bytes":
            merges = [
                tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
                for merge in said.get("merges", [])
            ]
        return Vocabulary(path, pieces, merges, file=parts)


def _charsmap(content: Mapping[str, Any]) -> bytes | None:
    found = content.get("normalizer") or {}
    steps = found.get("normalizers", []) if found.get("type") == "Sequence" else [found]
    for step in steps:
        if step.get("type") == "Precompiled" and "precompiled_charsmap" in step:
            return base64.b64decode(step["precompiled_charsmap"])
    return None


def _of_sentencepiece(name: str, path: Path, settings: Settings, values: Values) -> Vocabulary:
    found = read_sentencepiece(path)
    pieces = found.pieces
    settings.values["additional_special_tokens"] = [
        AddedToken(piece, normalized=False, special=special) for piece, special in found.special
    ]

    def first(*roles: str) -> list[tuple[str, float]]:
        return [(str(values.get(f"{role}_token")), 0.0) for role in roles]

    if name == "XLMRobertaTokenizer":
        # fairseq's four come before the file's own from its fourth on.
        pieces = [*first("bos", "pad", "eos", "unk"), *pieces[3:], *first("mask")]
    elif name == "CamembertTokenizer":
        if not found.unigram:
            raise ModelFormatError(f"{path}: {name} needs a Unigram model")
        pad, unk = first("pad", "unk")
        unused = [(f"{piece}NOTUSED", 0.0) for piece in ("<s>", "</s>")]
        pieces = [
            unused[0], pad, unused[1], unk, ("<unk>NOTUSED", -100.0), *pieces[1:], *first("mask"),
        ]  # fmt: skip
    check_pieces(pieces, path)
    return Vocabulary(path, pieces, charsmap=found.charsmap)
