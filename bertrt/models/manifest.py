"""A bundle's manifest, ``bertrt.json``: its fields, and the names of the files that it lists."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from bertrt.errors import ModelFormatError
from bertrt.plan.steps import output_kind
from bertrt.tasks.settings import LABELLED, TASKS, check_pooling, check_settings

__all__ = [
    "FORMAT_VERSION",
    "GOLDEN",
    "MANIFEST",
    "ONNX",
    "PARAMS",
    "PLAN",
    "SYMBOL",
    "TOKENIZER_FILES",
    "check_manifest",
    "manifest_digest",
]

FORMAT_VERSION = 1
MANIFEST = "bertrt.json"
PLAN = "plan.json"
SYMBOL = "model-symbol.json"
PARAMS = "model-0000.params"
ONNX = "model.onnx"
GOLDEN = "golden.npz"
# By the kind of tokenizer: its main file, and that of the pieces of words where it has one.
TOKENIZER_FILES = {
    "gluonnlp": ("vocab.json",),
    "gluonnlp-bpe": ("vocab.json", "merges.txt"),
    "gluonnlp-sentencepiece": ("vocab.json", "sentencepiece.model"),
    "huggingface": ("tokenizer.json",),
}


def _is_count(value: Any, lowest: int = 1) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_str(value: Any) -> bool:
    return isinstance(value, str)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _distinct(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(of, value)) and len(set(value)) == len(value) > 0


_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "task": (f"one of {', '.join(TASKS)}", lambda v: isinstance(v, str) and v in TASKS),
    # Not always distinct: models are published with the same name for two classes, or with none.
    "labels": (
        "a list of names, or null",
        lambda v: v is None or (isinstance(v, list) and v != [] and all(map(_is_str, v))),
    ),
    "architecture": ("an object", lambda v: isinstance(v, dict)),
    "outputs": (
        "a list of distinct names of outputs",
        lambda v: _distinct(v, lambda name: _is_text(name) and output_kind(name) is not None),
    ),
    "tokenizer": ("an object, or null", lambda v: v is None or isinstance(v, dict)),
    "pooling": ("an object, or null", lambda v: v is None or isinstance(v, dict)),
    "settings": ("an object", lambda v: isinstance(v, dict)),
    "origin": ("an object", lambda v: isinstance(v, dict)),
    "files": ("an object", lambda v: isinstance(v, dict)),
    "manifest_sha256": ("64 hexadecimal digits", _is_digest),
}
_TOKENIZER_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "kind": (
        f"one of {', '.join(TOKENIZER_FILES)}",
        lambda v: isinstance(v, str) and v in TOKENIZER_FILES,
    ),
    "file": ("the name of a file", _is_text),
    "lower": ("true or false", lambda v: isinstance(v, bool)),
    "max_length": ("a whole number from 3", lambda v: _is_count(v, 3)),
}
_PIECES_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "pieces": ("the name of a file", _is_text),
}
_ARCHITECTURE_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "vocab_size": ("a whole number from 1", _is_count),
    "max_length": ("a whole number from 1", _is_count),
}
_FILE_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "sha256": ("64 hexadecimal digits", _is_digest),
    "size": ("a whole number from 0", lambda v: _is_count(v, 0)),
}


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """The sha256 of all that a manifest says, apart from this digest and however it is laid out."""
    content = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_fields(
    value: dict[str, Any], fields: dict[str, tuple[str, Callable[[Any], bool]]], where: str
) -> None:
    for name, (expected, fits) in fields.items():
        if name not in value:
            raise ModelFormatError(f"{where}: the field {name!r} is missing")
        if not fits(value[name]):
            raise ModelFormatError(
                f"{where}: the field {name!r} should be {expected}, found {_short(value[name])}"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_manifest(manifest: Any, where: Path) -> None:
    """Check what a manifest holds; ModelFormatError names the field, what it should be and what
    was found. `where` is the file."""
    if not isinstance(manifest, dict):
        raise ModelFormatError(f"{where} should hold a JSON object, found {_short(manifest)}")
    version = manifest.get("format_version")
    if not _is_count(version):
        raise ModelFormatError(
            f"{where}: the field 'format_version' should be a whole number from 1, "
            f"found {_short(version)}"
        )
    if version > FORMAT_VERSION:
        raise ModelFormatError(
            f"{where}: the bundle has format version {version}, and this bertrt reads up to "
            f"{FORMAT_VERSION}; install a newer bertrt, or export the model again with this one"
        )
    _check_fields(manifest, _FIELDS, str(where))
    _check_fields(manifest["architecture"], _ARCHITECTURE_FIELDS, f"{where}, architecture")
    task, labels = manifest["task"], manifest["labels"]
    if (labels is not None) != (task in LABELLED):
        raise ModelFormatError(
            f"{where}: {' and '.join(LABELLED)} have labels and no other task has them; "
            f"found task {task!r} with labels {_short(labels)}"
        )
    if (manifest["pooling"] is not None) != (task == "embedding"):
        raise ModelFormatError(
            f"{where}: embedding has a pooling and no other task has one; "
            f"found task {task!r} with pooling {_short(manifest['pooling'])}"
        )
    if manifest["pooling"] is not None:
        check_pooling(manifest["pooling"], str(where))
    check_settings(manifest["settings"], task, str(where))
    if not isinstance(manifest.get("quantization", {}), dict):
        raise ModelFormatError(
            f"{where}: the field 'quantization' should be an object, "
            f"found {_short(manifest['quantization'])}"
        )
    for name, entry in manifest["files"].items():
        _check_file_name(name, where)
        if not isinstance(entry, dict):
            raise ModelFormatError(
                f"{where}: the entry of the file {name!r} should be an object, "
                f"found {_short(entry)}"
            )
        _check_fields(entry, _FILE_FIELDS, f"{where}, file {name!r}")
    required = [PLAN]
    if (tokenizer := manifest["tokenizer"]) is not None:
        _check_fields(tokenizer, _TOKENIZER_FIELDS, f"{where}, tokenizer")
        if tokenizer["max_length"] > manifest["architecture"]["max_length"]:
            raise ModelFormatError(
                f"{where}: the tokenizer gives up to {tokenizer['max_length']} tokens, and the "
                f"model has {manifest['architecture']['max_length']} positions"
            )
        required.append(tokenizer["file"])
        if len(TOKENIZER_FILES[tokenizer["kind"]]) == 2:
            _check_fields(tokenizer, _PIECES_FIELDS, f"{where}, tokenizer")
            required.append(tokenizer["pieces"])
    for name in required:
        if name not in manifest["files"]:
            raise ModelFormatError(f"{where}: {name!r} is not in the list of files")


def _check_file_name(name: str, where: Path) -> None:
    # A plain name can neither leave the directory nor mean different things on different systems.
    if name in ("", ".", "..", MANIFEST) or re.search(r"[/\\:\0]", name):
        raise ModelFormatError(
            f"{where}: {name!r} cannot be a file of the bundle; a plain file name is expected"
        )
