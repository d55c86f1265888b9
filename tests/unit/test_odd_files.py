"""What stands in the place of a file: links that lead nowhere, files and directories that cannot
be read, the system's own; and memory that the system does not give."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest

from bertrt import (
    BertrtError,
    Engine,
    InvalidInputError,
    MissingFileError,
    ModelFormatError,
    OutOfMemoryError,
)
from bertrt.backends import native
from bertrt.evaluation.datasets import find_files, read_examples, read_texts
from bertrt.host import stored
from bertrt.host.files import open_plain, read_bytes

SEEDS = Path(__file__).parents[1] / "fuzz" / "seeds"
TOO_LONG = "x" * 300


def copied(name: str, to: Path) -> Path:
    return Path(shutil.copytree(SEEDS / name, to / name))


@pytest.fixture
def unprivileged():
    """A directory of a user who may not read everything, for the length of the test."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o777)
    try:
        if os.geteuid() == 0:
            for name in ("bundle", "huggingface"):  # imports what is imported late
                Engine.load(SEEDS / name).close()
            os.seteuid(65534)
            try:
                yield directory
            finally:
                os.seteuid(0)
        else:
            yield directory
    finally:
        for path in (directory, *directory.iterdir()):
            path.chmod(0o755)
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer.json",
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
    ],
)
@pytest.mark.parametrize("target", ["nowhere", "itself", TOO_LONG])
def test_a_link_that_leads_nowhere_is_not_a_file_that_is_missing(tmp_path, name, target):
    """What a half-emptied cache has in the place of a file that would change the answers."""
    directory = copied("sentence", tmp_path)
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to(name if target == "itself" else target)
    with pytest.raises(BertrtError, match=name):
        Engine.load(directory)


@pytest.mark.parametrize("seed", ["bundle", "huggingface"])
def test_files_that_cannot_be_read(unprivileged, seed):
    directory = copied(seed, unprivileged)
    for path in directory.iterdir():
        path.chmod(0)
        with pytest.raises(ModelFormatError, match=f"{path.name}.*(cannot be read|denied)"):
            Engine.load(directory)
        path.chmod(0o644)
    for mode in (0, 0o444):
        directory.chmod(mode)
        with pytest.raises(ModelFormatError, match=r"cannot be read: .*Permission denied"):
            Engine.load(directory)


def test_data_that_cannot_be_read(unprivileged):
    path = unprivileged / "texts.txt"
    path.write_text("a boat\n")
    path.chmod(0)
    for read in (
        lambda: read_texts(path, "embedding"),
        lambda: read_examples(path, "tagging"),
    ):
        with pytest.raises(InvalidInputError, match="cannot be read"):
            read()
    for read in (
        lambda: read_texts(unprivileged / TOO_LONG, "embedding"),
        lambda: find_files(unprivileged / TOO_LONG, "MRPC", "dev"),
    ):
        # Newer versions of Python say that there is no such file.
        with pytest.raises((InvalidInputError, MissingFileError)):
            read()


def test_a_name_that_is_too_long():
    with pytest.raises(ModelFormatError, match=r"cannot be read: .*File name too long"):
        Engine.load(TOO_LONG)


def test_only_plain_files_are_opened(tmp_path, monkeypatch):
    fifo, bound = tmp_path / "fifo", tmp_path / "socket"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as held:
        monkeypatch.chdir(tmp_path)  # a socket's path may be short only
        held.bind(bound.name)
        for path in (fifo, bound, tmp_path, Path("/dev/null")):
            with pytest.raises(OSError):
                open_plain(path)
        monkeypatch.setattr(Path, "is_file", lambda self: True)  # a moment ago
        with pytest.raises(ModelFormatError, match="fifo: cannot be read"):
            stored.File(fifo)


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="no files of the system's own")
def test_the_systems_own_files_are_empty():
    """Reading some of them waits for ever."""
    assert read_bytes(Path("/proc/version"), 1000) == b""


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no such file")
def test_weights_whose_reading_fails(tmp_path):
    directory = copied("huggingface", tmp_path)
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").symlink_to("/proc/self/mem")
    with pytest.raises(ModelFormatError, match=r"model\.safetensors.*cannot be read"):
        Engine.load(directory)


@pytest.mark.parametrize("seed", ["bundle", "huggingface"])
def test_memory_that_a_model_does_not_get(monkeypatch, seed):
    """Neither of the array of a weight, nor of the room that weights are read into."""

    def refuse(*arguments, **more):
        raise OSError(12, "Cannot allocate memory")

    # No engine of another test, that is still there, has the weights already.
    monkeypatch.setattr(native, "_packed", {})
    monkeypatch.setattr(stored, "_SMALL", 0)
    monkeypatch.setattr(stored.mmap, "mmap", refuse)
    with pytest.raises(OutOfMemoryError, match="memory"):
        Engine.load(SEEDS / seed)
    monkeypatch.undo()

    def refuse_arrays(self, memory):
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr(native, "_packed", {})
    monkeypatch.setattr(stored, "_SMALL", 1 << 60)
    monkeypatch.setattr(stored.Stored, "read", refuse_arrays)
    with pytest.raises(OutOfMemoryError, match=f"memory .* load .*{seed}"):
        Engine.load(SEEDS / seed)


def test_memory_that_a_batch_does_not_get(monkeypatch):
    """Of what is computed around a run, too; the engine lives on."""
    with Engine.load(SEEDS / "bundle") as engine:
        expected = engine.run([[2, 5, 3]])

        def refuse(*arguments, **more):
            raise MemoryError("Unable to allocate 1 TiB for an array")

        with monkeypatch.context() as patched:
            patched.setattr(type(engine._life._lease.backend), "run", refuse)
            with pytest.raises(OutOfMemoryError, match=r"does not suffice for Engine\.run"):
                engine.run([[2, 5, 3]])
        found = engine.run([[2, 5, 3]])
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
