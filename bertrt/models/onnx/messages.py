"""How many messages an ONNX file is made of, counted before they are.

Read, a message takes a hundred bytes and more, and in a file it may take two. The numbers of the
fields that hold messages are those of ``onnx.proto`` (onnx/onnx).
"""

from __future__ import annotations

from typing import Any

from bertrt.errors import ModelFormatError

__all__ = ["check_messages"]

# A model of 24 layers has some 20,000 messages in some 100,000 fields.
_MOST_MESSAGES = 1 << 19
_MOST_FIELDS = 4 << 20

_Fields = dict[int, Any]
_PLAIN: _Fields = {}  # a message that holds none
_TENSOR: _Fields = {13: _PLAIN, 16: _PLAIN}
_SPARSE: _Fields = {1: _TENSOR, 2: _TENSOR}
_TYPE: _Fields = {}
_SHAPE: _Fields = {1: _PLAIN}
_TYPE.update({number: {1: _TYPE, 2: _SHAPE} for number in (1, 4, 8, 9)})
_TYPE[5] = {2: _TYPE}
_VALUE: _Fields = {2: _TYPE, 4: _PLAIN}
_GRAPH: _Fields = {}
_ATTRIBUTE: _Fields = {
    5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 14: _TYPE, 15: _TYPE, 22: _SPARSE, 23: _SPARSE,
}  # fmt: skip
_NODE: _Fields = {5: _ATTRIBUTE, 9: _PLAIN, 10: _PLAIN}
_GRAPH.update(
    {
        1: _NODE, 5: _TENSOR, 11: _VALUE, 12: _VALUE, 13: _VALUE, 14: {2: _PLAIN}, 15: _SPARSE,
        16: _PLAIN,
    }
)  # fmt: skip
_MODEL: _Fields = {
    7: _GRAPH,
    8: _PLAIN,
    14: _PLAIN,
    20: {1: _GRAPH, 2: _GRAPH, 3: _PLAIN, 4: _PLAIN},
    25: {7: _NODE, 9: _PLAIN, 11: _ATTRIBUTE, 12: _VALUE, 14: _PLAIN},
    26: _PLAIN,
}


def check_messages(data: bytes, where: str) -> None:
    """Refuse, with a ModelFormatError, a file of more than 524,288 messages or 4,194,304 fields,
    and one that is no protocol buffer or breaks off, of which the count would not be known."""
    pending: list[tuple[int, int, _Fields]] = [(0, len(data), _MODEL)]
    messages = fields = 0
    try:
        while pending:
            at, end, inner = pending.pop()
            messages += 1
            while at < end:
                fields += 1
                if fields > _MOST_FIELDS or messages + len(pending) > _MOST_MESSAGES:
                    raise ModelFormatError(
                        f"{where} has more than {_MOST_MESSAGES} messages or {_MOST_FIELDS} fields"
                    )
                tag = data[at]
                at += 1
                if tag > 127:
                    tag, at = _varint(data, at - 1)
                kind = tag & 7
                if kind == 2:
                    length = data[at]
                    at += 1
                    if length > 127:
                        length, at = _varint(data, at - 1)
                    if (own := inner.get(tag >> 3)) is not None:
                        pending.append((at, at + length, own))
                    at += length
                elif kind == 0:
                    while data[at] > 127:
                        at += 1
                    at += 1
                elif kind in (1, 5):
                    at += 8 if kind == 1 else 4
                else:
                    raise ModelFormatError(f"{where}: not an ONNX file: a field of type {kind}")
            if at != end:
                raise IndexError
    except IndexError:
        raise ModelFormatError(f"{where}: not an ONNX file, or truncated") from None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise IndexError
