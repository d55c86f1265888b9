"""Files of weights: read into memory of our own, never mapped.

Pages of a mapped file are the file's: whoever truncates it in place ends every process that reads
them with SIGBUS, and whoever writes to it changes what they compute. What has been read stays.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import MissingFileError, ModelFormatError, OutOfMemoryError
from bertrt.host.beside import Beside
from bertrt.host.files import open_plain

__all__ = ["Fetcher", "File", "Stored"]

# An array of fewer bytes takes malloc's memory.
_SMALL = 1 << 20
# What is checked is read in blocks that the processor still has when they are looked at.
_BLOCK = 1 << 19
_HUGE_PAGE = 2 << 20


class File:
    """A file open for reading, as if it were its bytes: ``len(file)``, and slices of it, which are
    read-only uint8 arrays in memory of their own.

    It is the file that was there when this was made: one that is renamed to its place later is
    another. Every read checks that size and time of change are still the same, and is a
    ModelFormatError that names the file where they are not. Threads may read at the same time.

    Attributes:
        path: where it lay.

    Raises MissingFileError if there is no such file, ModelFormatError if it is empty or cannot be
    opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stored: weakref.WeakValueDictionary[Any, Stored] = weakref.WeakValueDictionary()
        try:
            if not path.is_file():
                raise MissingFileError(f"{path}: no such file")
            self._file = open_plain(path)
            found = os.fstat(self._file.fileno())
        except MissingFileError:
            raise
        except (ValueError, OSError) as error:
            raise ModelFormatError(f"{path}: cannot be read: {error}") from None
        if found.st_size == 0:
            raise ModelFormatError(f"{path}: cannot be read: it is empty, or no plain file")
        self._size, self._changed = found.st_size, found.st_mtime_ns
        self._place = found.st_dev, found.st_ino

    def __del__(self) -> None:
        # Where a signal handler raises here, or before, the file closes itself. What is collected
        # in a child of a fork closes the child's own.
        if hasattr(self, "_file"):
            self._file.close()

    @property
    def identity(self) -> tuple[int, ...]:
        """What tells the file from others, and from itself after a change."""
        return *self._place, self._size, self._changed

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice) -> np.ndarray:
        begin, end, _ = where.indices(self._size)
        array = np.empty(max(end - begin, 0), np.uint8)
        self.read_into(array.data, begin)
        return _frozen(array)

    def read_into(self, memory: memoryview, begin: int) -> None:
        """Read the bytes from `begin` on into `memory`, all of which must lie inside the file."""
        rest, end = memory, begin + len(memory)
        try:
            # preadv knows nothing of a common position, which threads, or a child of a fork, would
            # move for each other; and it waits without the GIL.
            descriptor = self._file.fileno()
            while rest and (count := os.preadv(descriptor, [rest], end - len(rest))):
                rest = rest[count:]
            found = os.fstat(descriptor)
        except OSError as error:
            raise ModelFormatError(f"{self.path}: cannot be read: {error}") from None
        if rest or (found.st_size, found.st_mtime_ns) != (self._size, self._changed):
            raise ModelFormatError(
                f"{self.path} was changed while it was in use: it had {self._size} bytes when it "
                f"was opened, and has {found.st_size}; write another file, and rename it to this "
                "one's place"
            )

    def stored(self, offset: int, dtype: str, shape: Sequence[int]) -> Stored:
        """The array that lies there, all of it inside the file: the same one for all who ask."""
        key = offset, np.dtype(dtype).newbyteorder("<"), tuple(shape)
        return self._stored.setdefault(key, Stored(self, *key))


class Stored:
    """An array in a file, as `File.stored` makes it: little-endian, row-major, and read when it is
    asked for.

    Attributes:
        file, offset: where it begins; the whole of it must lie inside the file.
        dtype, shape: what it is.
        check: where there is one, it is called with all elements, block by block, whenever they
            have been read, and raises what it finds in them.
    """

    def __init__(
        self, file: File, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]
    ) -> None:
        self.file, self.offset, self.dtype, self.shape = file, offset, dtype, shape
        self.check: Callable[[np.ndarray], object] | None = None
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
            array = self._array = self.read(np.empty(self.nbytes, np.uint8).data)
        return array

    def let_go(self) -> None:
        """Hold the array no longer, as it can be read again. A vector stays: it is small, and may
        have to be there when the file is not any more."""
        if len(self.shape) > 1:
            self._array = None
        else:
            _ = self.array

    def part(self, begin: int, shape: Sequence[int]) -> Stored:
        """The elements from the one numbered `begin` on, as an array of another shape."""
        offset = self.offset + begin * self.dtype.itemsize
        part = self.file.stored(offset, self.dtype.str, shape)
        part.check = self.check
        return part

    def read(self, memory: memoryview) -> np.ndarray:
        """The array, read into `memory`, which has as many bytes, and held by the caller alone."""
        # Copying takes a core's time: of what is large, a second one does half.
        half = len(memory) // 2 // _BLOCK * _BLOCK
        first, second = memory[: half or len(memory)], memory[half:]
        rest = Beside(lambda: self._read(second, half)) if half else None
        try:
            self._read(first, 0)
        finally:
            if rest:
                rest.wait()
        second.release()  # which a thread that is about to end would still hold
        return _frozen(np.frombuffer(memory, self.dtype).reshape(self.shape))

    def _read(self, memory: memoryview, begin: int) -> None:
        block = _BLOCK if self.check else max(len(memory), 1)
        for at in range(0, len(memory), block):
            piece = memory[at : at + block]
            self.file.read_into(piece, self.offset + begin + at)
            if self.check:
                self.check(np.frombuffer(piece, self.dtype))


class Fetcher:
    """Reads arrays, into memory that it uses again when nothing shows it any more."""

    def __init__(self) -> None:
        # With what shows each now. No callback tells when that goes: it would be lost where a
        # signal handler raises in it, and the memory with it.
        self._rooms: list[tuple[mmap.mmap, weakref.ref[np.ndarray]]] = []

    def __call__(self, wanted: Sequence[Stored]) -> list[np.ndarray]:
        """Arrays for the caller, who alone holds those of more than one axis; they are read again
        where somebody asks for them again."""
        return [self._fetch(stored) for stored in wanted]

    def _fetch(self, stored: Stored) -> np.ndarray:
        if len(stored.shape) < 2 or stored.nbytes < _SMALL:
            array = stored.array
            stored.let_go()
            return array
        return stored.read(self._memory(stored.nbytes))

    def _memory(self, size: int) -> memoryview:
        for entry in self._rooms:
            room, shown = entry
            if shown() is None and size <= len(room) <= 2 * size:
                self._rooms.remove(entry)
                break
        else:
            pages = -(-size // _HUGE_PAGE) * _HUGE_PAGE
            try:
                room = mmap.mmap(-1, pages, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            except OSError as error:
                raise OutOfMemoryError(f"no memory for {size} bytes of weights: {error}") from None
            with contextlib.suppress(AttributeError, OSError):  # advice only
                room.madvise(mmap.MADV_HUGEPAGE)
        array = np.frombuffer(room, np.uint8, size)
        self._rooms.append((room, weakref.ref(array)))
        return array.data


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
