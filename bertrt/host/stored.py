"""Files of weights: read into memory of our own, never mapped.

Pages of a mapped file are the file's: whoever truncates it in place ends every process that reads
them with SIGBUS, and whoever writes to it changes what they compute. What has been read stays.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import MissingFileError, ModelFormatError

__all__ = ["File", "Stored", "read_all"]

# An array of so many bytes has memory of its own, which goes when the array does; smaller ones
# are read together, up to as many bytes.
_LARGE = 1 << 20
_HUGE_PAGE = 2 << 20
# Other files than bundles', which are hashed whole, may hold much that nobody asks for.
_LONGEST_GAP = 1 << 16


class File:
    """A file open for reading, as if it were its bytes: ``len(file)``, and slices of it, which are
    read-only uint8 arrays in memory of their own.

    It is the file that was there when this was made: one that is renamed to its place later is
    another. Every read checks that size and time of change are still the same, and is a
    ModelFormatError that names the file where they are not.

    Attributes:
        path: where it lay.
        watch: called once with all bytes of the file, piece after piece, when `read_all` reads
            arrays of it; None: nobody watches, or all have been shown.

    Raises MissingFileError if there is no such file, ModelFormatError if it is empty or cannot be
    opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.watch: Callable[[np.ndarray], object] | None = None
        self._stored: weakref.WeakValueDictionary[Any, Stored] = weakref.WeakValueDictionary()
        try:
            if not path.is_file():
                raise MissingFileError(f"{path}: no such file")
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            # What is collected in a child of a fork closes the child's own.
            weakref.finalize(self, os.close, self._descriptor)
            found = os.fstat(self._descriptor)
        except MissingFileError:
            raise
        except (ValueError, OSError) as error:
            raise ModelFormatError(f"{path}: cannot be read: {error}") from None
        if not stat.S_ISREG(found.st_mode) or found.st_size == 0:
            raise ModelFormatError(f"{path}: cannot be read: it is empty, or no plain file")
        self._size, self._changed = found.st_size, found.st_mtime_ns
        self._place = found.st_dev, found.st_ino

    @property
    def identity(self) -> tuple[int, ...]:
        """What tells the file from others, and from itself after a change."""
        return *self._place, self._size, self._changed

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice) -> np.ndarray:
        begin, end, _ = where.indices(self._size)
        return self.read(begin, max(begin, end))

    def read(self, begin: int, end: int) -> np.ndarray:
        """The bytes from `begin` to `end`, both within the file."""
        memory = _memory(end - begin)
        rest = memory.data
        try:
            # preadv knows nothing of a common position, which threads, or a child of a fork, would
            # move for each other; and it waits without the GIL.
            while rest and (count := os.preadv(self._descriptor, [rest], end - len(rest))):
                rest = rest[count:]
            found = os.fstat(self._descriptor)
        except OSError as error:
            raise ModelFormatError(f"{self.path}: cannot be read: {error}") from None
        if rest or (found.st_size, found.st_mtime_ns) != (self._size, self._changed):
            raise ModelFormatError(
                f"{self.path} was changed while it was in use: it had {self._size} bytes when it "
                f"was opened, and has {found.st_size}; write another file, and rename it to this "
                "one's place"
            )
        memory.flags.writeable = False
        return memory

    def stored(self, offset: int, dtype: str, shape: Sequence[int]) -> Stored:
        """The array that lies there: the same one for all who ask."""
        key = offset, np.dtype(dtype).newbyteorder("<"), tuple(shape)
        return self._stored.setdefault(key, Stored(self, *key))

    def pieces(self, places: Iterable[tuple[int, int]]) -> Iterator[tuple[int, np.ndarray]]:
        """What lies at `places`, each from one byte to another, in pieces of the file that cut none
        of them: where a piece begins, and its bytes. `watch`, if there is one, sees each."""
        watch = self.watch
        # A gap that nobody asks for is left out, unless all are to be seen.
        ends = [(0, 0)] if watch is None else [(0, 0), (self._size, self._size)]
        begin = reached = 0
        for start, end in [*sorted([*places, *ends]), (self._size, self._size)]:
            large = end - start >= _LARGE or start - begin >= _LARGE
            gap = watch is None and start - reached > _LONGEST_GAP
            if start >= reached and (large or gap or start == self._size):
                cut = reached if gap else start
                if cut > begin:
                    piece = self.read(begin, cut)
                    if watch is not None:
                        watch(piece)
                    yield begin, piece
                    del piece
                begin = start
            reached = max(reached, end)
        self.watch = None


def _memory(size: int) -> np.ndarray:
    """Bytes that nobody else has; large ones go back to the system when nothing shows them."""
    if size < _LARGE:
        return np.empty(size, np.uint8)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # advice only; a kernel may know none
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


class Stored:
    """An array in a file, as `File.stored` makes it: little-endian, row-major, and read when it is
    asked for.

    Attributes:
        file, offset: where it begins; the whole of it must lie inside the file.
        dtype, shape: what it is.
    """

    def __init__(
        self, file: File, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]
    ) -> None:
        self.file, self.offset, self.dtype, self.shape = file, offset, dtype, shape
        self._array: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """The bytes that it takes."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def array(self) -> np.ndarray:
        """The array, read-only and aligned; it stays in memory until it is let go."""
        array = self._array
        if array is None:
            data = self.file.read(self.offset, self.offset + self.nbytes)
            array = self._array = self._view(data, self.offset)
        return array

    def let_go(self) -> None:
        """Hold the array no longer, as it can be read again. A vector stays: it is small, and may
        have to be there when the file is not any more."""
        if len(self.shape) > 1:
            self._array = None
        else:
            _ = self.array

    def rows(self, begin: int, end: int) -> Stored:
        """The rows from `begin` to `end` of the first axis."""
        size = self.nbytes // self.shape[0]
        shape = (end - begin, *self.shape[1:])
        part = self.file.stored(self.offset + begin * size, self.dtype.str, shape)
        if part._array is None and self._array is not None:
            part._array = self._array[begin:end]
        return part

    def _view(self, data: np.ndarray, begin: int) -> np.ndarray:
        """The array in the bytes of the file from `begin` on."""
        data = data[self.offset - begin :][: self.nbytes]
        array = data.view(self.dtype).reshape(self.shape)
        if not array.flags.aligned:  # compiled code may rely on it
            array = array.copy()
            array.flags.writeable = False
        return array


def read_all(arrays: Sequence[Stored]) -> list[np.ndarray]:
    """The arrays, for the caller: all are let go here, so that the memory of a large one goes when
    the caller's array does. Those that had not been read are, in the order of their files."""
    found: dict[int, np.ndarray] = {}
    missing: dict[File, list[Stored]] = {}
    for stored in arrays:
        array = stored._array
        if array is None or stored.file.watch is not None:  # which is to see what is used
            missing.setdefault(stored.file, []).append(stored)
        else:
            found[id(stored)] = array
            stored.let_go()
    for file, own in missing.items():
        own = sorted(set(own), key=lambda stored: -stored.offset)
        for begin, piece in file.pieces([(s.offset, s.offset + s.nbytes) for s in own]):
            while own and own[-1].offset < begin + len(piece):
                stored = own.pop()
                array = found[id(stored)] = stored._view(piece, begin)
                stored._array = None if array.ndim > 1 else array.copy()
            del piece
        for stored in own:  # of no bytes, at the file's end
            found[id(stored)] = np.empty(stored.shape, stored.dtype)
    return [found[id(stored)] for stored in arrays]
