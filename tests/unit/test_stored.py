"""Arrays in files: read whole, by one thread or two, and checked as they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bertrt.errors import ModelFormatError
from bertrt.host.stored import Fetcher, File, Stored

# Bytes before the array, so that it is not aligned in the file.
BEFORE = 12


def store(path: Path, array: np.ndarray) -> Stored:
    path.write_bytes(bytes(BEFORE) + array.tobytes())
    return File(path).stored(BEFORE, array.dtype.str, array.shape)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).random(shape, np.float32)


# Below a block, of blocks that are not whole, of which two threads read one half each.
SHAPES = [(3, 5), (1000, 100), (1 << 10, 1 << 8), (1021, 1033)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("checked", [False, True])
def test_arrays_are_read_whole(tmp_path, shape, checked) -> None:
    array = numbers(*shape)
    stored = store(tmp_path / "weights", array)
    seen: list[np.ndarray] = []
    if checked:
        stored.check = lambda block: seen.append(block.copy())
    for read in (lambda: stored.array, lambda: Fetcher()([stored])[0]):
        seen.clear()
        stored.let_go()
        found = read()
        np.testing.assert_array_equal(found, array)
        assert not found.flags.writeable
        assert found.ctypes.data % found.itemsize == 0
        # Every element once, though two threads have each their order.
        together = np.concatenate([np.zeros(0, np.float32), *seen])
        wanted = array.ravel() if checked else np.zeros(0, np.float32)
        np.testing.assert_array_equal(np.sort(together), np.sort(wanted))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("where", [0, -1])
def test_what_a_check_finds_is_raised_whoever_reads(tmp_path, shape, where) -> None:
    array = numbers(*shape)
    array.reshape(-1)[where] = np.nan
    stored = store(tmp_path / "weights", array)

    def check(block: np.ndarray) -> None:
        if np.isnan(block).any():
            raise ModelFormatError("no number")

    stored.check = check
    for read in (lambda: stored.array, lambda: Fetcher()([stored])):
        for _ in range(2):  # what was refused is not kept
            with pytest.raises(ModelFormatError, match="no number"):
                read()
    rows = stored.part(0, (1, shape[1])), stored.part(shape[1], (shape[0] - 1, shape[1]))
    with pytest.raises(ModelFormatError, match="no number"):
        _ = rows[where].array
    np.testing.assert_array_equal(rows[where + 1].array, array[:1] if where else array[1:])


def test_a_file_that_ends_early_is_refused_whoever_reads(tmp_path) -> None:
    stored = store(tmp_path / "weights", numbers(1021, 1033))
    with (tmp_path / "weights").open("r+b") as file:
        file.truncate(BEFORE + stored.nbytes - 1)
    for read in (lambda: stored.array, lambda: Fetcher()([stored])):
        with pytest.raises(ModelFormatError, match="was changed while it was in use"):
            read()
