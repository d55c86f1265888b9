"""What fuzzing found stays mended, the seeds are whole, and the fuzzer sees what it should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bertrt import BertrtError, ModelFormatError, _native

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import fuzz  # noqa: E402
import targets  # noqa: E402
from targets import CORPUS, TARGETS, Case, Target  # noqa: E402

FOUND = sorted(path for path in CORPUS.rglob("*") if path.is_file())
FILES = [target for target in TARGETS.values() if isinstance(target, targets.FileTarget)]


@pytest.mark.parametrize("path", FOUND, ids=lambda path: str(path.relative_to(CORPUS)))
def test_what_was_found(path: Path, tmp_path: Path) -> None:
    """A file of the corpus is refused, or answers twice the same."""
    seed, file, _ = path.name.split("@", 2)
    case = Case(seed, file.replace("+", "/"), path.read_bytes())
    assert fuzz.attempt(TARGETS[path.parent.name], case, tmp_path)[1] is None


@pytest.mark.parametrize("target", FILES, ids=lambda target: target.name)
def test_seeds_answer(target: targets.FileTarget, tmp_path: Path) -> None:
    """Unchanged, every file is taken: what is mutated is worth it."""
    for source in target.sources.values():
        content = (targets.SEEDS / source.seed / source.file).read_bytes()
        outcome = fuzz.attempt(target, Case(source.seed, source.file, content), tmp_path)
        assert outcome == ("answered", None), source


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_a_few_inputs(target: Target, tmp_path: Path) -> None:
    """The first inputs of a target: some are refused, some answered, and nothing else happens. The
    same number makes the same input."""
    outcomes = set()
    for number in range(40):
        case = target.case(number)
        if isinstance(case.content, bytes):
            assert target.case(number) == case
        outcome, fault = fuzz.attempt(target, case, tmp_path)
        assert fault is None, (number, fault)
        outcomes.add(outcome)
    assert "answered" in outcomes and len(outcomes) > 1


@pytest.mark.parametrize("value", [5, "a", [["a", "b"]], None])
@pytest.mark.parametrize("name", ["architecture", "outputs"])
def test_a_plan_whose_tables_are_none(name: str, value: object) -> None:
    """The extension by itself refuses what is no dictionary, and makes none of pairs."""
    plan = targets.open_plan("bundle")
    with pytest.raises(ModelFormatError, match=f"'{name}' of the plan is no table"):
        _native.Model(plan.to_engine() | {name: value}, targets.arrays_of(plan), "fp32", 1)


@pytest.mark.parametrize("ends", [[0, 2**31 - 1, -(2**31), 5], [-(2**31), 5, 5, 5]])
def test_ends_that_run_backwards(ends: list[int]) -> None:
    """A batch is measured before it is checked; under a sanitizer this ended the process."""
    ids = np.ones(5, np.int32)
    with pytest.raises(BertrtError):
        targets.native_engine("bundle").run(
            ids, ids * 0, np.array(ends, np.int32), None, ["logits"]
        )


# --- the fuzzer itself -----------------------------------------------------------------------

# Faults, by the number of the input.
_FAULTY = """
import os, sys, time
sys.path.insert(0, {here!r})
import fuzz, targets
import numpy as np

class Faulty(targets.Target):
    make = None

    def case(self, number):
        # However loaded the machine is, an endless loop is no sleep.
        fuzz.BUSY, fuzz.ASLEEP = 1.0, 1.0 if number == 9 else 1000.0
        return targets.Case("seed", "dir/file", b"%d" % number)

    def run(self, case, directory):
        number = int(case.content)
        if number == 3:
            raise KeyError("another exception")
        if number == 5:
            os.abort()
        if number == 7:
            while True:
                pass
        if number == 9:
            time.sleep(1000)
        if number == 11:
            np.ones(300 << 17)  # 300 MiB of doubles
        if number == 13:
            targets.same(iter([1, 2]).__next__)

targets.TARGETS.clear()
targets.TARGETS["faulty"] = Faulty("faulty", 1)
fuzz.__file__ = {script!r}
sys.exit(fuzz.main())
"""


def test_the_fuzzer_sees_faults(tmp_path: Path) -> None:
    """An exception of another kind, a crash, an endless loop, a sleep, memory and an answer that
    changes: each is found, at its number, and the inputs behind it are not lost. A run that was
    ended goes on."""
    script, out = tmp_path / "faulty.py", tmp_path / "out"
    script.write_text(_FAULTY.format(here=str(HERE), script=str(script)))
    command = [sys.executable, str(script), "--out", str(out), "--jobs", "1", "--runs"]
    assert subprocess.run([*command, "3"], capture_output=True).returncode == 0
    done = subprocess.run([*command, "20"], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    (row,) = fuzz.read_rows(out).values()
    assert row["inputs"] == 20 and sum(row["outcomes"].values()) == 20
    firsts = {found["first"]: kind for kind, found in row["findings"].items()}
    assert sorted(firsts) == [3, 5, 7, 9, 11, 13]
    for number, telling in (
        *((3, "KeyError"), (5, "SIGABRT"), (7, "busy"), (9, "asleep"), (11, "memory: ")),
        (13, "AssertionError"),
    ):
        assert telling in firsts[number]
        kept = out / "findings" / f"faulty-{number}" / f"seed@dir+file@{number}"
        assert kept.read_bytes() == b"%d" % number
    assert "| faulty | 20 | 14 | 0 |" in done.stdout
