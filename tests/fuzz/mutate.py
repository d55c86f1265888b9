"""Mutations: of JSON by its tree, of protobuf by its fields, of archives by their entries, of
``.params`` and safetensors by their headers, of anything by its bytes."""

from __future__ import annotations

import copy
import io
import json
import pickle
import struct
import warnings
import zipfile
from random import Random
from typing import Any

__all__ = [
    "mutate_bytes",
    "mutate_json",
    "mutate_lines",
    "mutate_params",
    "mutate_safetensors",
    "mutate_tree",
    "mutate_wire",
    "mutate_zip",
]

_NUMBERS = (
    *(0, 1, -1, 2, 3, 5, 7, 8, 12, 13, 127, 128, 255, 256, 65535, 65536, 1 << 24),
    *((1 << 31) - 1, 1 << 31, -(1 << 31), (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 53),
    *((1 << 62), (1 << 63) - 1, 1 << 63, -(1 << 63), (1 << 64) - 1, 1 << 64, 10**30),
)
_FLOATS = (0.5, -0.5, 1e-12, 1e-45, 1e-308, 1e38, 1e39, 1e308, float("inf"), float("nan"), -0.0)
# What becomes, in the text, a tree or a number that no tree of Python's is made for.
_DEEP, _DIGITS = "<deep>", "<digits>"


def _value(random: Random) -> Any:
    return random.choice(
        (
            *(None, True, False, "", "a", "0", "1", "\0", "\ud800", "é" * 40, "../x", "/"),
            *([], {}, [[]], [None], {"": {}}, [0] * 50, _DEEP, _DIGITS, "x" * 3000),
            *(random.choice(_NUMBERS) for _ in range(8)),
            *(random.choice(_FLOATS) for _ in range(3)),
        )
    )


def _nodes(tree: Any) -> list[tuple[Any, Any]]:
    """Every place in a tree: its container, and its key or index there."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict | list):
            places = list(node) if isinstance(node, dict) else list(range(len(node)))
            found += [(node, place) for place in places]
            waiting += [node[place] for place in places]
    return found


def _copy(tree: Any) -> Any:
    return pickle.loads(pickle.dumps(tree))


def mutate_tree(random: Random, tree: Any) -> Any:
    """A changed copy of what JSON holds."""
    root = [_copy(tree)]
    nodes = _nodes(root)
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 5))):
        try:
            _mutate_node(random, root, nodes)
        except LookupError:  # a place that an earlier change took away
            continue
    return root[0]


def _mutate_node(random: Random, root: Any, nodes: list[tuple[Any, Any]]) -> None:
    parent, place = random.choice(nodes)
    old = parent[place]
    other_parent, other = random.choice(nodes)
    kind = random.randrange(10)
    if kind == 0:
        if parent is not root:
            del parent[place]
    elif kind == 1:
        parent[place] = _copy(other_parent[other])
    elif kind == 2:
        parent[place], other_parent[other] = _copy(other_parent[other]), _copy(old)
    elif kind == 3 and isinstance(parent, list) and parent is not root:
        parent.insert(random.randrange(len(parent) + 1), _copy(old))
    elif kind == 3 and isinstance(parent, dict):
        key = other if isinstance(other, str) else random.choice((f"{place}x", "", "weight"))
        parent[key] = _copy(old)
    elif kind == 4 and isinstance(parent, dict):
        parent[other if isinstance(other, str) else f"{place}_"] = parent.pop(place)
    elif kind == 5:
        parent[place] = [old] if random.random() < 0.5 else {"a": old}
    elif isinstance(old, bool) or old is None:
        parent[place] = random.choice((True, False, None, 0, 1, "true"))
    elif isinstance(old, int | float) and kind < 9:
        parent[place] = random.choice((old + 1, old - 1, old * 2, -old, old / 2, str(old)))
    elif isinstance(old, str) and kind < 9:
        like = next((p[k] for p, k in random.sample(nodes, 1) if isinstance(p[k], str)), "x")
        at = random.randrange(len(old) + 1)
        parent[place] = random.choice((like, old[:at], old + "x", old.upper()))
    elif isinstance(old, list) and old and kind < 9:
        random.shuffle(old)
    else:
        parent[place] = _value(random)


def mutate_json(random: Random, data: bytes) -> bytes:
    """JSON with another tree, or now and then with other bytes."""
    if random.random() < 0.07:
        return mutate_bytes(random, data)
    text = json.dumps(mutate_tree(random, json.loads(data)))
    if _DEEP in text:
        depth = random.choice((10, 100, 900, 5000, 100_000))
        opened, shut = random.choice(("[]", ("{" + '"a":', "}")))
        text = text.replace(f'"{_DEEP}"', opened * depth + "1" + shut * depth, 1)
    if _DIGITS in text:
        text = text.replace(f'"{_DIGITS}"', "9" * random.choice((20, 400, 4400, 20_000)), 1)
    return text.encode()


def mutate_bytes(random: Random, data: bytes, within: int | None = None) -> bytes:
    """Other bytes; `within`: mostly among the first so many."""
    made = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        end = len(made) if within is None or random.random() < 0.1 else min(within, len(made))
        at = random.randrange(end + 1)
        kind = random.randrange(9)
        if kind == 0:
            del made[at:]
        elif kind == 1:
            del made[at : at + random.choice((1, 2, 4, 8, 30))]
        elif kind == 2:
            made[at:at] = random.randbytes(random.choice((1, 2, 4, 8)))
        elif kind == 3:
            begin = random.randrange(len(made) + 1)
            made[at:at] = made[begin : begin + random.randrange(1, 40)]
        elif kind in (4, 5) and at < len(made):
            made[at] ^= 1 << random.randrange(8)
        elif kind == 6 and at < len(made):
            made[at] = random.randrange(256)
        else:
            size, sign = random.choice(((2, "<H"), (4, "<I"), (8, "<Q")))
            at = at // size * size if random.random() < 0.8 else at
            number = random.choice(_NUMBERS) % (1 << 8 * size)
            made[at : at + size] = struct.pack(sign, number)
    return bytes(made)


def mutate_lines(random: Random, data: bytes) -> bytes:
    """Text whose lines and fields go astray."""
    if random.random() < 0.5:
        return mutate_bytes(random, data)
    lines = data.split(b"\n")
    for _ in range(random.choice((1, 1, 2, 4))):
        at, other = random.randrange(len(lines)), random.randrange(len(lines))
        fields = lines[at].split(b"\t")
        place = random.randrange(len(fields))
        kind = random.randrange(6)
        if kind == 0:
            lines[at] = lines[other]
        elif kind == 1:
            lines.insert(at, lines[other])
        elif kind == 2 and len(lines) > 1:
            del lines[at]
        elif kind == 3:
            strange = ("", "\0", "\r", "1e999", "nan", "-", "\u2028", "\ufeff", "\x85", "9" * 5000)
            fields[place] = random.choice(strange).encode()
            lines[at] = b"\t".join(fields)
        elif kind == 4:
            fields.insert(place, random.choice(fields))
            lines[at] = b"\t".join(fields)
        else:
            lines[at] = b" ".join(fields)
    return b"\n".join(lines)


# --- archives --------------------------------------------------------------------------------


def mutate_zip(random: Random, data: bytes) -> bytes:
    """An archive with other entries, whole as an archive; now and then with other bytes."""
    if random.random() < 0.25 or not data.startswith(b"PK"):
        return mutate_bytes(random, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    # The pickle, or some array's header, is where most depends on every byte.
    first = next((i for i, entry in enumerate(entries) if entry[0].endswith(".pkl")), None)
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(entries))
        if first is not None and random.random() < 0.8:
            at = min(first, len(entries) - 1)
        name, content = entries[at]
        kind = random.randrange(12)
        if kind == 0 and len(entries) > 1:
            del entries[at]
        elif kind == 1:
            entries.append((name, mutate_bytes(random, content)))
        elif kind == 2:
            entries[at] = mutate_bytes(random, name.encode()).decode("latin-1"), content
        else:
            within = None if name.endswith(".pkl") else 130
            entries[at] = name, mutate_bytes(random, content, within)
    made = io.BytesIO()
    method = random.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED,))
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w", method) as out:
        warnings.simplefilter("ignore")  # names that are there twice
        for name, content in entries:
            out.writestr(zipfile.ZipInfo(name.replace("\0", "_") or "_"), content, method)
    return made.getvalue()


# --- safetensors, params ---------------------------------------------------------------------


def mutate_safetensors(random: Random, data: bytes) -> bytes:
    """A file with another header."""
    size = int.from_bytes(data[:8], "little")
    if random.random() < 0.2:
        return mutate_bytes(random, data, 8 + size)
    header = mutate_json(random, data[8 : 8 + size])
    header += b" " * (-len(header) % 8)
    said = len(header) if random.random() < 0.9 else random.choice(_NUMBERS) % (1 << 64)
    return said.to_bytes(8, "little") + header + data[8 + size :]


def mutate_params(random: Random, data: bytes) -> bytes:
    """A file with other numbers, names or arrays; the rest as MXNet writes it."""
    if random.random() < 0.2:
        return mutate_bytes(random, data)
    (count,) = struct.unpack_from("<Q", data, 16)
    at = 24
    arrays: list[list[Any]] = []
    for _ in range(count):
        magic, storage, ndim = struct.unpack_from("<Iii", data, at)
        numbers = [magic, storage, ndim, *struct.unpack_from(f"<{ndim}q", data, at + 12)]
        at += 12 + 8 * ndim
        numbers += struct.unpack_from("<iii", data, at)
        size = 4
        for number in numbers[3:-3]:
            size *= number
        arrays.append([numbers, ndim, data[at + 12 : at + 12 + size]])
        at += 12 + size
    names = []
    at += 8
    for _ in range(count):
        (size,) = struct.unpack_from("<Q", data, at)
        names.append(data[at + 8 : at + 8 + size])
        at += 8 + size
    counts = [0x112, 0, count, count]
    for _ in range(random.choice((1, 1, 2, 3))):
        kind, at = random.randrange(8), random.randrange(len(arrays))
        if kind == 0:
            counts[random.randrange(4)] = random.choice(_NUMBERS) % (1 << 64)
        elif kind == 1:
            names[at % len(names)] = mutate_bytes(random, names[at % len(names)])
        elif kind == 2:
            names[at % len(names)] = random.choice(names)
        elif kind == 3 and len(arrays) > 1:
            del arrays[at]
        elif kind == 4:
            arrays[at] = copy.deepcopy(random.choice(arrays))
        else:
            numbers = arrays[at][0]
            place = random.randrange(len(numbers))
            near = numbers[place] + random.choice((-1, 1))
            numbers[place] = random.choice((near, random.choice(_NUMBERS)))
    if random.random() < 0.5:
        counts[2] = len(arrays)
    made = struct.pack("<QQQ", *counts[:3])
    for numbers, ndim, content in arrays:
        kinds = "I" + "i" * 2 + "q" * ndim + "i" * 3
        for kind, number in zip(kinds, numbers, strict=True):
            size = 8 if kind == "q" else 4
            made += (number % (1 << 8 * size)).to_bytes(size, "little")
        made += content
    made += struct.pack("<Q", counts[3])
    return made + b"".join(struct.pack("<Q", len(name)) + name for name in names)


# --- protobuf --------------------------------------------------------------------------------


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
        if shift > 63:
            raise ValueError


def _fields(data: bytes) -> list[tuple[int, Any]] | None:
    """The fields of a message: tag, and a number or bytes; None if it is no message."""
    at, found = 0, []
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            if tag & 7 == 0:
                value, at = _varint(data, at)
            else:
                size = {1: 8, 5: 4}.get(tag & 7)
                if size is None:
                    size, at = _varint(data, at)
                if tag & 7 not in (1, 2, 5) or tag < 8 or at + size > len(data):
                    return None
                value, at = data[at : at + size], at + size
            found.append((tag, value))
    except (IndexError, ValueError):
        return None
    return found


def _encoded(number: int) -> bytes:
    made = bytearray()
    number %= 1 << 64
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])


def _message(fields: list[tuple[int, Any]]) -> bytes:
    made = []
    for tag, value in fields:
        made.append(_encoded(tag))
        if tag & 7 == 0:
            made.append(_encoded(value))
        else:
            made.append(_encoded(len(value)) if tag & 7 == 2 else b"")
            made.append(value)
    return b"".join(made)


def mutate_wire(random: Random, data: bytes) -> bytes:
    """A message of protobuf with another field somewhere, whole as a message; now and then other
    bytes."""
    if random.random() < 0.05:
        return mutate_bytes(random, data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = _mutate_message(random, data)
    return data


def _mutate_message(random: Random, data: bytes) -> bytes:
    fields = _fields(data)
    if not fields:
        return mutate_bytes(random, data)
    at = random.randrange(len(fields))
    tag, value = fields[at]
    if tag & 7 == 2 and random.random() < 0.9 and _fields(value):
        fields[at] = tag, _mutate_message(random, value)
        return _message(fields)
    kind = random.randrange(7)
    if kind == 0:
        del fields[at]
    elif kind == 1:
        fields.insert(random.randrange(len(fields) + 1), (tag, value))
    elif kind == 2:
        same = [v for t, v in fields if t & 7 == tag & 7]
        fields[at] = tag, random.choice(same)
    elif kind == 3:
        fields[at] = random.choice([t for t, _ in fields if t & 7 == tag & 7]), value
    elif tag & 7 == 0:
        near = value + random.choice((-1, 1))
        fields[at] = tag, random.choice((near, random.choice(_NUMBERS)))
    else:
        fields[at] = tag, mutate_bytes(random, value)
        if tag & 7 != 2:
            fields[at] = tag, fields[at][1].ljust(8, b"\0")[: 8 if tag & 7 == 1 else 4]
    return _message(fields)
