"""The bundle: one directory that holds all that a deployment needs.

==================  ==============================================================================
``bertrt.json``     the manifest: format version, task, labels, architecture, tokenizer settings,
                    origin, the size and sha256 of every other file, and its own
``plan.json``       the fused plan; its weights are references into a file of the bundle
graphs and weights  ``model-symbol.json`` with ``model-0000.params``, ``model.onnx``
tokenizer           ``vocab.json`` (GluonNLP), with ``merges.txt`` or ``sentencepiece.model``
                    where it has one; or ``tokenizer.json`` (Hugging Face)
modules             ``modules.safetensors``: the weights of what comes behind a pooling, if any
``golden.npz``      inputs and the outputs that the source framework gave for them
==================  ==============================================================================

A bundle is written beside its final place and renamed when it is complete, so nobody sees half of
one (`bertrt.host.writing`). It is checked in full when it is opened: a flipped bit in any file is
an error there, and not a wrong answer later. Nothing here needs more than numpy, and nothing is
ever unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bertrt.errors import MissingFileError, ModelFormatError
from bertrt.host.beside import Beside
from bertrt.host.files import open_plain, read_json
from bertrt.host.paths import check_path
from bertrt.host.progress import progress
from bertrt.host.stored import File
from bertrt.host.writing import naming, write_text, writing_directory
from bertrt.models.golden import GoldenCase, read_golden
from bertrt.models.manifest import (
    GOLDEN,
    MANIFEST,
    MODULES,
    PLAN,
    check_manifest,
    manifest_digest,
    version_of,
)
from bertrt.models.safetensors import read_safetensors, write_safetensors
from bertrt.plan.plan import Plan
from bertrt.tasks.modules import Module, make_modules

__all__ = ["Bundle", "BundleDraft", "file_digest", "write_modules", "write_plan", "writing"]

# Hashing a file in blocks of this size costs next to nothing beside the hash itself, memory stays
# flat however large the weights are, and the GIL, which is free meanwhile, is asked for seldom.
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An opened bundle whose every file has been checked against the manifest.

    Attributes:
        directory: where the bundle lies.
        manifest: the content of ``bertrt.json``, validated.
    """

    directory: Path
    manifest: dict[str, Any]
    _weights: File

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
        manifest = read_json(directory / MANIFEST, distinct=True)
        check_manifest(manifest, directory / MANIFEST)
        if manifest["manifest_sha256"] != manifest_digest(manifest):
            raise ModelFormatError(
                f"{directory / MANIFEST} is damaged, or was edited: its content does not have the "
                "sha256 that it names as its own; copy or export the bundle again"
            )
        files = manifest["files"]
        found = _check_files(directory, files)
        *small, weights = sorted(files, key=lambda name: files[name]["size"])
        _check_digests(directory, {name: files[name] for name in small})
        # The block and the check read the same file, whatever is renamed to its place meanwhile.
        file = File(directory / weights)
        check = Beside(lambda: _check_weights(file, files[weights]))
        try:
            yield cls(directory, manifest, file)
        finally:
            check.wait()
            _check_unchanged(directory, found)

    def file(self, name: str) -> Path | None:
        """The path of a file of the bundle, or None where the bundle does not have it."""
        return self.directory / name if name in self.manifest["files"] else None

    def plan(self) -> Plan:
        """The plan; its weights are read from the bundle's files when they are asked for.

        Raises:
            ModelFormatError: the plan is broken, is not the one that the manifest describes, or
                refers to weights outside the bundle.
        """
        path = self.directory / PLAN
        content = read_json(path, distinct=True)
        weights = content.get("weights") if isinstance(content, dict) else None
        if isinstance(weights, dict):
            for name, reference in weights.items():
                file = reference.get("file") if isinstance(reference, dict) else None
                if not isinstance(file, str) or file not in self.manifest["files"]:
                    raise ModelFormatError(
                        f"{path}: the weight {name!r} lies in {file!r}, "
                        "which is not a file of this bundle"
                    )
        try:
            plan = Plan.from_dict(content, self.directory, {self._weights.path.name: self._weights})
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

    def modules(self) -> tuple[Module, ...]:
        """What comes behind an embedding's pooling; empty where nothing does.

        Raises:
            ModelFormatError: the modules or their weights are not what they should be.
        """
        described = (self.manifest["pooling"] or {}).get("modules", [])
        path = self.file(MODULES)
        arrays = {} if path is None else read_safetensors(path)
        return make_modules(
            described,
            {name: constant.array for name, constant in arrays.items()},
            str(path or self.directory / MANIFEST),
        )

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
            with naming(path):
                files[path.name] = {"sha256": file_digest(path), "size": path.stat().st_size}
        content = {"format_version": version_of(manifest), **manifest, "files": files}
        content["manifest_sha256"] = manifest_digest(content)
        path = self.directory / MANIFEST
        check_manifest(content, path)
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        self.sealed = True


@contextlib.contextmanager
def writing(out_dir: str | os.PathLike[str]) -> Iterator[BundleDraft]:
    """Write a bundle so that it appears at `out_dir` complete, or not at all.

    The files go into a hidden directory beside `out_dir`, which is renamed at the end of the
    block. When the block raises, that directory is removed and `out_dir` never existed::

        with writing("model.bundle") as draft:
            write_text(draft.directory / "plan.json", ...)
            draft.seal(manifest)

    The files are written by `bertrt.host.writing`, which brings them to the disk.

    Raises:
        OutputExistsError: `out_dir` exists; it is left as it is.
        MissingFileError: the directory that should hold `out_dir` does not exist.
        WriteError: the system refuses a file; its message names it.
        InvalidInputError, InvalidTypeError: `out_dir` cannot be a path.
    """
    with writing_directory(check_path("the output directory", out_dir)) as directory:
        draft = BundleDraft(directory)
        yield draft
        if not draft.sealed:
            raise AssertionError("the bundle was not sealed: call draft.seal(manifest)")


def file_digest(
    path: str | os.PathLike[str], advance: Callable[[int], Any] = lambda count: None
) -> str:
    """The sha256 of a file in hexadecimal digits; `advance` is called with the number of
    bytes read since its last call."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK))
    with open_plain(Path(path)) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            advance(count)
    return digest.hexdigest()


def write_plan(plan: Plan, directory: Path) -> None:
    """Write ``plan.json``; the plan's weights must lie in files of `directory`."""
    text = json.dumps(plan.to_dict(directory), indent=1) + "\n"
    write_text(directory / PLAN, text)


def write_modules(modules: Sequence[Module], directory: Path) -> None:
    """Write the weights of an embedding's modules, if they have any."""
    arrays = {
        f"{index}.{role}": array
        for index, module in enumerate(modules)
        for role, array in module.arrays.items()
    }
    if arrays:
        write_safetensors(directory / MODULES, arrays)


def _check_files(directory: Path, files: dict[str, dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Check all of a bundle's files but their bytes; returns what tells each from another."""
    root, identities = directory.resolve(), {}
    for name, entry in files.items():
        path = directory / name
        if not os.path.lexists(path):
            raise MissingFileError(f"{directory}: the bundle's file {name} is missing")
        try:
            home = path.resolve().parent
        except (OSError, RuntimeError):  # a link to itself
            home = None
        if home != root:
            raise ModelFormatError(f"{path} is a link that leads out of the bundle")
        if not path.is_file():
            raise ModelFormatError(f"{path} should be a plain file")
        identities[name] = _identity(path)
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
    return identities


def _identity(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check_unchanged(directory: Path, identities: dict[str, tuple[int, ...]]) -> None:
    """Refuse a bundle of whose files one has become another since it was checked."""
    for name, identity in identities.items():
        try:
            same = _identity(directory / name) == identity
        except OSError:
            same = False
        if not same:
            raise ModelFormatError(
                f"{directory / name} was changed, or replaced, while the bundle was opened; open "
                "it again"
            )


def _check_digests(directory: Path, files: dict[str, dict[str, Any]]) -> None:
    with progress(sum(entry["size"] for entry in files.values()), "check", "B") as advance:
        for name, entry in files.items():
            _check_digest(directory / name, file_digest(directory / name, advance), entry)


def _check_digest(path: Path, digest: str, entry: dict[str, Any]) -> None:
    if digest != entry["sha256"]:
        raise ModelFormatError(
            f"{path} is damaged: its sha256 is {digest}, and the manifest says {entry['sha256']}; "
            "copy or export the bundle again"
        )


def _check_weights(file: File, entry: dict[str, Any]) -> None:
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK))
    with progress(len(file), "check", "B") as advance:
        for begin in range(0, len(file), _BLOCK):
            piece = block[: len(file) - begin]
            file.read_into(piece, begin)
            digest.update(piece)
            advance(len(piece))
    _check_digest(file.path, digest.hexdigest(), entry)
