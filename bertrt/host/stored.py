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

__all__ = ["Fetcher", "File", "Stored"]

# What is read together: few calls, and memory that is used again while the cache still has it. An
# array of more bytes is read alone.
_PIECE = 4 << 20
# A smaller array gets memory of its own rather than keep that of all its neighbours.
_SMALL = 2 << 20
# Other files than bundles', which are hashed whole, may hold much that nobody asks for.
_LONGEST_GAP = 1 << 16
_HUGE_PAGE = 2 << 20


class File:
    """A file open for reading, as if it were its bytes: ``len(file)``, and slices of it, which are
    read-only uint8 arrays in memory of their own.

    It is the file that was there when this was made: one that is renamed to its place later is
    another. Every read checks that size and time of change are still the same, and is a
    ModelFormatError that names the file where they are not.

    Attributes:
        path: where it lay.
        watch: called with all bytes of the file in order, piece after piece, while a Fetcher
            reads arrays of it and then `show_rest` the rest. None: nobody watches, or all has been
            shown.

    Raises MissingFileError if there is no such file, ModelFormatError if it is empty or cannot be
    opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.watch: Callable[[np.ndarray], object] | None = None
        self._stored: weakref.WeakValueDictionary[Any, Stored] = weakref.WeakValueDictionary()
        # Of the one reading that is watched: what is left to read, where it begins, and the arrays
        # that were read before they were asked for.
        self._rest: Iterator[tuple[int, np.ndarray]] | None = None
        self._reached = 0
        self._ahead: dict[Stored, np.ndarray] = {}
        self._error: BaseException | None = None
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
        return self._read_into(np.empty(max(end - begin, 0), np.uint8), begin)

    def stored(self, offset: int, dtype: str, shape: Sequence[int]) -> Stored:
        """The array that lies there, all of it inside the file: the same one for all who ask."""
        key = offset, np.dtype(dtype).newbyteorder("<"), tuple(shape)
        return self._stored.setdefault(key, Stored(self, *key))

    def show_rest(self) -> None:
        """Show `watch` all that it has not seen. Raises what ended the reading, if anything did."""
        fetcher = Fetcher()
        self._ahead.clear()
        while self._next(fetcher) is not None:
            self._ahead.clear()
        if self._error is not None:
            raise self._error

    def arrays(self, wanted: Sequence[Stored], fetcher: Fetcher) -> dict[Stored, np.ndarray]:
        """Arrays of this file, read together."""
        found: dict[Stored, np.ndarray] = {}
        if self.watch is not None:
            waiting = [s for s in wanted if s not in self._ahead and s.offset >= self._reached]
            last = max((s.offset for s in waiting), default=-1)
            while self._reached <= last and (read := self._next(fetcher)) is not None:
                self._ahead |= read
                del read
            found = {s: self._ahead.pop(s) for s in wanted if s in self._ahead}
        found |= {s: s.array for s in wanted if s.nbytes == 0}  # which lie in no piece
        rest = [s for s in wanted if s not in found]
        for begin, piece in self._pieces(rest, fetcher) if rest else ():
            found |= _shown(rest, begin, piece)
            del piece
        return found

    def _next(self, fetcher: Fetcher) -> dict[Stored, np.ndarray] | None:
        """Read on, with `watch` seeing it: the arrays of a piece; None: that was all."""
        if self.watch is None:
            return None
        if self._rest is None:
            self._rest = self._pieces(list(self._stored.values()), fetcher, whole=True)
        try:
            begin, piece = next(self._rest, (self._size, None))
            if piece is not None:
                self.watch(piece)
        except BaseException as error:  # an interrupt too: what was seen is not all
            self._error, self.watch = error, None
            raise
        if piece is None:
            self.watch = self._rest = None
            return None
        self._reached = begin + len(piece)
        return _shown(list(self._stored.values()), begin, piece)

    def _pieces(
        self, wanted: Sequence[Stored], fetcher: Fetcher, *, whole: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        """What lies where `wanted` do, in pieces of the file that cut none of them: where each
        begins, and its bytes. Of the whole file, or but for gaps that nobody asks for."""
        places = [(s.offset, s.offset + s.nbytes) for s in wanted]
        if whole:  # what nobody asks for is read in pieces, too
            places += [(at, at) for at in range(0, self._size, _PIECE)]
        begin = reached = 0
        for start, end in [*sorted(places), (self._size, self._size)]:
            gap = not whole and start - reached > _LONGEST_GAP
            full = reached - begin > _PIECE or end - begin > _PIECE or start == self._size
            if start >= reached and (gap or full):
                cut = reached if gap else start
                if cut > begin and (whole or reached > begin):
                    yield begin, self._read_into(fetcher.memory(cut - begin), begin)
                begin = start
            reached = max(reached, end)

    def _read_into(self, memory: np.ndarray, begin: int) -> np.ndarray:
        rest, end = memory.data, begin + len(memory)
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
        return _frozen(memory)


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
            data = self.file[self.offset : self.offset + self.nbytes]
            array = self._array = self._view(data, self.offset)
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
        return self.file.stored(offset, self.dtype.str, shape)

    def _view(self, data: np.ndarray, begin: int) -> np.ndarray:
        """The array in the bytes of the file from `begin` on."""
        data = data[self.offset - begin :][: self.nbytes]
        array = data.view(self.dtype).reshape(self.shape)
        # Compiled code may rely on alignment.
        return array if array.flags.aligned else _frozen(array.copy())


class Fetcher:
    """Reads arrays, into memory that it uses again when nothing shows it any more."""

    def __init__(self) -> None:
        self._spare: list[mmap.mmap] = []

    def __call__(self, wanted: Sequence[Stored]) -> list[np.ndarray]:
        """Arrays for the caller, who alone holds those of more than one axis; they are read again
        where somebody asks for them again."""
        found: dict[Stored, np.ndarray] = {}
        missing: dict[File, list[Stored]] = {}
        for stored in wanted:
            # One that watches is to see what is used.
            if stored._array is None or stored.file.watch is not None:
                missing.setdefault(stored.file, []).append(stored)
            else:
                found[stored] = stored._array
        for file, own in missing.items():
            found |= file.arrays(own, self)
        for stored, array in found.items():
            stored._array = array if len(stored.shape) < 2 else None
        return [found[stored] for stored in wanted]

    def memory(self, size: int) -> np.ndarray:
        """Bytes to read into."""
        for room in self._spare:
            if size <= len(room) <= 2 * size:
                self._spare.remove(room)
                break
        else:
            pages = -(-size // _HUGE_PAGE) * _HUGE_PAGE
            room = mmap.mmap(-1, pages, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(AttributeError, OSError):  # advice only
                room.madvise(mmap.MADV_HUGEPAGE)
        memory = np.frombuffer(room, np.uint8, size)
        weakref.finalize(memory, _give_back, weakref.ref(self), room).atexit = False
        return memory


def _give_back(fetcher: weakref.ref[Fetcher], room: mmap.mmap) -> None:
    if (alive := fetcher()) is not None:
        alive._spare.append(room)


def _shown(wanted: Iterable[Stored], begin: int, piece: np.ndarray) -> dict[Stored, np.ndarray]:
    """Those arrays that lie in a piece of a file."""
    found = {}
    for stored in wanted:
        if begin <= stored.offset and stored.offset + stored.nbytes <= begin + len(piece):
            array = stored._view(piece, begin)
            found[stored] = array if stored.nbytes >= _SMALL else _frozen(array.copy())
    return found


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
