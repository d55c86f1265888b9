"""Engines in use for an hour: whether memory, threads and files stay what they were.

    python benchmarks/soak.py MODEL... --out DIR [--minutes 60] [--cores 1]
    python benchmarks/soak.py --plot DIR

Three threads predict batches of mixed sizes and lengths, and bad inputs among them, on engines of
every MODEL and precision, the largest batch first. A fourth loads engines, pickles them, and closes
them under their calls. The main thread is interrupted in its calls, and forks a child that
predicts. Once a second the resident memory, what of it is allocated by malloc, the threads and the
file descriptors of the process go to DIR/soak.jsonl. The last line there is the verdict, which is
printed and the exit status, too. DIR/soak.png shows it where matplotlib is installed; --plot draws
it from the log elsewhere.

Memory must not grow by more than 2 % or 5 MB from minutes 5 to 15 to the last ten; at the end, with
all engines closed, there must be no thread and no file descriptor more than before the first. In a
run that is shorter than an hour these times are shorter in proportion. "trimmed" is what is
resident when malloc has given back what it keeps of freed memory.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import pickle
import random
import signal
import statistics
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

PRECISIONS = ("fp32", "bf16", "int8")
CALLERS = 3
CHILD_SECONDS = 60.0
PAGE = os.sysconf("SC_PAGE_SIZE")
WORDS = ("the", "boat", "sea", "of", "tower", "we,", "café", "水", "déjà-vu", "12:30", "boatswains")


class Kept(NamedTuple):
    """What is kept of a sample."""

    seconds: float
    rss: int
    threads: int
    files: int


class Interrupted(KeyboardInterrupt):
    """What the main thread is interrupted by."""


class Soak:
    """A run; `paths` are its models."""

    def __init__(self, paths: list[str], minutes: float, cores: float) -> None:
        self.paths, self.minutes, self.cores = paths, minutes, cores
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._stop = threading.Event()
        self._may_interrupt = False
        self._began, self._used = time.monotonic(), time.process_time()

    # --- what is done ----------------------------------------------------------------------------

    def load(self, path: str, precision: str) -> Any:
        from bertrt import Engine

        self.counts["engines loaded"] += 1
        return Engine.load(path, precision=precision, threads=1)

    def predict(self, engine: Any, draw: random.Random) -> None:
        """A batch of 1 to 32 inputs of 1 to 512 words, 2,048 at most; one in ten is bad."""
        from bertrt import BertrtError

        if draw.random() < 0.1:
            bad = draw.choice([[], [None], ["\0"], ["\ud800"], [("a", "b", "c")], [b"a"], ["a", 3]])
            try:
                engine.predict(bad)
            except BertrtError:
                self.counts["bad inputs refused"] += 1
                return
            raise AssertionError(f"{bad!r} was answered")
        longest = int(2 ** draw.uniform(0, 9))
        count = draw.randint(1, max(1, min(32, 2048 // longest)))
        self.answer(engine, [draw.randint(1, longest) for _ in range(count)], draw)

    def answer(self, engine: Any, lengths: list[int], draw: random.Random) -> None:
        """A batch of inputs of so many words each."""
        batch: list[Any] = [" ".join(draw.choices(WORDS, k=length)) for length in lengths]
        if engine.task == "question-answering":
            batch = [("Which boat?", text) for text in batch]
        if engine.task == "fill-mask":
            batch = [f"[MASK] {text}" for text in batch]
        if engine.task == "next-sentence":
            batch = [(text, "It is a boat.") for text in batch]
        assert len(engine.predict(batch, on_error="return")) == len(batch)
        self.counts["batches"] += 1

    def fill(self, engine: Any) -> None:
        """The largest batch in as many threads as there will be, at once: an engine keeps the
        memory of each call at a time, and what is needed at most is there from the beginning."""
        together = threading.Barrier(CALLERS + 1)

        def run(seed: int) -> None:
            together.wait()
            self.answer(engine, [512] * 4, random.Random(seed))

        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(CALLERS + 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def caller(self, engines: list[Any], draw: random.Random) -> None:
        self.predict(draw.choice(engines), draw)

    def churn(self, draw: random.Random) -> None:
        """Load, pickle, and close under a call."""
        from bertrt import BertrtError

        engine = self.load(draw.choice(self.paths), draw.choice(PRECISIONS))
        with engine, pickle.loads(pickle.dumps(engine)) as other:
            self.predict(other, draw)
            self.counts["engines pickled"] += 1
            started = threading.Event()

            def run() -> None:
                started.set()
                with suppress(BertrtError):  # which says that it is closed
                    while True:
                        self.predict(engine, random.Random(0))

            thread = threading.Thread(target=run)
            thread.start()
            started.wait()
            time.sleep(draw.uniform(0, 0.05))
            engine.close()
            thread.join()

    def main_thread(self, engines: list[Any], draw: random.Random) -> None:
        """An interrupted call; in one of ten turns a forked child."""
        if draw.random() < 0.1:
            self.fork(draw)
        engine = draw.choice(engines)
        timer = threading.Timer(draw.uniform(0, 0.02), os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            self._may_interrupt = True
            for _ in range(20):
                self.predict(engine, draw)
        except Interrupted:
            self.counts["calls interrupted"] += 1
        finally:
            self._may_interrupt = False
        timer.join()

    def fork(self, draw: random.Random) -> None:
        """A child predicts on an engine of the parent's, and must end."""
        with self.load(draw.choice(self.paths), "fp32") as engine:
            expected = engine.run([[1, 2, 3]])
            child = os.fork()
            if child == 0:
                status = 1
                with suppress(BaseException):
                    found = engine.run([[1, 2, 3]])
                    status = int(any((found[k][0] != expected[k][0]).any() for k in expected))
                os._exit(status)
            end = time.monotonic() + CHILD_SECONDS
            while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
                if time.monotonic() > end:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    raise AssertionError(f"a child hung for {CHILD_SECONDS:.0f} seconds")
                time.sleep(0.01)
            if ended[1] != 0:
                raise AssertionError(f"a child ended with the status {ended[1]}")
            self.counts["children"] += 1

    # --- the run ---------------------------------------------------------------------------------

    def run(self, log: Any) -> dict[str, Any]:
        signal.signal(signal.SIGINT, self._interrupt)
        for path in self.paths:  # so that what is made once is there: modules, shared threads
            for precision in PRECISIONS:
                with self.load(path, precision) as engine:
                    self.predict(engine, random.Random(1))
        gc.collect()
        before = sample()
        engines = [self.load(path, each) for path in self.paths for each in PRECISIONS]
        for engine in engines:
            self.fill(engine)
        self._began, self._used = time.monotonic(), time.process_time()
        threads = [
            threading.Thread(target=self._loop, args=(self.caller, engines, random.Random(seed)))
            for seed in range(CALLERS)
        ]
        threads.append(threading.Thread(target=self._loop, args=(self.churn, random.Random(9))))
        samples: list[Kept] = []
        threads.append(threading.Thread(target=self._sample, args=(samples, log)))
        for thread in threads:
            thread.start()
        self._loop(self.main_thread, engines, random.Random(8))
        for thread in threads:
            thread.join()
        for engine in engines:
            engine.close()
        del engines, engine
        # What a destructor lets go of may be the next collection's.
        for _ in range(9):
            if not gc.collect():
                break
        after = sample()
        trim()
        return {**self.verdict(samples, before, after), "trimmed": sample()["rss"]}

    def _interrupt(self, number: int, frame: Any) -> None:
        if self._may_interrupt:
            self._may_interrupt = False
            raise Interrupted

    def _loop(self, step: Callable[..., None], *arguments: Any) -> None:
        end = self._began + 60 * self.minutes
        while time.monotonic() < end and not self._stop.is_set():
            try:
                step(*arguments)
            except Interrupted:  # just before it was told not to
                self.counts["calls interrupted"] += 1
            except BaseException:
                self.faults.append(traceback.format_exc())
                self._stop.set()
            # Together they take no more than their cores.
            used = time.process_time() - self._used
            ahead = used / self.cores - (time.monotonic() - self._began)
            self._stop.wait(min(max(ahead, 0.0), 5.0))

    def _sample(self, samples: list[Kept], log: Any) -> None:
        while not self._stop.wait(1.0):
            seconds = time.monotonic() - self._began
            if seconds > 60 * self.minutes:
                return
            # No more of it is kept than counts in the end: an hour of all of it is 4 MB.
            found = sample()
            samples.append(Kept(seconds, found["rss"], found["threads"], found["files"]))
            told = {"seconds": round(seconds, 2), **found, **self.counts}
            print(json.dumps(told), file=log, flush=True)

    def verdict(
        self, samples: list[Kept], before: dict[str, int], after: dict[str, int]
    ) -> dict[str, Any]:
        """Whether it held, and the figures that say so."""

        def memory(begin: float, end: float) -> float:
            """What is resident in the lowest tenth of the seconds between two minutes: without
            the engines and batches that come and go."""
            found = [s.rss for s in samples if begin * 60 <= s.seconds < end * 60]
            return statistics.quantiles(found, n=10)[0] if len(found) > 1 else 0.0

        settled, window = min(5.0, self.minutes / 12), min(10.0, self.minutes / 6)
        early = memory(settled, settled + window)
        late = memory(self.minutes - window, self.minutes)
        wrong = [fault.strip().splitlines()[-1] for fault in self.faults]
        if late - early > max(0.02 * early, 5e6):
            wrong.append(f"memory grew from {early / 1e6:.1f} to {late / 1e6:.1f} MB")
        wrong += [
            f"{name}: {before[name]} before, {after[name]} after"
            for name in ("threads", "files")
            if after[name] > before[name]
        ]
        return {
            "ok": not wrong and bool(samples),
            "wrong": wrong,
            "traces": self.faults,
            "memory": {"early": early, "late": late, "before": before["rss"], "end": after["rss"]},
            "settled": settled,
            "window": window,
            "most": {
                name: max((getattr(s, name) for s in samples), default=0)
                for name in ("rss", "threads", "files")
            },
            "before": before,
            "after": after,
            "counts": dict(self.counts),
        }


class _MallInfo(ctypes.Structure):
    """What glibc's mallinfo2 returns; the fields that are read."""

    _fields_ = [(f"field{i}", ctypes.c_size_t) for i in range(4)] + [
        ("mapped", ctypes.c_size_t),
        ("unused1", ctypes.c_size_t),
        ("unused2", ctypes.c_size_t),
        ("used", ctypes.c_size_t),
        ("unused3", ctypes.c_size_t),
        ("unused4", ctypes.c_size_t),
    ]


def allocated() -> int:
    """The bytes that malloc has given out; 0 where the C library does not tell."""
    tell = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if tell is None:
        return 0
    tell.restype = _MallInfo
    found = tell()
    return int(found.used + found.mapped)


def trim() -> None:
    """Have malloc give back what it keeps of freed memory, where the C library can."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def sample() -> dict[str, int]:
    """The process's resident bytes, those that are allocated, objects, threads and files."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    return {
        "rss": resident,
        "allocated": allocated(),
        # Python's own objects lie in memory that malloc knows nothing of.
        "objects": sys.getallocatedblocks(),
        "threads": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
    }


def plot(directory: Path) -> None:
    """Draw a log."""
    from bertrt.bench.plot import import_pyplot

    pyplot = import_pyplot()
    *samples, verdict = map(json.loads, (directory / "soak.jsonl").read_text().splitlines())
    minutes = [s["seconds"] / 60 for s in samples]
    figure, grid = pyplot.subplots(3, 1, figsize=(9, 6), sharex=True, layout="constrained")
    grid[0].plot(minutes, [s["rss"] / 1e6 for s in samples], linewidth=0.8, label="resident")
    grid[0].plot(minutes, [s["allocated"] / 1e6 for s in samples], linewidth=0.8, label="malloc")
    grid[0].legend(frameon=False)
    for axes, name in zip(grid[1:], ("threads", "files"), strict=True):
        axes.plot(minutes, [s[name] for s in samples], linewidth=0.8)
    for axes, label in zip(grid, ("MB", "threads", "files"), strict=True):
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
    grid[0].axvline(verdict["settled"], color="#999999", linestyle="--")
    grid[-1].set_xlabel("minutes")
    figure.suptitle(", ".join(f"{n:,} {what}" for what, n in verdict["counts"].items()), fontsize=9)
    figure.savefig(directory / "soak.png", dpi=120)


@contextmanager
def log_of(directory: Path) -> Iterator[Any]:
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "soak.jsonl", "w", encoding="utf-8") as log:
        yield log


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--cores", type=float, default=1.0, help="to take, of all together")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw the log that is there")
    arguments = parser.parse_args()
    if arguments.plot is not None:
        plot(arguments.plot)
        return 0
    if not arguments.models or arguments.out is None:
        parser.error("name a MODEL and --out")
    with log_of(arguments.out) as log:
        verdict = Soak(arguments.models, arguments.minutes, arguments.cores).run(log)
        print(json.dumps(verdict), file=log)
    print(json.dumps({k: v for k, v in verdict.items() if k != "traces"}, indent=1))
    for trace in verdict["traces"]:
        print(trace, file=sys.stderr)
    try:
        plot(arguments.out)
    except ImportError as error:
        print(f"no plot: {error}", file=sys.stderr)
    return 0 if verdict["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
