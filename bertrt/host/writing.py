"""Files and directories that are there whole, or not at all: all that bertrt writes.

What is written gets a name beside its place, ``.NAME.<12 hexadecimal digits>.partial``, is brought
to the disk, and is renamed; a reader finds what was there before, or all of what is there now,
whenever the writer fails or is killed. A writer holds a lock on what it is writing, so that the
next one to write the same place can tell what a killed one has left behind, and removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from bertrt.errors import (
    BertrtError,
    MissingFileError,
    ModelFormatError,
    OutputExistsError,
    WriteError,
)

__all__ = [
    "appending_file",
    "copy_file",
    "naming",
    "remove_partial",
    "sync",
    "temporary_directory",
    "write_bytes",
    "write_error",
    "write_text",
    "writing_directory",
    "writing_file",
]

_PARTIAL = re.compile(r"(?<![^/])\.([^/]+)\.[0-9a-f]{12}\.partial(?![^/])")
_COPIED_AT_ONCE = 1 << 20
_FULL = "make room, or name another place"
_CLOSED = "name a place that may be written"
_GONE = "the directory that should hold it has gone"
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "files are limited to a smaller size here (ulimit -f)",
    errno.EROFS: _CLOSED,
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
    errno.ENOENT: _GONE,
    errno.ENOTDIR: _GONE,
    errno.ESTALE: _GONE,
    errno.ENAMETOOLONG: "name a shorter one",
}


def write_error(path: str | os.PathLike[str], error: OSError) -> WriteError:
    """The error for what the system said when `path` was written."""
    # What is being written will be known by its final name.
    name = _PARTIAL.sub(r"\1", os.fspath(path))
    advice = _ADVICE.get(error.errno or 0)
    found = WriteError(
        f"{name} cannot be written: {error.strerror or error}" + (f"; {advice}" if advice else "")
    )
    found.errno = error.errno
    return found


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """What the system refuses in the block, as a WriteError that names `path`."""
    try:
        yield
    except BertrtError:
        raise
    except OSError as error:
        raise write_error(path, error) from error


@contextlib.contextmanager
def writing_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file; what was at `path` before is replaced at the end of the block, unless that
    raises.

    Raises:
        WriteError: the system refuses it; `path` is as it was before.
    """
    path = Path(path)
    remove_partial(path)
    with naming(path):
        aside, lock = _create(path, _open_new)
    try:
        with naming(path):
            file = _buffered(os.dup(lock), "wb", path)
        try:
            yield file
            sync(file, path)
        except BaseException:
            with contextlib.suppress(OSError):
                file.close()
            raise
        # A network's file system may tell only here that its disk is full.
        file.close()
        with naming(path):
            os.replace(aside, path)
        _sync_directory(path.parent, path)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # which the file's own close has told
            os.close(lock)


@contextlib.contextmanager
def writing_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a directory with what the block puts into the one that it is given; it gets the name
    `path` at the end of the block, unless that raises.

    Raises:
        OutputExistsError: there is something at `path`; it is left as it is.
        MissingFileError: the directory that should hold `path` does not exist.
        WriteError: the system refuses it; there is nothing at `path`.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise OutputExistsError(f"{path} exists already; name another place, or remove it")
    if not os.path.isdir(path.parent):
        raise MissingFileError(
            f"{path.parent}: there is no such directory, which is to hold {path.name}"
        )
    remove_partial(path)
    with naming(path):
        aside, lock = _create(path, _make_directory)
    try:
        yield aside
        with naming(path):
            _fsync_directory(lock)
            try:
                os.rename(aside, path)
            except OSError as error:
                if os.path.lexists(path):
                    raise OutputExistsError(
                        f"{path} has come into being while it was written; it is untouched"
                    ) from error
                raise
        _sync_directory(path.parent, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):  # what was written is there, or its own error is told
            os.close(lock)


@contextlib.contextmanager
def appending_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write on at the end of a file, in its place: a log, or a file of a directory that is being
    written. What was written before a failure stays. Raises WriteError."""
    with naming(path):
        file = _buffered(os.fspath(path), "ab", path)
    with file:
        yield file
        sync(file, path)


def sync(file: BinaryIO, path: str | os.PathLike[str]) -> None:
    """Bring to the disk what was written to a file. Raises WriteError."""
    with naming(path):
        file.flush()
        os.fsync(file.fileno())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file of `data`; see :func:`writing_file`."""
    with writing_file(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file of UTF-8 text, its lines as they are; see :func:`writing_file`."""
    write_bytes(path, text.encode("utf-8"))


def copy_file(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Copy a file's content; see :func:`writing_file`.

    Raises:
        ModelFormatError: the source cannot be read.
    """
    with writing_file(path) as file:
        try:
            with open(source, "rb") as content:
                shutil.copyfileobj(content, file, _COPIED_AT_ONCE)
        except WriteError:
            raise
        except OSError as error:
            raise ModelFormatError(f"{source} cannot be read: {error}") from error


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory for the block, which removes it.

    Raises:
        WriteError: there is no place for one.
    """
    try:
        directory = tempfile.mkdtemp(prefix="bertrt-")
    except OSError as error:
        raise WriteError(
            f"no temporary directory can be made: {error}; name a place for it in TMPDIR"
        ) from error
    try:
        yield Path(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def remove_partial(path: Path) -> None:
    """Remove what writers of `path` that were killed have left beside it."""
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            match = _PARTIAL.fullmatch(entry.name)
            if match is not None and match[1] == path.name:
                with contextlib.suppress(OSError):
                    _remove_unlocked(entry.path)


def _remove_unlocked(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # Raises for what is being written, and where there are no locks.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)
    finally:
        os.close(descriptor)


def _create(path: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """What `make` makes beside `path`, and its descriptor, locked."""
    while True:
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
        descriptor = make(aside)
        # A file system without locks has to do without.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.lexists(aside):
            return aside, descriptor
        # Another writer of the same place took it for one that was left, before it was locked.
        os.close(descriptor)


def _open_new(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _make_directory(path: Path) -> int:
    # mkdir rather than mkdtemp: the latter makes a private directory whatever the umask says, and
    # a bundle would stay unreadable for everybody else.
    os.mkdir(path)
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except BaseException:
        os.rmdir(path)
        raise


class _NamedFile(io.FileIO):
    """A file whose errors name it."""

    def __init__(self, file: str | int, mode: str, path: str | os.PathLike[str]) -> None:
        super().__init__(file, mode)
        self._path = path

    def write(self, data: Any) -> Any:
        with naming(self._path):
            return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        with naming(self._path):
            return super().truncate(size)

    def close(self) -> None:
        with naming(self._path):
            super().close()


def _buffered(file: str | int, mode: str, path: str | os.PathLike[str]) -> BinaryIO:
    return cast(BinaryIO, io.BufferedWriter(_NamedFile(file, mode, path)))


def _sync_directory(directory: Path, path: Path) -> None:
    """Bring to the disk what a directory's files are called."""
    if _PARTIAL.fullmatch(directory.name):  # which does that at its end
        return
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # a directory that may be written and not read
        return
    try:
        _fsync_directory(descriptor)
    except OSError as error:
        raise WriteError(
            f"{path} is in its place and whole, but that may be lost if the machine stops "
            f"now: {error.strerror}"
        ) from error
    finally:
        os.close(descriptor)


def _fsync_directory(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no need of it
            raise
