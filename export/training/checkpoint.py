"""Checkpoints: all that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import ModelFormatError
from bertrt.host.writing import writing_file

__all__ = ["read_checkpoint", "write_checkpoint"]

_STATE = "state"


def write_checkpoint(
    path: Path, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
) -> None:
    """Write arrays and what JSON can say of the rest to one ``.npz`` file, in the place of the one
    before. Raises WriteError."""
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    with writing_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in {**arrays, _STATE: text}.items():
            # Not np.savez, which leaves an archive open where a file cannot be written.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


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
