"""The tokenizer that a bundle's manifest describes.

The kinds, as the manifest names them:

``gluonnlp``
    The ids of GluonNLP's ``BERTTokenizer`` and ``BERTSentenceTransform``.
``gluonnlp-bpe``
    The ids of GluonNLP's ``GPT2BPETokenizer``, for RoBERTa.
``gluonnlp-sentencepiece``
    The ids of GluonNLP's ``BERTSPTokenizer``, for KoBERT.
``huggingface``
    A ``tokenizer.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertrt.errors import MissingFileError, ModelFormatError
from bertrt.text.encoding import Tokenizer
from bertrt.text.gluonnlp import (
    BytePairTokenizer,
    GluonTokenizer,
    SentencePieceTokenizer,
    WordPieceTokenizer,
)
from bertrt.text.huggingface import HuggingFaceTokenizer, Rules
from bertrt.text.tokenizer_json import read_tokenizer
from bertrt.text.vocabulary import Vocabulary, read_merges

__all__ = ["load_tokenizer"]


def load_tokenizer(
    settings: Mapping[str, Any], directory: Path, vocab_size: int | None = None
) -> Tokenizer:
    """Load the tokenizer that a bundle's manifest describes.

    Args:
        settings: ``{"kind": kind, "file": name, "lower": bool, "max_length": int}``, for the kinds
            gluonnlp-bpe and gluonnlp-sentencepiece with ``"pieces": name``, the file of the merges
            or of the SentencePiece model. "lower" is read where the basic tokenizer is used. The
            kind huggingface may have ``"rules": {...}``, see `HuggingFaceTokenizer.unusual`.
        directory: where the files lie.
        vocab_size: rows of the model's embedding matrix; a vocabulary of GluonNLP's
            that needs more is refused.

    Raises:
        MissingFileError: a file is not there.
        ModelFormatError: the settings or a file are broken, or do not fit the model.
        MissingDependencyError: the package sentencepiece is wanted and not installed.
    """
    kind = _setting(settings, "kind", str)
    path = _file(settings, "file", directory)
    max_length = _setting(settings, "max_length", int)
    if max_length < 3:
        raise ModelFormatError(
            f"tokenizer settings: max_length is {max_length}; at least 3 are needed, "
            "for [CLS], a token and [SEP]"
        )
    tokenizer: GluonTokenizer | HuggingFaceTokenizer
    if kind == "gluonnlp":
        lower = _setting(settings, "lower", bool)
        tokenizer = WordPieceTokenizer(Vocabulary.read(path), lower=lower, max_length=max_length)
    elif kind == "gluonnlp-bpe":
        merges = read_merges(_file(settings, "pieces", directory))
        tokenizer = BytePairTokenizer(Vocabulary.read(path), merges, max_length=max_length)
    elif kind == "gluonnlp-sentencepiece":
        lower = _setting(settings, "lower", bool)
        pieces = _file(settings, "pieces", directory)
        tokenizer = SentencePieceTokenizer(
            Vocabulary.read(path), pieces, lower=lower, max_length=max_length
        )
    elif kind == "huggingface":
        said = dict(_setting(settings, "rules", dict)) if "rules" in settings else {}
        made = read_tokenizer(path, exact_scores=said.pop("exact_scores", False) is True)
        tokenizer = HuggingFaceTokenizer(made, max_length=max_length, rules=Rules.read(said, made))
    else:
        raise ModelFormatError(
            f"tokenizer settings: kind is {kind!r}; expected 'gluonnlp', 'gluonnlp-bpe', "
            "'gluonnlp-sentencepiece' or 'huggingface'"
        )
    # Hugging Face's vocabularies may have tokens that the model has no row for. A text with one is
    # refused when it comes.
    if vocab_size is not None and kind != "huggingface" and tokenizer.vocab_size > vocab_size:
        raise ModelFormatError(
            f"{path}: the vocabulary has ids up to {tokenizer.vocab_size - 1}, "
            f"the model's embedding has only {vocab_size} rows"
        )
    return tokenizer


def _file(settings: Mapping[str, Any], key: str, directory: Path) -> Path:
    path = Path(directory) / _setting(settings, key, str)
    if not path.is_file():
        raise MissingFileError(f"{path}: the tokenizer's file is missing")
    return path


def _setting(settings: Mapping[str, Any], key: str, kind: type) -> Any:
    value = settings.get(key)
    # bool is an int to Python, and no length to us.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ModelFormatError(
            f"tokenizer settings: {key!r} is {value!r}; expected a value of type {kind.__name__}"
        )
    return value
