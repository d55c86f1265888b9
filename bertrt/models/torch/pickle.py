"""The pickles that ``torch.save`` writes of tensors, read without unpickling: nothing is imported,
and nothing of a file is ever called.

A pickle is a program for a small stack machine. This one knows the instructions that a dictionary
of tensors is made of, and the few names that it mentions; everything else is refused by its name.
What comes out says where each tensor lies. The names and what they are called with are those of
torch's ``serialization.py`` and ``_utils.py``.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.host.files import MOST_ELEMENTS, fits

__all__ = ["Storage", "Tensor", "read_pickle", "short"]

# The types of storages, and their elements by the names of safetensors.
_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_STORAGE = "torch.storage"
_NAMES = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}
_LONGEST_NAME = 1000
# Python's pickler empties the stack after a thousand entries of a dictionary, two objects each.
_DEEPEST = 10_000
# A tensor takes some 45, and each may leave an object of a hundred bytes.
_MOST_INSTRUCTIONS = 1_000_000


@dataclass(frozen=True)
class Storage:
    """A row of numbers in a file: its key there, its elements by the names of safetensors, and how
    many there are."""

    key: str
    kind: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: an element of a storage to begin at, extents, and how far apart, in
    elements, neighbours are along each; all of it is within the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """A name of Python's that a pickle mentions: one of those that are known."""

    name: str


def read_pickle(data: bytes, start: int, where: str) -> tuple[Any, int]:
    """The value of the pickle that begins at a byte of `data`, and where it ends.

    It is made of dictionaries (with texts and whole numbers as keys), lists, tuples, texts,
    numbers, truth values, None and `Tensor`.

    Raises:
        ModelFormatError: it is no pickle, or a damaged one; UnsupportedModelError where it holds
            anything but tensors. The messages begin with `where`.
    """
    machine = _Machine(data, start, where)
    try:
        return machine.run(), machine.position
    except (IndexError, struct.error, UnicodeDecodeError):
        raise ModelFormatError(
            f"{where}: its pickle breaks off or is damaged at byte {machine.position}"
        ) from None


def short(value: Any) -> str:
    """A value in a message. What holds others, which may be deep, is called by its type."""
    if not isinstance(value, str | int | float | None):
        return f"a {type(value).__name__.lstrip('_').lower()}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class _Machine:
    """A pickle's machine: a stack, marks in it, and what has been put aside to be had again.

    Attributes:
        position: the byte that is read next.
    """

    def __init__(self, data: bytes, start: int, where: str) -> None:
        self.position = start
        self._data = data
        self._where = where
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._left = _MOST_INSTRUCTIONS

    def run(self) -> Any:
        while (left := self._left) > 0:
            self._left = left - 1
            if (code := self._bytes(1)) == pickle.STOP:
                return self._pop()
            if code not in _INSTRUCTIONS:
                names = [op.name for op in pickletools.opcodes if op.code.encode("latin-1") == code]
                raise UnsupportedModelError(
                    f"{self._where}: its pickle has the instruction "
                    f"{names[0] if names else hex(code[0])}, which no file of tensors needs"
                )
            _INSTRUCTIONS[code](self)
            if len(self._stack) > _DEEPEST:
                self._fail(f"holds more than {_DEEPEST} objects at once on its stack")
        self._fail(f"has more than {_MOST_INSTRUCTIONS} instructions, or makes as many entries")

    def _fail(self, what: str) -> NoReturn:
        raise ModelFormatError(f"{self._where}: its pickle {what}")

    # --- what is read -------------------------------------------------------------------------

    def _bytes(self, count: int) -> bytes:
        if count > len(self._data) - self.position:
            raise IndexError
        found = self._data[self.position : self.position + count]
        self.position += count
        return found

    def _number(self, kind: str) -> int:
        return int(struct.unpack(kind, self._bytes(struct.calcsize(kind)))[0])

    def _text(self, kind: str) -> None:
        self._push(self._bytes(self._number(kind)).decode("utf-8"))

    def _line(self) -> str:
        end = self._data.find(b"\n", self.position, self.position + _LONGEST_NAME)
        if end < 0:
            raise IndexError
        return self._bytes(end + 1 - self.position)[:-1].decode("utf-8")

    # --- the stack ----------------------------------------------------------------------------

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise IndexError
        return self._stack.pop()

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        found = self._stack[mark:]
        del self._stack[mark:]
        return found

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(values)))

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise IndexError
        self._push(self._memo[index])

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            self._fail(f"appends to {short(self._stack[-1])}")
        self._stack[-1].extend(values)

    def _set(self, values: list[Any]) -> None:
        table = self._stack[-1]
        if not isinstance(table, dict) or len(values) % 2:
            self._fail(f"sets entries of {short(table)}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            self._enter(table, key, value)

    def _enter(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        # Others would be hashed, which takes for ever where they are deep.
        if type(key) not in (str, int):
            self._fail(f"has {short(key)} as the name of an entry")
        table[key] = value

    # --- names, and what is made by them ------------------------------------------------------

    def _global(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if module == "torch" and name in _STORAGES:
            full = f"{_STORAGE}.{name}"
        elif full not in _NAMES:
            raise UnsupportedModelError(
                f"{self._where}: its pickle asks for {short(full)[1:-1]}, which is no part of a "
                "dictionary of tensors; nothing of it was run. Load it where it comes from, if you "
                "trust it, and save its tensors as safetensors"
            )
        self._push(_Name(full))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            self._fail(f"asks for {short(module)} and {short(name)} as a module and a name")
        self._global(module, name)

    def _instance(self) -> None:
        self._global(self._line(), self._line())
        self._fail("makes an instance in a way that no file of tensors has")

    def _reduce(self) -> None:
        arguments, called = self._pop(), self._pop()
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            self._fail(f"calls {short(called)}")
        name = called.name.rpartition(".")[2]
        if name == "OrderedDict":
            self._push(self._dictionary(arguments))
        elif name == "_rebuild_parameter" and len(arguments) == 3:
            if not isinstance(arguments[0], Tensor):
                self._fail(f"makes a parameter of {short(arguments[0])}")
            self._push(arguments[0])
        elif name == "_rebuild_tensor" and len(arguments) == 4:
            self._push(self._tensor(*arguments))
        elif name == "_rebuild_tensor_v2" and len(arguments) in (6, 7):
            if arguments[6:] not in ((), (None,), ({},)):
                raise UnsupportedModelError(
                    f"{self._where}: its pickle holds a tensor that is to be conjugated or negated"
                )
            self._push(self._tensor(*arguments[:4]))
        else:
            self._fail(f"calls {called.name} with {len(arguments)} arguments")

    def _dictionary(self, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        """An ``OrderedDict``, empty, or of pairs as Python 2 wrote it."""
        table: dict[Any, Any] = {}
        pairs = arguments[0] if len(arguments) == 1 else []
        if len(arguments) > 1 or not isinstance(pairs, list):
            self._fail("makes an OrderedDict of something else than pairs")
        # As many pairs as a list has that was made once can be asked for again and again.
        self._left -= len(pairs)
        for pair in pairs:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                self._fail("makes an OrderedDict of something else than pairs")
            self._enter(table, *pair)
        return table

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
        if (
            not isinstance(storage, Storage)
            or not _is_count(offset)
            or not all(isinstance(v, tuple) for v in (shape, strides))
            or not all(map(_is_count, (*shape, *strides)))
            or len(shape) != len(strides)
        ):
            self._fail("holds a tensor that is described by no storage, extents and strides")
        if not fits(shape):
            self._fail(f"holds a tensor of shape {_extents(shape)}")
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if prod(shape) and last >= storage.count:
            self._fail(
                f"places a tensor of shape {_extents(shape)} at {offset} of a storage of "
                f"{storage.count} elements, beyond its end"
            )
        return Tensor(storage, offset, shape, strides)

    def _persistent(self) -> None:
        found = self._pop()
        if not isinstance(found, tuple) or not found or found[0] != "storage":
            kind = found[0] if isinstance(found, tuple) and found else found
            raise UnsupportedModelError(
                f"{self._where}: its pickle refers to {short(kind)}, expected a storage"
            )
        if len(found) not in (5, 6) or found[5:] not in ((), (None,)):
            # The sixth, of files before torch 1.6
            raise UnsupportedModelError(
                f"{self._where}: its pickle refers to a part of another storage, which torch has "
                "not written since 0.4"
            )
        _, kind, key, _, count = found[:5]
        if (
            not isinstance(kind, _Name)
            or not kind.name.startswith(_STORAGE)
            or not isinstance(key, str)
            or not _is_count(count)
        ):
            self._fail("refers to a storage without type, key and number of elements")
        self._push(Storage(key, _STORAGES[kind.name.rpartition(".")[2]], count))

    def _build(self) -> None:
        state = self._pop()
        # A state dictionary has an attribute with the versions of its modules.
        if not isinstance(self._stack[-1], dict) or not isinstance(state, dict):
            self._fail(f"sets attributes of {short(self._stack[-1])}")
        if state.keys() - {"_metadata"}:
            self._fail("sets attributes of a dictionary")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST_ELEMENTS


def _extents(shape: tuple[int, ...]) -> str:
    return short(" x ".join(map(str, shape)))[1:-1]


def _constant(value: Any) -> Callable[[_Machine], None]:
    return lambda machine: machine._push(value)


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.PROTO: lambda m: None if m._number("<B") <= 5 else m._fail("has an unknown protocol"),
    pickle.FRAME: lambda m: (
        None if m._number("<Q") < MOST_ELEMENTS else m._fail("has an endless frame")
    ),
    pickle.MARK: lambda m: m._marks.append(len(m._stack)),
    pickle.NONE: _constant(None),
    pickle.NEWTRUE: _constant(True),
    pickle.NEWFALSE: _constant(False),
    pickle.BININT: lambda m: m._push(m._number("<i")),
    pickle.BININT1: lambda m: m._push(m._number("<B")),
    pickle.BININT2: lambda m: m._push(m._number("<H")),
    pickle.LONG1: lambda m: m._push(
        int.from_bytes(m._bytes(m._number("<B")), "little", signed=True)
    ),
    pickle.BINFLOAT: lambda m: m._push(struct.unpack(">d", m._bytes(8))[0]),
    pickle.SHORT_BINSTRING: lambda m: m._text("<B"),
    pickle.BINSTRING: lambda m: m._text("<I"),
    pickle.SHORT_BINUNICODE: lambda m: m._text("<B"),
    pickle.BINUNICODE: lambda m: m._text("<I"),
    pickle.EMPTY_DICT: lambda m: m._push({}),
    pickle.EMPTY_LIST: lambda m: m._push([]),
    pickle.EMPTY_TUPLE: _constant(()),
    pickle.TUPLE1: lambda m: m._tuple(1),
    pickle.TUPLE2: lambda m: m._tuple(2),
    pickle.TUPLE3: lambda m: m._tuple(3),
    pickle.TUPLE: lambda m: m._push(tuple(m._since_mark())),
    pickle.APPEND: lambda m: m._extend([m._pop()]),
    pickle.APPENDS: lambda m: m._extend(m._since_mark()),
    pickle.SETITEM: lambda m: m._set([m._pop(), m._pop()][::-1]),
    pickle.SETITEMS: lambda m: m._set(m._since_mark()),
    pickle.BINPUT: lambda m: m._put(m._number("<B")),
    pickle.LONG_BINPUT: lambda m: m._put(m._number("<I")),
    pickle.MEMOIZE: lambda m: m._put(len(m._memo)),
    pickle.BINGET: lambda m: m._get(m._number("<B")),
    pickle.LONG_BINGET: lambda m: m._get(m._number("<I")),
    pickle.GLOBAL: lambda m: m._global(m._line(), m._line()),
    pickle.STACK_GLOBAL: lambda m: m._stack_global(),
    pickle.INST: lambda m: m._instance(),
    pickle.BINPERSID: lambda m: m._persistent(),
    pickle.REDUCE: lambda m: m._reduce(),
    pickle.BUILD: lambda m: m._build(),
}
