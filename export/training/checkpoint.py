"""Checkpoints: all that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import json
import os
import uuid
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bertrt.errors import ModelFormatError

__all__ = ["PARTIAL", "read_checkpoint", "replace_file", "write_checkpoint"]

# What the name of a file ends in while it is written.
PARTIAL = ".partial"

_STATE = "state"


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file aside and give it its name when it is complete and on the disk, so that
    whatever ends the process leaves the file before or the file after."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        with open(aside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        aside.unlink(missing_ok=True)


def write_checkpoint(
    path: Path, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
) -> None:
    """Write arrays and what JSON can say of the rest to one ``.npz`` file, atomically."""
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    replace_file(path, lambda file: np.savez(file, **{**arrays, _STATE: text}))


def read_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What :func:`write_checkpoint` wrote.

    Raises:
        ModelFormatError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return arrays, json.loads(arrays.pop(_STATE).tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ModelFormatError(
            f"{path} is damaged ({error}); remove it to begin the run again"
        ) from error
