"""The bundle: one directory that holds all that a deployment needs.

==================  ==============================================================================
``bertrt.json``     the manifest: format version, task, labels, architecture, tokenizer settings,
                    origin, the size and sha256 of every other file, and its own
``plan.json``       the fused plan; its weights are references into a file of the bundle
graphs and weights  ``model-symbol.json`` with ``model-0000.params``, ``model.onnx``
tokenizer           ``vocab.json`` (GluonNLP), with ``merges.txt`` or ``sentencepiece.model``
                    where it has one; or ``tokenizer.json`` (Hugging Face)
``golden.npz``      inputs and the outputs that the source framework gave for them
==================  ==============================================================================

A bundle is written beside its final place and renamed when it is complete, so nobody sees half of
one. It is checked in full when it is opened: a flipped bit in any file is an error there, and not
a wrong answer later. Nothing here needs more than numpy, and nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from bertrt.errors import (
    InvalidInputError,
    MissingFileError,
    ModelFormatError,
    OutputExistsError,
)
from bertrt.host.paths import check_path
from bertrt.host.progress import progress
from bertrt.plan.plan import INPUTS, STACKED, Plan, output_kind
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
    "Bundle",
    "BundleDraft",
    "GoldenCase",
    "file_digest",
    "read_golden",
    "write_golden",
    "write_plan",
    "writing",
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

# Hashing a file in blocks of this size costs next to nothing beside the hash itself, and memory
# stays flat however large the weights are.
_HASH_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class GoldenCase:
    """A batch and the answer that the source framework gave for it.

    Attributes:
        inputs: integer arrays by name: ``token_ids`` and ``token_types`` of shape (batch, seq),
            ``valid_length`` (batch,), and ``masked_positions`` (batch, masked) where the model has
            a decoder.
        outputs: float32 arrays by the names of `Engine.run`, and shaped as it returns them.
    """

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An opened bundle whose every file has been checked against the manifest.

    Attributes:
        directory: where the bundle lies.
        manifest: the content of ``bertrt.json``, validated.
    """

    directory: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open the bundle at `path` and check all of it.

        Raises:
            MissingFileError: there is no such directory, it holds no manifest, or a file that the
                manifest lists is not there.
            ModelFormatError: the manifest is broken or of a newer format, a file differs from
                what the manifest says of it, or the directory holds a file that is neither listed
                nor hidden.
        """
        with cls.opening(path) as bundle:
            return bundle

    @classmethod
    @contextlib.contextmanager
    def opening(cls, path: str | os.PathLike[str]) -> Iterator[Bundle]:
        """As :meth:`open`, but the sha256 of the largest file, the weights, is computed beside the
        block, which may prepare an engine meanwhile: whatever bits they are, weights are numbers.
        The end of the block waits for it and raises; an error of the block's own gives way to that,
        as a damaged file explains it."""
        directory = Path(path)
        if not directory.exists():
            raise MissingFileError(f"no bundle at {directory}: there is no such directory")
        if not directory.is_dir():
            raise ModelFormatError(f"{directory} is a file; a bundle is a directory")
        if not (directory / MANIFEST).is_file():
            raise MissingFileError(f"{directory} is no bundle: it holds no {MANIFEST}")
        manifest = read_json(directory / MANIFEST)
        _check_manifest(manifest, directory / MANIFEST)
        if manifest["manifest_sha256"] != _manifest_digest(manifest):
            raise ModelFormatError(
                f"{directory / MANIFEST} is damaged, or was edited: its content does not have the "
                "sha256 that it names as its own; copy or export the bundle again"
            )
        files = manifest["files"]
        _check_files(directory, files)
        *small, weights = sorted(files, key=lambda name: files[name]["size"])
        _check_digests(directory, {name: files[name] for name in small})
        with ThreadPoolExecutor(1) as beside:
            check = beside.submit(_check_digests, directory, {weights: files[weights]})
            try:
                yield cls(directory, manifest)
            finally:
                check.result()

    def file(self, name: str) -> Path | None:
        """The path of a file of the bundle, or None where the bundle does not have it."""
        return self.directory / name if name in self.manifest["files"] else None

    def plan(self) -> Plan:
        """The plan, its weights mapped from the bundle's files.

        Raises:
            ModelFormatError: the plan is broken, is not the one that the manifest describes, or
                refers to weights outside the bundle.
        """
        path = self.directory / PLAN
        content = read_json(path)
        weights = content.get("weights") if isinstance(content, dict) else None
        if isinstance(weights, dict):
            for name, reference in weights.items():
                file = reference.get("file") if isinstance(reference, dict) else None
                if file not in self.manifest["files"]:
                    raise ModelFormatError(
                        f"{path}: the weight {name!r} lies in {file!r}, "
                        "which is not a file of this bundle"
                    )
        try:
            plan = Plan.from_dict(content, self.directory)
        except ModelFormatError as error:
            raise ModelFormatError(f"{path}: {error}") from error
        if (dict(plan.architecture), list(plan.outputs)) != (
            self.manifest["architecture"],
            self.manifest["outputs"],
        ):
            raise ModelFormatError(
                f"{path}: architecture and outputs are not those of the manifest; "
                "export the model again"
            )
        return plan

    def golden(self) -> list[GoldenCase]:
        """The recorded cases; empty where the bundle was made without a source framework.

        Raises:
            ModelFormatError: the file is not what :func:`write_golden` writes.
        """
        path = self.file(GOLDEN)
        return [] if path is None else read_golden(path)


class BundleDraft:
    """A bundle that is being written; made by :func:`writing`.

    Attributes:
        directory: where to put the files; it becomes the bundle when the block ends.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sealed = False

    def seal(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest: `manifest` with the format version and every file's digest added.

        From here on :meth:`Bundle.open` works on :attr:`directory`, which lets a caller check the
        finished bundle before it gets its name.

        Raises:
            ModelFormatError: a field of the manifest is missing or wrong.
        """
        files = {}
        for path in sorted(self.directory.iterdir()):
            _sync(path)
            files[path.name] = {"sha256": file_digest(path), "size": path.stat().st_size}
        content = {"format_version": FORMAT_VERSION, **manifest, "files": files}
        content["manifest_sha256"] = _manifest_digest(content)
        path = self.directory / MANIFEST
        _check_manifest(content, path)
        path.write_text(
            json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n"
        )
        _sync(path)
        _sync(self.directory)
        self.sealed = True


@contextlib.contextmanager
def writing(out_dir: str | os.PathLike[str]) -> Iterator[BundleDraft]:
    """Write a bundle so that it appears at `out_dir` complete, or not at all.

    The files go into a hidden directory beside `out_dir`, which is renamed at the end of the
    block. When the block raises, that directory is removed and `out_dir` never existed::

        with writing("model.bundle") as draft:
            (draft.directory / "plan.json").write_text(...)
            draft.seal(manifest)

    Raises:
        OutputExistsError: `out_dir` exists; it is left as it is.
        MissingFileError: the directory that should hold `out_dir` does not exist.
        InvalidInputError, InvalidTypeError: `out_dir` cannot be a path.
    """
    target = check_path("the output directory", out_dir)
    if os.path.lexists(target):
        raise OutputExistsError(f"{target} exists already; name another place, or remove it")
    if not target.parent.is_dir():
        raise MissingFileError(f"{target.parent}, which is to hold the bundle, is no directory")
    # mkdir rather than mkdtemp: the latter makes a private directory whatever the umask says, and
    # the bundle would stay unreadable for everybody else.
    directory = target.parent / f".{target.name}.{uuid.uuid4().hex[:12]}.partial"
    directory.mkdir()
    try:
        draft = BundleDraft(directory)
        yield draft
        if not draft.sealed:
            raise AssertionError("the bundle was not sealed: call draft.seal(manifest)")
        try:
            directory.rename(target)
        except OSError as error:
            if os.path.lexists(target):
                raise OutputExistsError(
                    f"{target} has come into being while the bundle was written; it is untouched"
                ) from error
            raise
        _sync(target.parent)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def file_digest(
    path: str | os.PathLike[str], advance: Callable[[int], Any] = lambda count: None
) -> str:
    """The sha256 of a file in hexadecimal digits; `advance` is called with the number of
    bytes read since its last call."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(_HASH_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            advance(count)
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        MissingFileError: there is no such file.
        ModelFormatError: the file is not UTF-8 or not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path} is not UTF-8 text: {error}") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path} is not JSON: {error}") from error


def write_plan(plan: Plan, directory: Path) -> None:
    """Write ``plan.json``; the plan's weights must lie in files of `directory`."""
    text = json.dumps(plan.to_dict(directory), indent=1) + "\n"
    (directory / PLAN).write_text(text, encoding="utf-8", newline="\n")


def write_golden(path: str | os.PathLike[str], cases: Sequence[GoldenCase]) -> None:
    """Write `cases` as an ``.npz`` of arrays ``<case>/inputs/<name>``, ``<case>/outputs/<name>``.

    Raises:
        InvalidInputError: there are no cases.
    """
    if not cases:
        raise InvalidInputError("there are no golden cases to write")
    arrays = {}
    for index, case in enumerate(cases):
        for part in ("inputs", "outputs"):
            for name, array in getattr(case, part).items():
                arrays[f"{index}/{part}/{name}"] = array
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def read_golden(path: str | os.PathLike[str]) -> list[GoldenCase]:
    """Read what :func:`write_golden` wrote.

    Raises:
        ModelFormatError: the file is damaged, or its arrays are not named or shaped as they
            should be.
    """
    cases: dict[int, GoldenCase] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                match = re.fullmatch(r"(\d{1,6})/(inputs|outputs)/(\w+)", key)
                if match is None or not (match[3] in (*INPUTS, *STACKED) or output_kind(match[3])):
                    raise ModelFormatError(f"{path} holds an array of unknown name: {key!r}")
                case = cases.setdefault(int(match[1]), GoldenCase({}, {}))
                getattr(case, match[2])[match[3]] = archive[key]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ModelFormatError(f"{path} is not a readable .npz file: {error}") from error
    if sorted(cases) != list(range(len(cases))) or not cases:
        raise ModelFormatError(f"{path}: expected cases 0, 1, ..., found {sorted(cases)}")
    for index, case in sorted(cases.items()):
        _check_golden_case(case, f"{path}, case {index}")
    return [cases[index] for index in range(len(cases))]


def _check_golden_case(case: GoldenCase, where: str) -> None:
    missing = {"token_ids", "token_types", "valid_length"} - case.inputs.keys()
    if missing or not case.outputs:
        raise ModelFormatError(f"{where}: missing {', '.join(sorted(missing)) or 'outputs'}")
    shape = case.inputs["token_ids"].shape
    if len(shape) != 2:
        raise ModelFormatError(f"{where}: token_ids should be (batch, seq), found {shape}")
    for name, array in case.inputs.items():
        expected = {"token_ids": shape, "token_types": shape, "valid_length": shape[:1]}.get(name)
        fits = array.shape[:1] == shape[:1] if expected is None else array.shape == expected
        if not fits or array.dtype.kind not in "iu":
            raise ModelFormatError(
                f"{where}: {name} should be integers of shape {expected or '(batch, masked)'}, "
                f"found {array.dtype} {array.shape}"
            )
    for name, array in case.outputs.items():
        batch = array.shape[1:2] if name in STACKED else array.shape[:1]
        if array.dtype != np.float32 or batch != shape[:1]:
            raise ModelFormatError(
                f"{where}: {name} should be float32 for {shape[0]} sequences, "
                f"found {array.dtype} {array.shape}"
            )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# The manifest, field by field. A check says what was expected where a value does not have it.


def _is_count(value: Any, lowest: int = 1) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _distinct(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(of, value)) and len(set(value)) == len(value) > 0


_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "task": (f"one of {', '.join(TASKS)}", lambda v: isinstance(v, str) and v in TASKS),
    "labels": ("a list of distinct names, or null", lambda v: v is None or _distinct(v, _is_text)),
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


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
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


def _check_manifest(manifest: Any, where: Path) -> None:
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


def _check_files(directory: Path, files: dict[str, dict[str, Any]]) -> None:
    root = directory.resolve()
    for name, entry in files.items():
        path = directory / name
        if not os.path.lexists(path):
            raise MissingFileError(f"{directory}: the bundle's file {name} is missing")
        if path.resolve().parent != root:
            raise ModelFormatError(f"{path} is a link that leads out of the bundle")
        if not path.is_file():
            raise ModelFormatError(f"{path} should be a plain file")
        size = path.stat().st_size
        if size != entry["size"]:
            raise ModelFormatError(
                f"{path} has {size} bytes, and the manifest says {entry['size']}; the file is "
                "truncated or was changed: copy or export the bundle again"
            )
    # Hidden files are the file system's or a desktop's (.nfs..., .DS_Store), and nobody's model.
    found = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    strangers = found - files.keys() - {MANIFEST}
    if strangers:
        raise ModelFormatError(
            f"{directory} holds what its manifest does not list: {', '.join(sorted(strangers))}"
        )


def _check_digests(directory: Path, files: dict[str, dict[str, Any]]) -> None:
    with progress(sum(entry["size"] for entry in files.values()), "check", "B") as advance:
        for name, entry in files.items():
            digest = file_digest(directory / name, advance)
            if digest != entry["sha256"]:
                raise ModelFormatError(
                    f"{directory / name} is damaged: its sha256 is {digest}, and the manifest "
                    f"says {entry['sha256']}; copy or export the bundle again"
                )
