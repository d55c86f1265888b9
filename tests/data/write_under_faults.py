"""Runs a writer with each of its system calls failing in turn, and prints what it got wrong.

    LD_PRELOAD=faults.so python write_under_faults.py DIRECTORY CASE

prints JSON: how many calls there are that can fail, and what was wrong where one did.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import WriteError
from bertrt.host import writing

FAULTS = ctypes.CDLL(None)
FAULTS.faults_arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int)
FAULTS.faults_disarm.restype = ctypes.c_long
FAULTS.faults_last.restype = ctypes.c_char_p
ARRAYS = {"a": np.arange(5000, dtype=np.float32), "b": np.ones((3, 4), np.float32)}


@contextlib.contextmanager
def armed(root: Path, nth: int, error: int, stays: bool) -> Iterator[Callable[[], int]]:
    """The nth call below `root` fails in the block; what is given tells how many did, after it."""
    found: list[int] = []
    FAULTS.faults_arm(os.fsencode(root), nth, error, stays)
    try:
        yield lambda: found[0]
    finally:
        found.append(FAULTS.faults_disarm())


@dataclasses.dataclass
class Case:
    """A writer.

    Attributes:
        target: the name of what it writes.
        write: writes it into a directory; "before" or "after" is what tells its content.
        replaces: whether there is a target before.
    """

    target: str
    write: Callable[[Path, str], Any]
    replaces: bool


def write_bundle(root: Path, content: str) -> None:
    from bertrt.models.bundle import writing as writing_bundle
    from bertrt.models.golden import GoldenCase, write_golden
    from bertrt.models.safetensors import write_safetensors
    from bertrt.models.symbol.params import write_params

    ones = np.ones((2, 3), np.int32)
    inputs = {"token_ids": ones, "token_types": ones, "valid_length": ones[:, 0]}
    outputs = {"logits": np.zeros((2, 2), np.float32)}
    with writing_bundle(root / "bundle") as draft:
        writing.write_text(draft.directory / "plan.json", "{}")
        writing.copy_file(__file__, draft.directory / "vocab.json")
        write_safetensors(draft.directory / "model.safetensors", ARRAYS)
        write_params(draft.directory / "model-0000.params", ARRAYS)
        with writing.appending_file(draft.directory / "model-0000.params") as file:
            file.write(b"more")
        write_golden(draft.directory / "golden.npz", [GoldenCase(inputs, outputs)])
        draft.seal(
            {
                "task": "classification",
                "labels": ["no", "yes"],
                "architecture": {"vocab_size": 60, "max_length": 40, "layers": 1},
                "outputs": ["logits"],
                "tokenizer": {
                    **{"kind": "gluonnlp", "file": "vocab.json", "lower": True, "max_length": 20}
                },
                "pooling": None,
                "settings": {"pair": None},
                "origin": {"framework": content},
            }
        )


def write_checkpoint(root: Path, content: str) -> None:
    from bertrt.export.training.checkpoint import write_checkpoint

    write_checkpoint(root / "checkpoint.npz", ARRAYS, {"content": content})


def write_report(root: Path, content: str) -> None:
    from bertrt.bench import write
    from bertrt.bench.write import output_directory, write_report

    # matplotlib need not be there, and makes the picture in memory.
    write.import_pyplot = lambda: None
    write.plot = lambda report, file: writing.write_bytes(file, b"picture")

    class Report(str):
        def to_dict(self) -> dict[str, str]:
            return {"text": content}

    report: Any = Report(content)
    with output_directory(str(root / "report")) as out:
        assert out is not None
        write_report(report, out)


def write_file(root: Path, content: str) -> None:
    writing.write_text(root / "file", content * 10000)


CASES = {
    "bundle": Case("bundle", write_bundle, replaces=False),
    "checkpoint": Case("checkpoint.npz", write_checkpoint, replaces=True),
    "report": Case("report", write_report, replaces=False),
    "file": Case("file", write_file, replaces=True),
}


def snapshot(root: Path) -> dict[str, bytes]:
    """All files below a directory, and their content."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"directory"
        for path in root.rglob("*")
    }


def check(
    case: Case, root: Path, error: BaseException | None, number: int, after: dict[str, bytes]
) -> str | None:
    """What is wrong after a failure; None: nothing."""
    found = snapshot(root)
    if error is None and FAULTS.faults_last() == b"close":
        # That of a lock, behind that of the file, has nothing to tell.
        return None if found == after else f"left {sorted(found)}"
    if not isinstance(error, WriteError):
        return f"raised {error!r}"
    text = str(error)
    if str(root / case.target) not in text or ".partial" in text or "Errno" in text:
        return f"does not name the file: {text}"
    before = {case.target: b"before"} if case.replaces else {}
    if "in its place" in text:
        # Its name alone is not known to be on the disk.
        return None if found == after else f"left {sorted(found)}"
    if error.errno != number:
        return f"has the errno {error.errno}"
    return None if found == before else f"left {sorted(found)}"


def main() -> None:
    root, case = Path(sys.argv[1]), CASES[sys.argv[2]]
    scratch = root / "after"
    scratch.mkdir()
    case.write(scratch, "after")
    after = snapshot(scratch)
    wrong, points = [], 0
    for number, stays in ((errno.ENOSPC, True), (errno.EIO, False)):
        nth = 0
        while True:
            nth += 1
            place = root / f"{number}-{nth}"
            place.mkdir()
            if case.replaces:
                (place / case.target).write_bytes(b"before")
            error: BaseException | None = None
            with armed(place, nth, number, stays) as failures:
                try:
                    case.write(place, "after")
                except BaseException as raised:
                    error = raised
            if failures() == 0:
                assert error is None and snapshot(place) == after
                break
            points += 1
            if problem := check(case, place, error, number, after):
                wrong.append(f"call {nth}, {os.strerror(number)}: {problem}")
    print(json.dumps({"points": points, "wrong": wrong}))


if __name__ == "__main__":
    main()
