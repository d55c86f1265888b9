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

from tokenizers import AddedToken, Tokenizer

from bertrt.errors import MissingFileError, ModelFormatError, UnsupportedModelError
from bertrt.host.files import LARGEST_VOCABULARY, check_size, read_object, read_text
from bertrt.models.huggingface.tokenizer.sentencepiece import read_sentencepiece
from bertrt.models.huggingface.tokenizer.settings import Settings
from bertrt.text.charsmap import check_charsmaps
from bertrt.text.tokenizer_json import check_pieces, refusing, without_vocabulary

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
    if model == "unigram":
        check_size(paths[0], LARGEST_VOCABULARY)
        return _of_sentencepiece(name, paths[0], settings, values)
    if model == "words":
        return Vocabulary(paths[0], _read_words(paths[0]))
    return Vocabulary(paths[0], _read_ids(paths[0]), _read_merges(paths[1]))


# Rust's white space; Python's has four more, U+001C to U+001F.
_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680"
    + "".join(map(chr, range(0x2000, 0x200B)))
    + ("\u2028\u2029\u202f\u205f\u3000")
)


# These three are read as the library does, which would open the files itself, and wait for a pipe
# that has come to their place meanwhile.


def _read_lines(path: Path) -> list[str]:
    lines = read_text(path, LARGEST_VOCABULARY).replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def _read_words(path: Path) -> dict[str, int]:
    return {line.rstrip(_SPACE): index for index, line in enumerate(_read_lines(path))}


def _read_ids(path: Path) -> dict[str, int]:
    pieces = read_object(path, limit=LARGEST_VOCABULARY)
    for piece, index in pieces.items():
        if type(index) is not int or not 0 <= index < 1 << 32:
            raise ModelFormatError(
                f"{path} cannot be read: the id of {piece[:80]!r} is {str(index)[:80]}, expected "
                "a whole number from 0"
            )
    return pieces


def _read_merges(path: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(_read_lines(path), 1):
        if line.startswith("#version"):
            continue
        first, space, second = line.partition(" ")
        if not space or " " in second:
            raise ModelFormatError(
                f"{path} cannot be read: line {number} is {line[:80]!r}, expected two pieces with "
                "a space between them"
            )
        merges.append((first, second))
    return merges


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
