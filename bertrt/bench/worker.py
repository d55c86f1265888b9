"""An engine in a process of its own."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.bench.engines import ENGINES, Name
from bertrt.bench.engines.base import Inputs
from bertrt.bench.workloads import calibration
from bertrt.errors import BertrtError, MissingDependencyError

__all__ = ["EngineError", "Started", "Worker", "convert", "wait_until_idle"]

# Longer than any answer; a process that hangs is ended.
_TIMEOUT = 900.0

# A turn of a fast engine is as many runs as fit in here, so that a percentile means something.
_TURN_SECONDS = 0.05
_TURN_RUNS = 50

# In the directory of an engine: what its library printed.
_LOG = "log"


class EngineError(BertrtError):
    """An engine failed, or its process did."""


@dataclass(frozen=True)
class Started:
    """What is known when an engine has given its first answer.

    Attributes:
        provider: library and version, or instruction set.
        seconds: from the start of the process, interpreter and imports included.
        memory: the most memory that was resident until then, in bytes.
    interpreter: what of it was there before the engine's library was imported: Python, numpy and
        bertrt.
    """

    provider: str
    seconds: float
    memory: int
    interpreter: int


class Worker:
    """The process of an engine. Every method raises EngineError where the engine fails, and
    MissingDependencyError where it is not installed."""

    def __init__(
        self, path: Path, name: Name, threads: int, directory: Path, first: Inputs
    ) -> None:
        """Start an engine, and have `first` answered. `directory` is where `convert` wrote."""
        self.name = name
        begin = time.perf_counter()
        self._start(directory, _serve, str(path), name, threads)
        try:
            self._send(first)
            provider, memory, interpreter = self._receive()
        except BertrtError:
            self.close()
            raise
        self.started = Started(provider, time.perf_counter() - begin, memory, interpreter)

    def _start(self, directory: Path, target: Any, path: str, name: Name, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._log = directory / _LOG
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_guard,
            args=(theirs, target, ENGINES[name[0]][0], path, name, str(directory), *arguments),
            daemon=True,
        )
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process.pid is not None
        return self._process.pid

    def run(self, batches: tuple[Inputs, ...]) -> tuple[list[float], list[dict[str, np.ndarray]]]:
        """Run batches, once untimed and then at least once timed.

        Returns:
            The seconds of each timed run, all batches together; and the outputs of each batch.
        """
        self._send(batches)
        return self._receive()

    def memory(self) -> int:
        """The most memory that was ever resident, in bytes."""
        self._send(None)
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(5.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _send(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            raise EngineError(self._end()) from None

    def _receive(self) -> Any:
        try:
            if not self._pipe.poll(_TIMEOUT):
                self._process.kill()
                raise EngineError(f"gave no answer in {_TIMEOUT:.0f} seconds")
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise EngineError(self._end()) from None
        if isinstance(answer, BertrtError):
            raise answer
        return answer

    def _end(self) -> str:
        self._process.join(5.0)
        status = self._process.exitcode
        text = self._log.read_text("utf-8", "replace") if self._log.exists() else ""
        said = next(
            (f": {line.strip()}" for line in reversed(text.split("\n")) if line.strip()), ""
        )
        return f"its process ended with status {status}{said}"


def convert(path: Path, name: Name, directory: Path) -> float:
    """Make, in a process of its own, what an engine loads; the seconds that took. Raises as
    `Worker` does."""
    worker = Worker.__new__(Worker)
    begin = time.perf_counter()
    worker._start(directory, _convert, str(path), name)
    try:
        worker._receive()
    finally:
        worker.close()
    return time.perf_counter() - begin


def wait_until_idle(workers: list[Worker]) -> None:
    """Return when the processes have stopped computing: threads of OpenMP and of onnxruntime look
    for work for a while after a run, and would take half of the machine from whoever runs next."""
    for _ in range(40):
        before = [_cpu_ticks(worker.pid) for worker in workers]
        time.sleep(0.05)
        if [_cpu_ticks(worker.pid) for worker in workers] == before:
            return


def _cpu_ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])  # user and system time (man 5 proc)


# In the engine's process


def _guard(
    pipe: Connection,
    target: Any,
    module: str,
    path: str,
    name: Name,
    directory: str,
    *arguments: Any,
) -> None:
    """Run a target, with what libraries print kept from the terminal."""
    log = Path(directory) / _LOG
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        target(pipe, module, path, name, directory, *arguments)
    except MissingDependencyError as error:
        pipe.send(error)
    except ImportError as error:
        pipe.send(MissingDependencyError(str(error)))
    # The libraries' exceptions share no base class but Exception, and many cannot be pickled.
    except Exception as error:
        text = " ".join(str(error).split())
        pipe.send(EngineError(f"{type(error).__name__}: {text[:300]}"))


def _convert(pipe: Connection, module: str, path: str, name: Name, directory: str) -> None:
    from bertrt.models.model import Model

    model = Model.open(path)
    importlib.import_module(module).convert(model, name[1], directory, calibration(model))
    pipe.send(None)


def _serve(
    pipe: Connection, module: str, path: str, name: Name, directory: str, threads: int
) -> None:
    interpreter = _peak_memory()
    # Read by OpenMP when the library is loaded.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    runner = importlib.import_module(module).load(path, *name, threads, directory)
    first = pipe.recv()
    runner.outputs(runner.run(runner.prepare(first)))
    pipe.send((runner.provider, _peak_memory(), interpreter))
    gc.freeze()
    while True:
        try:
            batches = pipe.recv()
        except EOFError:
            return
        if batches is None:
            pipe.send(_peak_memory())
            continue
        prepared = [runner.prepare(batch) for batch in batches]
        outputs = [
            {key: np.array(value) for key, value in runner.outputs(runner.run(each)).items()}
            for each in prepared
        ]
        seconds: list[float] = []
        gc.disable()
        while not seconds or (sum(seconds) < _TURN_SECONDS and len(seconds) < _TURN_RUNS):
            begin = time.perf_counter()
            for each in prepared:
                runner.run(each)
            seconds.append(time.perf_counter() - begin)
        gc.enable()
        pipe.send((seconds, outputs))


def _peak_memory() -> int:
    # Not getrusage, whose peak is what the parent had when it started the process.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
