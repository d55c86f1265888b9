"""Files: what they may be, read with a bound, and JSON read from them.

Whatever a file says of sizes is checked before memory is taken for it. docs/limits.md has the
table of all formats."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import BertrtError, MissingFileError, ModelFormatError, OutOfMemoryError

__all__ = [
    "LARGEST_VOCABULARY",
    "MOST_AXES",
    "MOST_ELEMENTS",
    "check_json",
    "check_size",
    "fits",
    "is_there",
    "open_plain",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_object",
    "read_text",
    "reading",
    "without_escapes",
]

MOST_AXES = 32  # numpy's own limit before 2.0
MOST_ELEMENTS = 1 << 48
# Bytes of a file with the pieces of a tokenizer: a million of them have 70 MB.
LARGEST_VOCABULARY = 128 << 20


def fits(shape: Sequence[int]) -> bool:
    """Whether there can be an array of this shape: at most 32 axes, none below 0, of at most 2^48
    elements. Extents beside a 0 count too: numpy has no array of 0 x 2^40 x 2^40."""
    return (
        len(shape) <= MOST_AXES
        and all(extent >= 0 for extent in shape)
        and prod(extent or 1 for extent in shape) <= MOST_ELEMENTS
    )


# What Python makes of JSON is up to some forty times as long as the text, most of it for what the
# text says in one to three bytes: so these are counted before anything is made of them. A list has
# eight bytes and an object sixteen in every file of use; a tokenizer of a million pieces has less
# than four million values.
_FEW_CONTAINERS = 128 << 10
_BYTES_A_LIST = 8
_BYTES_AN_OBJECT = 16
_MOST_VALUES = 4 << 20
_DEEPEST = 100
# Numbers of more digits take for ever, or no float holds them.
_MOST_DIGITS = 300
_LARGEST_JSON = 16 << 20
_SURROGATE = re.compile(rb"\\u[dD][89abAB]|\\u[dD][c-fC-F]")
_DIGITS = bytes(ord("0") if byte in b"0123456789" else ord(".") for byte in range(256))
_STRIDE = 8
_RUN = b"0" * ((_MOST_DIGITS - _STRIDE) // _STRIDE)


@contextlib.contextmanager
def reading(path: Path, refusal: type[BertrtError] = ModelFormatError) -> Iterator[None]:
    """What the system refuses in the block of what is at `path`, or in it, comes as a `refusal`
    that names it, and memory that it does not give as an OutOfMemoryError."""
    try:
        yield
    except BertrtError:
        raise
    except MemoryError as error:
        raise OutOfMemoryError(
            f"the memory of this machine does not suffice to load {path}: nothing of it was kept"
        ) from error
    except OSError as error:
        raise refusal(
            f"{error.filename or path} cannot be read: {error.strerror or error}"
        ) from error


def is_there(path: Path) -> bool:
    """Whether there is something of this name, be it a link that leads nowhere: a file that may be
    missing, and is not to be overlooked because it cannot be read. ModelFormatError where the
    system does not say."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error}") from error
    return True


def check_size(path: Path, limit: int) -> int:
    """The bytes of a plain file. Refuse, with a ModelFormatError, what is none, or has more bytes
    than `limit`: nothing of it is read. MissingFileError where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise MissingFileError(
            f"{path} {'is a link that leads nowhere' if path.is_symlink() else 'does not exist'}"
        ) from None
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise ModelFormatError(f"{path} should be a plain file")
    if found.st_size > limit:
        raise ModelFormatError(f"{path} has {found.st_size} bytes, and at most {limit} are read")
    return found.st_size


def open_plain(path: Path, kind: type[io.FileIO] = io.FileIO) -> io.FileIO:
    """A plain file, opened to read from. OSError where it cannot be opened, or is another kind of
    file: one that has come to this place since it was looked at does not make us wait."""
    file = kind(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return file


def read_bytes(path: Path, limit: int) -> bytes:
    """The bytes of a plain file of at most `limit` of them.

    Raises what `check_size` raises, and ModelFormatError where the file cannot be read.
    """
    size = check_size(path, limit)
    if size == 0:  # the system's own files have no size, and reading them may wait for ever
        return b""
    try:
        with io.BufferedReader(open_plain(path)) as file:
            data = file.read(size + 1)
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error}") from error
    if len(data) > size:
        raise ModelFormatError(f"{path} grows while it is read")
    return data


def read_text(path: Path, limit: int) -> str:
    """The text of a plain file in UTF-8, of at most `limit` bytes. Raises what `read_bytes` raises,
    and ModelFormatError where it is not UTF-8."""
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path} is not UTF-8 text: {error}") from error


def check_json(data: bytes) -> None:
    """Refuse, with a ValueError that says why, JSON that would be far larger in memory than in its
    file: more than a list for every 8 bytes or an object for every 16 (the first 131,072 of each
    are free), or more than 4,194,304 values. Nothing is made of it; what is not JSON may pass."""
    most = {
        b"[": _FEW_CONTAINERS + len(data) // _BYTES_A_LIST,
        b"{": _FEW_CONTAINERS + len(data) // _BYTES_AN_OBJECT,
        b",": _MOST_VALUES,
    }
    if all(data.count(sign) <= limit for sign, limit in most.items()):  # those of texts too
        return
    signs = _signs(data, b"[{,")
    for sign, name in ((b"[", "lists"), (b"{", "objects"), (b",", "values")):
        if (found := np.count_nonzero(signs == ord(sign))) > most[sign]:
            raise ValueError(
                f"has {found} {name} in {len(data)} bytes, and at most {most[sign]} are read"
            )


def _check_depth(data: bytes) -> None:
    if data.count(b"[") + data.count(b"{") <= _DEEPEST:
        return
    steps = np.zeros(256, np.int8)
    steps[list(b"[{")], steps[list(b"]}")] = 1, -1
    depth = np.cumsum(steps[_signs(data, b"[]{}")], dtype=np.int32).max(initial=0)
    if depth > _DEEPEST:
        raise ValueError(
            f"is nested too deeply: {depth} lists and objects, and at most {_DEEPEST} are read"
        )


def _signs(data: bytes, wanted: bytes) -> np.ndarray:
    """These signs of JSON, in order, without those in texts."""
    kept = without_escapes(data).translate(None, bytes(set(range(256)) - set(wanted + b'"')))
    # A text with nothing in it that counts goes, and leaves what is within others where it is.
    signs = np.frombuffer(kept.replace(b'""', b""), np.uint8)
    quotes = signs == ord('"')
    return signs[((np.cumsum(quotes, dtype=np.uint8) & 1) == 0) & ~quotes]


def without_escapes(data: bytes) -> bytes:
    """JSON without the quotes and the backslashes that stand in texts: a quote begins or ends
    one."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    return data


def parse_json(data: bytes, *, distinct: bool = False) -> Any:
    """The value of JSON in UTF-8. Of names that an object has twice the last counts, as for
    everybody who reads these files, unless they are to be `distinct`.

    Raises UnicodeDecodeError and json.JSONDecodeError for what is neither, and plain ValueError,
    whose message goes on from the file's name, where it is what `check_json` refuses, is nested
    more than 100 deep, has a whole number of more than 300 digits, or a name twice where that is
    refused.
    """
    check_json(data)
    _check_depth(data)
    text = data.decode("utf-8")
    hooks: dict[str, Any] = {"object_pairs_hook": _distinct} if distinct else {}
    # Every eighth byte: as many digits show there as a run, whatever else does. Only then does
    # each number cost a call.
    if _RUN in data[::_STRIDE].translate(_DIGITS):
        hooks["parse_int"] = _whole_number
    try:
        return json.loads(text, **hooks)
    except RecursionError:  # within a deep stack
        raise ValueError("is nested too deeply") from None


def _whole_number(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(
            f"has the number {text[:12]}... of {len(text)} digits, and at most {_MOST_DIGITS} are "
            "read"
        )
    return int(text)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"has {name[:80]!r} twice in one object")
        table[name] = value
    return table


def read_json(path: Path, *, limit: int = _LARGEST_JSON, distinct: bool = False) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        limit: the most bytes that it may have.
        distinct: whether an object that has a name twice is refused; otherwise the last counts.

    Raises:
        MissingFileError: there is no such file.
        ModelFormatError: the file is too large, no plain file, not UTF-8 or not JSON, is what
            `parse_json` refuses, or holds half a surrogate.
    """
    data = read_bytes(path, limit)
    try:
        content = parse_json(data, distinct=distinct)
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path} is not UTF-8 text: {error}") from error
    except json.JSONDecodeError as error:
        raise ModelFormatError(f"{path} is not JSON: {error}") from error
    except ValueError as error:
        raise ModelFormatError(f"{path} {error}") from error
    if _SURROGATE.search(data):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ModelFormatError(f"{path} holds half a surrogate, which is no text") from None
    return content


def read_object(
    path: Path, *, limit: int = _LARGEST_JSON, distinct: bool = False
) -> dict[str, Any]:
    """The JSON object in a file. Raises what `read_json` raises, and ModelFormatError for another
    value."""
    content = read_json(path, limit=limit, distinct=distinct)
    if not isinstance(content, dict):
        raise ModelFormatError(f"{path} should hold a JSON object")
    return content
