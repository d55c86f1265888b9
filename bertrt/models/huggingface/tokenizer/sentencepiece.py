"""SentencePiece's model files, as far as a Unigram tokenizer needs them.

They are protocol buffers; the numbers of the fields are those of ``sentencepiece_model.proto``
(google/sentencepiece).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bertrt.errors import ModelFormatError
from bertrt.host.files import LARGEST_VOCABULARY, read_bytes
from bertrt.text.charsmap import check_charsmap

__all__ = ["SentencePieceModel", "read_sentencepiece"]

_MOST_PIECES = 2 << 20  # in memory a piece takes a hundred bytes and more

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # of ModelProto
_PIECE, _SCORE, _TYPE = 1, 2, 3  # of SentencePiece
_MODEL_TYPE = 3  # of TrainerSpec
_CHARSMAP = 2  # of NormalizerSpec
_CONTROL, _USER_DEFINED = 3, 4  # types of pieces
_UNIGRAM = 1  # type of model


@dataclass(frozen=True)
class SentencePieceModel:
    """What a file holds.

    Attributes:
        pieces: each piece with its score.
        special: the pieces that are added tokens, and whether each one is special.
        charsmap: the compiled table of normalisation; None where there is none.
        unigram: whether it is a Unigram model.
    """

    pieces: list[tuple[str, float]]
    special: list[tuple[str, bool]]
    charsmap: bytes | None
    unigram: bool


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a model file; ModelFormatError where it is none."""
    data = read_bytes(path, LARGEST_VOCABULARY)
    pieces: list[tuple[str, float]] = []
    special: list[tuple[str, bool]] = []
    charsmap = b""
    model_type: int | bytes = _UNIGRAM
    try:
        for number, value in _fields(data):
            if number == _PIECES:
                piece, kind = _read_piece(_whole(value))
                pieces.append(piece)
                if len(pieces) > _MOST_PIECES:
                    raise ValueError(f"more than {_MOST_PIECES} pieces")
                if kind in (_CONTROL, _USER_DEFINED):
                    special.append((piece[0], kind == _CONTROL))
            elif number == _TRAINER:
                model_type = dict(_fields(_whole(value))).get(_MODEL_TYPE, model_type)
            elif number == _NORMALIZER:
                charsmap = _whole(dict(_fields(_whole(value))).get(_CHARSMAP, charsmap))
    except (ValueError, IndexError, struct.error) as error:
        raise ModelFormatError(f"{path} is not a SentencePiece model: {error}") from None
    if not pieces:
        raise ModelFormatError(f"{path} is not a SentencePiece model: it holds no pieces")
    if charsmap:
        check_charsmap(charsmap, path)
    return SentencePieceModel(pieces, special, charsmap or None, model_type == _UNIGRAM)


def _read_piece(data: bytes) -> tuple[tuple[str, float], int]:
    piece, score, kind = "", 0.0, 1
    for number, value in _fields(data):
        if number == _PIECE:
            piece = _whole(value).decode("utf-8")
        elif number == _SCORE:
            (score,) = struct.unpack("<f", _whole(value))
        elif number == _TYPE and isinstance(value, int):
            kind = value
    return (piece, score), kind


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: numbers, and numbers or bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of type {kind}")
        if at + length > len(data):
            raise ValueError("it is truncated")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = data[at]
    at += 1
    if value < 128:
        return value, at
    value &= 127
    for shift in range(7, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number has no end")


def _whole(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a field has another type")
    return value
