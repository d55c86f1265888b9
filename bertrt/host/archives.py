"""Zip archives whose entries are stored, not compressed: where each of them lies."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.host.files import open_plain
from bertrt.host.stored import File

__all__ = ["Place", "places_of", "read_directory"]

# An entry takes some 100 bytes, and a thousand where Python has read them.
_LONGEST_DIRECTORY = 16 << 20
_LOCAL_HEADER = 30


@dataclass(frozen=True)
class Place:
    """Where bytes of a file begin, and how many there are."""

    offset: int
    size: int


class _Bounded(io.FileIO):
    """A file of which no more is read at once than an archive's directory may take."""

    def read(self, size: int | None = -1) -> Any:
        if size is None or size > _LONGEST_DIRECTORY:
            raise ValueError(f"its directory has more than {_LONGEST_DIRECTORY} bytes")
        return super().read(size)


def read_directory(path: Path) -> list[zipfile.ZipInfo]:
    """The entries that the archive at `path` lists; ModelFormatError for a damaged one."""
    try:
        with open_plain(path, _Bounded) as file, zipfile.ZipFile(file) as archive:
            return archive.infolist()
    # All that zipfile raises for a damaged directory: NotImplementedError for a version or a kind
    # of compression that it does not know, ValueError for names that are no text, struct.error
    # and EOFError for records that are cut; and OSError of the system's.
    except (
        zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error, OSError
    ) as error:  # fmt: skip
        raise ModelFormatError(
            f"{path} begins as a zip archive and cannot be read as one, truncated or damaged: "
            f"{error}"
        ) from None


def places_of(path: Path, data: File, entries: Sequence[zipfile.ZipInfo]) -> dict[str, Place]:
    """Where entries of the archive at `path`, whose bytes are `data`, lie: none of them compressed,
    and none over another, so that all together are no longer than the file.

    Raises ModelFormatError where that is not so, UnsupportedModelError for an entry that is
    compressed or encrypted.
    """
    places: dict[str, Place] = {}
    bounds = []
    for entry in entries:
        where = f"{path}: the entry {entry.filename[:80]!r}"
        if entry.filename in places:
            raise ModelFormatError(f"{where} is there twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise UnsupportedModelError(
                f"{where} is compressed or encrypted, which nothing that writes these files does"
            )
        place = max(entry.header_offset, 0)  # below 0 where the directory is wrong about itself
        header = data[place : place + _LOCAL_HEADER].tobytes()
        if place != entry.header_offset or header[:4] != b"PK\3\4" or len(header) < _LOCAL_HEADER:
            raise ModelFormatError(f"{where} is not where the archive's directory says")
        begin = place + _LOCAL_HEADER + sum(struct.unpack("<HH", header[26:30]))
        if begin + entry.file_size > len(data):
            raise ModelFormatError(f"{where} ends beyond the file: truncated?")
        places[entry.filename] = Place(begin, entry.file_size)
        bounds.append((place, begin + entry.file_size))
    for (_, end), (begin, _) in pairwise(sorted(bounds)):
        if begin < end:
            raise ModelFormatError(f"{path}: entries of the archive overlap at byte {begin}")
    return places
