"""The tensors beside a ``config.json``: in a safetensors file, in one of ``torch.save``, or in
shards of either."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from bertrt.errors import MissingFileError, ModelFormatError, UnsupportedModelError
from bertrt.host.files import is_there, read_object
from bertrt.host.stored import File
from bertrt.models.safetensors import read_safetensors
from bertrt.plan.weights import Constant

__all__ = ["WEIGHTS", "find_weights", "read_weights", "some"]

WEIGHTS = "model.safetensors"
# In the order in which transformers takes them.
_PLACES = (
    WEIGHTS,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_INDEX = ".index.json"
_LFS = b"version https://git-lfs.github.com/spec/"
_ADAPTER = re.compile(r"(^|[._])(lora|adapters?|base_layer)([._]|$)", re.IGNORECASE)


def find_weights(directory: Path) -> Path:
    """The file that holds or lists the tensors of a directory; safetensors where it has both.

    Raises MissingFileError, which names files of other frameworks that lie there instead.
    """
    for name in _PLACES:
        if is_there(path := directory / name):
            return path
    others = [
        path.name
        for pattern in ("*.h5", "*.msgpack", "*.ckpt*", "*.onnx", "*.safetensors", "*.bin", "*.pt")
        for path in sorted(directory.glob(pattern))
    ]
    raise MissingFileError(
        f"{directory / WEIGHTS} does not exist, and no {', '.join(_PLACES[1:])}"
        + (f"; {some(others)} is not read in their place" if others else "")
    )


def read_weights(source: Path, prefix: str) -> dict[str, Constant]:
    """The tensors of what `find_weights` found, by their plain names:
    without the encoder's prefix, and with ``weight`` and ``bias`` for what was ``gamma`` and
    ``beta``. Buffers of positions and of token types are left out.

    Raises:
        MissingFileError: a shard is missing.
        ModelFormatError: a file is broken, or a tensor is there twice; UnsupportedModelError where
            there is anything but tensors, or one of an adapter's.
    """
    files = _read_shards(source) if source.name.endswith(_INDEX) else {source: _read(source)}
    tensors: dict[str, Constant] = {}
    for file, found in files.items():
        for name, constant in found.items():
            if name.endswith(("embeddings.position_ids", "embeddings.token_type_ids")):
                continue  # buffers of 0, 1, 2, ... and of zeros; no weights
            if _ADAPTER.search(name):
                raise UnsupportedModelError(
                    f"{file}: the tensor {name} belongs to an adapter, which is not supported: "
                    "merge it into the model and save that"
                )
            plain = name.removeprefix(prefix)
            plain = re.sub(r"(?<=LayerNorm\.)gamma$", "weight", plain)
            plain = re.sub(r"(?<=LayerNorm\.)beta$", "bias", plain)
            if plain in tensors:
                raise ModelFormatError(f"{file}: the tensor {plain} is there twice, as {name} too")
            tensors[plain] = dataclasses.replace(constant, name=plain)
    return tensors


def _read(path: Path) -> dict[str, Constant]:
    if File(path)[: len(_LFS)].tobytes() == _LFS:
        raise ModelFormatError(
            f"{path} is what Git LFS leaves in the place of a file that was not fetched: run "
            "`git lfs pull` where it was cloned"
        )
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    # Imported where it is needed: most directories have no such file.
    from bertrt.models.torch.file import read_torch

    return read_torch(path)


def _read_shards(index: Path) -> dict[Path, dict[str, Constant]]:
    """The tensors of the files that an index lists, by file."""
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelFormatError(f"{index}: weight_map should say which file holds which tensor")
    listed: dict[str, set[str]] = {}
    for name, file in places.items():
        if not isinstance(file, str) or file in ("", ".", "..") or re.search(r"[/\\\0]", file):
            raise ModelFormatError(
                f"{index}: weight_map places {name} in {file!r}, which is no plain file name"
            )
        listed.setdefault(file, set()).add(name)
    files = {}
    for file, names in listed.items():
        path = index.with_name(file)
        if not path.is_file():
            raise MissingFileError(f"{path} does not exist; {index.name} lists it as a shard")
        found = files[path] = _read(path)
        if missing := sorted(names - found.keys()):
            raise ModelFormatError(f"{path} lacks {some(missing)}, which {index.name} places there")
        if strange := sorted(found.keys() - names):
            raise ModelFormatError(
                f"{path} holds {some(strange)}, which {index.name} does not place there"
            )
    return files


def some(items: Sequence[str]) -> str:
    """Names for a message: not more than eight of them."""
    return ", ".join(items[:8]) + (f" and {len(items) - 8} more" if len(items) > 8 else "")
