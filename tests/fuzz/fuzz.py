"""Fuzzes the formats and arguments of `targets.py`: the work behind ``make fuzz``.

    python tests/fuzz/fuzz.py --runs 100000                    # of all targets together
    python tests/fuzz/fuzz.py --runs 10000000 --out build/fuzz # goes on where it was ended
    python tests/fuzz/fuzz.py --again "plan" 1234              # one input, here in this process
    python tests/fuzz/fuzz.py --table --out build/fuzz         # what is known, as Markdown

Every turn of a target runs in a process of its own, so that no crash ends more than one input, and
what a process gathers is given back. ``summary.jsonl`` has a line a target, with what its inputs
became and what was found; ``findings/`` what is needed to see each again.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import mmap
import os
import reprlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# An input may take so many seconds of computing, and, asleep, so many.
BUSY, ASLEEP = 20.0, 120.0
# Resident memory that an input may take beyond what the process has: MiB, and for each byte.
MEMORY, TIMES = 128, 64
# A process takes as many seconds of inputs, then another does.
TURN = 60.0


# --- one process, one target -----------------------------------------------------------------


class Memory:
    """How far resident memory rises."""

    def __init__(self) -> None:
        self._pages = os.open("/proc/self/statm", os.O_RDONLY)
        self._peak = 0
        self._before = 0

    def begin(self) -> None:
        self._before = int(os.pread(self._pages, 100, 0).split()[1]) * 4096
        self._peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def risen(self) -> int:
        """Bytes; 0 where there was more in use before."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * 1024 - self._before if peak > self._peak else 0


def attempt(target: Any, case: Any, directory: Path) -> tuple[str, str | None]:
    """What an input becomes: a name, and what is wrong about it."""
    from bertrt.errors import BertrtError

    try:
        target.run(case, directory)
        return "answered", None
    except BertrtError as error:
        return type(error).__name__, None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # The innermost place within the package says which fault it is.
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "/bertrt/" in f.filename] or frames
        where = f"{own[-1].filename.rpartition('/bertrt/')[2]}:{own[-1].lineno}"
        text = "".join(traceback.format_exception(error))
        kind = f"{type(error).__module__}.{type(error).__name__}".removeprefix("builtins.")
        return "finding", f"{kind} at {where}\n{text[-6000:]}"


def work(name: str, begin: int, end: int, skip: list[int], seconds: float, progress: Path) -> None:
    """Inputs from one number to another but those of `skip`, as many as the time allows; says on
    stdout what became of them."""
    warnings.simplefilter("ignore")
    from targets import TARGETS

    target = TARGETS[name]
    faulthandler.enable()
    for number in (signal.SIGPROF, signal.SIGALRM):
        faulthandler.register(number, chain=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    place = mmap.mmap(os.open(progress, os.O_RDWR), 8)
    memory = Memory()
    home = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    outcomes: dict[str, int] = {}
    said = started = time.monotonic()

    def say(number: int, **more: Any) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        line = {"upto": number, "outcomes": outcomes, "mib": used, **more}
        os.write(1, json.dumps(line).encode() + b"\n")
        outcomes.clear()

    number = begin
    try:
        while number < end:
            if number in skip:
                number += 1
                continue
            place[:] = number.to_bytes(8, "little")
            case = target.case(number)
            size = size_of(case.content)
            memory.begin()
            signal.setitimer(signal.ITIMER_PROF, BUSY)
            signal.setitimer(signal.ITIMER_REAL, ASLEEP)
            outcome, fault = attempt(target, case, Path(home))
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            risen = memory.risen()
            # Its first input makes a process import and load what the others need.
            if fault is None and risen > (MEMORY << 20) + TIMES * size and number > begin:
                outcome, fault = (
                    "finding",
                    f"memory: {risen >> 20} MiB for an input of {size} bytes",
                )
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            number += 1
            now = time.monotonic()
            if fault is not None:
                say(number, finding=fault, at=number - 1)
            elif now - said > 0.5:
                said = now
                say(number)
            if now - started > seconds:
                break
    finally:
        shutil.rmtree(home, ignore_errors=True)
    say(number)
    # Without Python's end, and without the sanitizers' report of what that leaves.
    os._exit(0)


def size_of(content: Any) -> int:
    """The bytes of an input: of a file, or of all arguments."""
    if isinstance(content, dict):
        return sum(map(size_of, content.values()))
    if isinstance(content, list | tuple):
        return sum(map(size_of, content))
    if isinstance(content, str | bytes):
        return len(content)
    return int(getattr(content, "nbytes", 8))


def keep(name: str, number: int, place: Path) -> None:
    """Write down an input: the file, named as in the corpus, or what the arguments look like."""
    from targets import TARGETS

    case = TARGETS[name].case(number)
    if isinstance(case.content, bytes):
        place.mkdir(exist_ok=True)
        (place / corpus_name(case, str(number))).write_bytes(case.content)
    else:
        with open(f"{place}.txt", "a") as file:
            file.write(f"\n{case.seed} {reprlib.Repr().repr(case.content)}\n")


def corpus_name(case: Any, what: str) -> str:
    return f"{case.seed}@{case.file.replace('/', '+')}@{what}"


# --- all of them -----------------------------------------------------------------------------


class Campaign:
    """A run: turns of targets, as many at once as there are jobs."""

    def __init__(self, out: Path, names: list[str], runs: int, seconds: float) -> None:
        from targets import TARGETS

        self.out, self.names = out, names
        self._lock = threading.Lock()
        self._targets = {name: TARGETS[name] for name in names}
        shares = sum(target.share for target in self._targets.values())
        self._wanted = {
            name: max(1, round(runs * target.share / shares))
            for name, target in self._targets.items()
        }
        # Where time is all that counts, each has its part of it.
        self._seconds = seconds
        self._spent = dict.fromkeys(names, 0.0)
        self._busy: set[str] = set()
        (out / "findings").mkdir(parents=True, exist_ok=True)
        self.rows = read_rows(out)
        for name in names:
            blank = {
                "inputs": 0,
                "ended": [],
                "seconds": 0.0,
                "mib": 0,
                "outcomes": {},
                "findings": {},
            }
            self.rows.setdefault(name, {"target": name, **blank})

    def next(self, jobs: int) -> tuple[str, float] | None:
        """The target that has most before it, and how long its turn may be."""
        with self._lock:
            left = {}
            for name in self.names:
                part = 1 - self.rows[name]["inputs"] / self._wanted[name]
                if self._seconds:
                    own = self._seconds * jobs / len(self.names)
                    part = min(part, 1 - self._spent[name] / own)
                if part > 0.001 and name not in self._busy:
                    left[name] = part
            if not left:
                return None
            name = max(left, key=left.__getitem__)
            self._busy.add(name)
            turn = self._seconds * jobs / len(self.names) if self._seconds else TURN
            return name, min(TURN, turn)

    def turn(self, name: str, seconds: float) -> None:
        """One process's inputs of a target."""
        row = self.rows[name]
        begin = row["inputs"]
        progress = self.out / f"{name.replace(' ', '_')}.progress"
        progress.write_bytes(begin.to_bytes(8, "little"))
        started = time.monotonic()
        with tempfile.TemporaryFile() as errors:
            skip = ",".join(str(number) for number in row["ended"] if number >= begin)
            given = (name, begin, self._wanted[name], skip, seconds, progress)
            process = subprocess.Popen(
                [sys.executable, __file__, "--work", *map(str, given)],
                stdout=subprocess.PIPE,
                stderr=errors,
            )
            assert process.stdout is not None
            for line in process.stdout:
                self._hear(name, json.loads(line))
            status = process.wait()
            errors.seek(0)
            told = errors.read().decode(errors="replace")
        with self._lock:
            if status:
                number = int.from_bytes(progress.read_bytes(), "little")
                self._find(name, number, _crash(status, told))
                row["outcomes"]["crash"] = row["outcomes"].get("crash", 0) + 1
                # What it had not said yet is done again, up to there and on from behind it.
                row["ended"].append(number)
            spent = time.monotonic() - started
            row["seconds"] += spent
            self._spent[name] += spent
            self._busy.discard(name)
            write_rows(self.out, self.rows)
        progress.unlink()

    def _hear(self, name: str, said: dict[str, Any]) -> None:
        with self._lock:
            row = self.rows[name]
            row["inputs"], row["mib"] = said["upto"], max(row["mib"], said["mib"])
            for outcome, count in said["outcomes"].items():
                row["outcomes"][outcome] = row["outcomes"].get(outcome, 0) + count
            if "finding" in said:
                self._find(name, said["at"], said["finding"])
            write_rows(self.out, self.rows)

    def _find(self, name: str, number: int, text: str) -> None:
        """Keep the first input of each kind of fault."""
        kind = text.partition("\n")[0]
        found = self.rows[name]["findings"]
        if kind not in found:
            found[kind] = {"first": number, "count": 0}
            place = self.out / "findings" / f"{name.replace(' ', '_')}-{number}"
            Path(f"{place}.txt").write_text(text, errors="replace")
            # In another process: what ended one may have been the making of it.
            subprocess.run([sys.executable, __file__, "--keep", name, str(number), str(place)])
            print(f"{name} {number}: {kind}", file=sys.stderr, flush=True)
        found[kind]["count"] += 1


def _crash(status: int, told: str) -> str:
    """What ended a process, by what it said last."""
    name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    name = {"SIGPROF": "busy for too long", "SIGALRM": "asleep for too long"}.get(name, name)
    lines = told.splitlines()
    telling = next((s for s in lines if "SUMMARY: " in s or "runtime error: " in s), "")
    if not telling:
        telling = next((s.strip() for s in lines if "/bertrt/" in s), "")
    return f"{name} {telling}\n{told[-12000:]}"


def read_rows(out: Path) -> dict[str, dict[str, Any]]:
    path = out / "summary.jsonl"
    if not path.exists():
        return {}
    return {row["target"]: row for row in map(json.loads, path.read_text().splitlines())}


def write_rows(out: Path, rows: dict[str, dict[str, Any]]) -> None:
    draft = out / "summary.jsonl.partial"
    draft.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    draft.replace(out / "summary.jsonl")


def table(rows: dict[str, dict[str, Any]]) -> str:
    """What was found, as docs/security.md has it."""
    lines = [
        "| target | inputs | answered | refused | a second | peak MiB | findings |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in [*rows.values(), _sum(rows)]:
        outcomes = row["outcomes"]
        answered = outcomes.get("answered", 0)
        bad = outcomes.get("finding", 0) + outcomes.get("crash", 0)
        refused = sum(outcomes.values()) - answered - bad
        speed = row["inputs"] / max(row["seconds"], 1e-9)
        lines.append(
            f"| {row['target']} | {row['inputs']:,} | {answered:,} | {refused:,} | {speed:,.0f} "
            f"| {row['mib']} | {len(row['findings'])} |"
        )
    return "\n".join(lines)


def _sum(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    together: dict[str, Any] = {"target": "together", "outcomes": {}, "findings": []}
    for row in rows.values():
        for outcome, count in row["outcomes"].items():
            together["outcomes"][outcome] = together["outcomes"].get(outcome, 0) + count
        together["findings"] += row["findings"]
    together["inputs"] = sum(row["inputs"] for row in rows.values())
    together["seconds"] = sum(row["seconds"] for row in rows.values())
    together["mib"] = max((row["mib"] for row in rows.values()), default=0)
    return together


def main() -> int:
    from targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10**12, help="inputs of all targets together")
    parser.add_argument("--seconds", type=float, default=0.0, help="at most, about")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="where to keep what is found, to go on there")
    parser.add_argument("--targets", help=f"some of them, by commas: {', '.join(TARGETS)}")
    parser.add_argument("--table", action="store_true", help="only show what is known in --out")
    parser.add_argument("--again", nargs=2, metavar=("TARGET", "NUMBER"), help="one input")
    parser.add_argument("--keep", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--work", nargs=6, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        name, begin, end, ended, seconds, progress = given.work
        skip = [int(number) for number in ended.split(",") if number]
        work(name, int(begin), int(end), skip, float(seconds), Path(progress))
    if given.keep:
        keep(given.keep[0], int(given.keep[1]), Path(given.keep[2]))
        return 0
    if given.again:
        target = TARGETS[given.again[0]]
        case = target.case(int(given.again[1]))
        print(case.seed, case.file, reprlib.Repr().repr(case.content))
        with tempfile.TemporaryDirectory() as directory:
            target.run(case, Path(directory))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        if given.table:
            print(table(read_rows(out)))
            return 0
        names = given.targets.split(",") if given.targets else list(TARGETS)
        campaign = Campaign(out, names, given.runs, given.seconds)

        def serve() -> None:
            while (chosen := campaign.next(given.jobs)) is not None:
                campaign.turn(*chosen)

        threads = [threading.Thread(target=serve, daemon=True) for _ in range(given.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(table(campaign.rows))
        found = sum(len(campaign.rows[name]["findings"]) for name in names)
        if found and given.out is None:
            shutil.copytree(out, "build/fuzz-findings", dirs_exist_ok=True)
            print("what was found lies in build/fuzz-findings")
        return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
