"""Reader of the files that ``torch.save`` writes of tensors, without torch, and without running
the pickle that is part of them.

Since torch 1.6 a file is a zip archive of stored entries, all in a folder of one name::

    NAME/data.pkl    the pickle, which refers to storages by their keys
    NAME/byteorder   "little" or "big"; little where it is missing
    NAME/data/KEY    the elements of a storage

Before, it was five pickles (a number that tells the format, a version, what machine wrote it, the
tensors, the keys of the storages) and behind them each storage in the order of these keys: how many
elements it has, as 64 bits, and the elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.host.archives import Place, places_of, read_directory
from bertrt.host.stored import File, Stored
from bertrt.models.safetensors import DTYPES, widened
from bertrt.models.torch.pickle import Storage, Tensor, read_pickle, short
from bertrt.plan.weights import Constant

__all__ = ["read_torch"]

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
# A pickle takes some 200 bytes a tensor.
_LONGEST_PICKLE = 8 << 20
# Tensors that are transposed, cut out or expanded are copied, and several may share a storage.
_MOST_COPIED = 4


def read_torch(path: str | Path) -> dict[str, Constant]:
    """Find the tensors of a file that ``torch.save`` wrote of a dictionary of them, such as a
    ``pytorch_model.bin``.

    Returns name -> :class:`~bertrt.plan.weights.Constant` in the file's order, as
    :func:`~bertrt.models.safetensors.read_safetensors` does. Tensors of float32 that are row-major
    and in little-endian order are read when they are asked for.

    Raises MissingFileError if there is no such file, UnsupportedModelError for one that holds
    anything but tensors (it is named, and nothing of it is run) or was written by no torch of the
    last years, and ModelFormatError for a damaged one. Takes memory of a small multiple of the
    file's size at most.
    """
    path = Path(path)
    data = File(path)
    start = data[:16].tobytes()
    if start.startswith(b"PK"):
        content, places, order = _read_archive(path, data)
    elif data[257:262].tobytes() == b"ustar":
        raise UnsupportedModelError(
            f"{path} is a tar archive, as torch wrote them before 0.1.10: load it there and save "
            "its tensors as safetensors"
        )
    elif start[:1] == b"\x80" or start[:1] in (b"c", b"("):
        content, places, order = _read_sequence(path, data)
    else:
        raise ModelFormatError(
            f"{path} is no file of torch.save, which is a zip archive or begins with a pickle; it "
            f"begins with {short(start.decode('latin-1'))}"
        )
    if not isinstance(content, dict):
        raise UnsupportedModelError(
            f"{path} holds {short(content)}, expected a dictionary of tensors"
        )
    storages = _Storages(path, data, places, order)
    return {name: storages.tensor(name, value) for name, value in content.items()}


class _Storages:
    """The storages of a file, each read once."""

    def __init__(self, path: Path, data: File, places: Mapping[str, Place], order: str) -> None:
        self._path = path
        self._data = data
        self._places = places
        self._order = order
        self._arrays: dict[Storage, np.ndarray] = {}
        self._copied = 0

    def tensor(self, name: Any, tensor: Any) -> Constant:
        """A tensor of the file, float32 where it is of any float."""
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UnsupportedModelError(
                f"{self._path}: the entry {short(name)} is {short(tensor)}, expected a tensor by "
                "its name: save the model's state_dict and nothing else"
            )
        storage = tensor.storage
        stored, shape = self._stored(storage, name), tensor.shape
        row_major = tensor.strides == _row_major(shape) or prod(shape) == 0
        if row_major and storage.kind == "F32" and self._order == "<":
            offset = stored.offset + tensor.offset * stored.dtype.itemsize
            return Constant.of(name, self._data.stored(offset, stored.dtype.str, shape))
        elements = self._elements(storage, stored)
        item = elements.itemsize
        if row_major:
            array = elements[tensor.offset : tensor.offset + prod(shape)].reshape(shape)
            return Constant(name, array)
        self._copied += prod(shape) * item
        if self._copied > _MOST_COPIED * len(self._data):
            raise UnsupportedModelError(
                f"{self._path}: its tensors are views that share or repeat their elements; copied, "
                f"they would take more than {_MOST_COPIED} times the file's size, with the tensor "
                f"{short(name)} of shape {shape}"
            )
        array = np.lib.stride_tricks.as_strided(
            elements[tensor.offset :], shape, [step * item for step in tensor.strides]
        ).copy()
        array.flags.writeable = False
        return Constant(name, array)

    def _stored(self, storage: Storage, name: str) -> Stored:
        place = self._places.get(storage.key)
        if place is None:
            raise ModelFormatError(
                f"{self._path}: the storage {short(storage.key)} of the tensor {short(name)} is "
                "not in the file"
            )
        size = storage.count * np.dtype(DTYPES[storage.kind]).itemsize
        if place.size != size:
            raise ModelFormatError(
                f"{self._path}: the storage {short(storage.key)} of the tensor {short(name)} has "
                f"{place.size} bytes, and {storage.count} elements of {storage.kind} take {size}"
            )
        return self._data.stored(place.offset, DTYPES[storage.kind], (storage.count,))

    def _elements(self, storage: Storage, stored: Stored) -> np.ndarray:
        if storage in self._arrays:
            return self._arrays[storage]
        array = stored.array
        if self._order == ">":
            array = array.byteswap()
        array = widened(array, storage.kind)
        array.flags.writeable = False
        self._arrays[storage] = array
        return array


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


# --- since 1.6 --------------------------------------------------------------------------------


def _read_archive(path: Path, data: File) -> tuple[Any, dict[str, Place], str]:
    entries = read_directory(path)
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise UnsupportedModelError(
            f"{path} is a program of TorchScript, expected a dictionary of tensors"
        )
    places = places_of(path, data, entries)
    folders = [name.removesuffix("data.pkl") for name in places if name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise ModelFormatError(
            f"{path} is a zip archive with {len(folders)} entries data.pkl, expected one: it was "
            "not written by torch.save"
        )
    (folder,) = folders

    def content(name: str, longest: int) -> bytes:
        place = places[folder + name]
        if place.size > longest:
            raise ModelFormatError(
                f"{path}: its {name} has {place.size} bytes, expected {longest} at most"
            )
        return data[place.offset : place.offset + place.size].tobytes()

    order = "little"
    if f"{folder}byteorder" in places:
        order = content("byteorder", 16).decode("latin-1")
    if order not in ("little", "big"):
        raise ModelFormatError(
            f"{path}: its byteorder is {short(order)}, expected 'little' or 'big'"
        )
    value, _ = read_pickle(content("data.pkl", _LONGEST_PICKLE), 0, str(path))
    begin = f"{folder}data/"
    storages = {
        name.removeprefix(begin): place for name, place in places.items() if name.startswith(begin)
    }
    return value, storages, "<" if order == "little" else ">"


# --- before 1.6 -------------------------------------------------------------------------------


def _read_sequence(path: Path, data: File) -> tuple[Any, dict[str, Place], str]:
    pickles = data[:_LONGEST_PICKLE].tobytes()
    where = str(path)
    magic, position = read_pickle(pickles, 0, where)
    if magic != _MAGIC:
        raise UnsupportedModelError(
            f"{path} is a pickle, and none that torch.save wrote: it begins with {short(magic)}"
        )
    version, position = read_pickle(pickles, position, where)
    machine, position = read_pickle(pickles, position, where)
    if version != _VERSION or not isinstance(machine, dict):
        raise ModelFormatError(
            f"{path}: the version of its format is {short(version)}, expected {_VERSION}"
        )
    little = machine.get("little_endian", True)
    if not isinstance(little, bool):
        raise ModelFormatError(f"{path}: its little_endian is {short(little)}")
    order = "<" if little else ">"
    content, position = read_pickle(pickles, position, where)
    keys, position = read_pickle(pickles, position, where)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ModelFormatError(f"{path}: it should list the keys of its storages")
    # How long an element is, only those that use a storage know.
    kinds = {
        tensor.storage.key: tensor.storage.kind
        for tensor in (content.values() if isinstance(content, dict) else ())
        if isinstance(tensor, Tensor)
    }
    places: dict[str, Place] = {}
    for key in keys:
        if key not in kinds or key in places:
            raise ModelFormatError(f"{path}: no tensor has the storage {short(key)}, or two lists")
        header = data[position : position + 8].tobytes()
        count = int.from_bytes(header, "little" if little else "big")
        size = count * np.dtype(DTYPES[kinds[key]]).itemsize
        position += 8
        if len(header) < 8 or size > len(data) - position:
            raise ModelFormatError(
                f"{path}: the storage {short(key)} ends beyond the file: truncated?"
            )
        places[key] = Place(position, size)
        position += size
    return content, places, order
