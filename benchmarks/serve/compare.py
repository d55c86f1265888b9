"""The server beside others, and beside the engine alone.

    python benchmarks/serve/compare.py MODEL --infinity PYTHON --fastapi PYTHON [--texts FILE]

MODEL is a Hugging Face directory of all-MiniLM-L6-v2. PYTHON is an interpreter in whose environment
the peer is installed; a peer whose interpreter is not given is left out. The report goes to
benchmarks/results/serve.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import load
import numpy as np
import servers
import texts as made

CALLERS = (1, 8, 64, 256)
HALF = "half"
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--infinity", metavar="PYTHON")
    parser.add_argument("--fastapi", metavar="PYTHON")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="one a line, or SST-2's tsv")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn; default: 5")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serve"))
    given = parser.parse_args()

    sentences = made.like_sst2(2048) if given.texts is None else made.read(given.texts)
    workloads = {"SST-2": sentences, "long-tailed": made.long_tailed(2048)}
    spawn = get_context("spawn")
    with ExitStack() as stack:
        # The generator and the engine alone have a process each, which do nothing between turns.
        generator = stack.enter_context(ProcessPoolExecutor(1, spawn))
        alone = stack.enter_context(ProcessPoolExecutor(1, spawn, _load_engine, (given.model,)))
        started = [servers.bertrt(sys.executable, given.model)]
        stack.enter_context(started[0])
        for make, python in ((servers.infinity, given.infinity), (servers.fastapi, given.fastapi)):
            if python is not None:
                started.append(stack.enter_context(make(python, given.model)))
        for server in started:
            server.hold()
        bench = _Bench(generator, alone, started, given.seconds)
        for texts in workloads.values():
            bench.compare(texts)
        for turn in range(given.rounds):
            for name, texts in workloads.items():
                bench.turn(turn, name, texts)
        pythons = {"infinity": given.infinity, "sentence-transformers, FastAPI": given.fastapi}
        record = {
            "date": datetime.date.today().isoformat(),
            "machine": _machine(),
            "versions": {
                server.name: _versions(pythons.get(server.name) or sys.executable)
                for server in started
            },
            "command": servers.command(),
            "rounds": given.rounds,
            "seconds": given.seconds,
            "compared": bench.compared,
            "load_average": bench.averages,
            "workloads": {name: bench.summary(name) for name in workloads},
        }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "report.json").write_text(json.dumps(record, indent=1) + "\n")
    from report import write

    write(record, given.out)
    print((given.out / "README.md").read_text())


class _Bench:
    def __init__(
        self,
        generator: ProcessPoolExecutor,
        alone: ProcessPoolExecutor,
        started: Sequence[servers.Server],
        seconds: float,
    ) -> None:
        self.generator, self.alone = generator, alone
        self.started, self.seconds = started, seconds
        self.compared: dict[str, float] = {}
        self.averages: list[float] = []
        # By workload, server and point: what each turn gave.
        self.turns: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        self.engine: dict[str, list[tuple[float, float]]] = {}

    def run(self, what: Callable[..., load.Outcome], *arguments: Any, **more: Any) -> load.Outcome:
        return self.generator.submit(what, *arguments, **more).result()

    def compare(self, texts: Sequence[str]) -> None:
        """Answers first: times of wrong ones say nothing."""
        texts = texts[:400]
        expected = self.alone.submit(_predict, texts).result()
        requests = _requests(texts)
        for server in self.started:
            server.go_on()
            outcome = self.run(
                load.callers, server.port, requests, 64, 600, most=len(requests), keep=True
            )
            server.hold()
            assert dict(+outcome.statuses) == {200: len(texts)}, (server.name, outcome.statuses)
            worst = 1.0
            for i, vector in enumerate(expected):
                body = json.loads(outcome.bodies[i])["data"][0]["embedding"]
                found = np.frombuffer(base64.b64decode(body), "<f4")
                if server.name == "bertrt":
                    assert found.tobytes() == vector.tobytes(), f"other bits: {texts[i]!r}"
                norm = np.linalg.norm(found) * np.linalg.norm(vector)
                worst = min(worst, float(found @ vector / norm))
            assert worst > 0.999, f"{server.name}: a cosine of {worst}"
            self.compared[server.name] = min(worst, self.compared.get(server.name, 1.0))

    def turn(self, turn: int, workload: str, texts: Sequence[str]) -> None:
        """Every server once at every point, one server at a time, and the engine alone."""
        requests = _requests(texts)
        greatest = {server.name: 0.0 for server in self.started}
        for point in (*map(str, CALLERS), HALF):
            for server in self.started:
                server.go_on()
                self.run(load.callers, server.port, requests, 8, 0.5)
                before, began = server.cpu(), time.monotonic()
                if point == HALF:
                    rate = greatest[server.name] / 2
                    outcome = self.run(
                        load.at_rate, server.port, requests, rate, self.seconds, seed=turn
                    )
                else:
                    outcome = self.run(
                        load.callers, server.port, requests, int(point), self.seconds
                    )
                server.hold()
                count = outcome.statuses[200]
                assert dict(+outcome.statuses) == {200: count}, (server.name, outcome.statuses)
                greatest[server.name] = max(greatest[server.name], count / outcome.seconds)
                found = {
                    "times": outcome.times(),
                    "seconds": outcome.seconds,
                    "server_cpu": server.cpu() - before,
                    "generator_cpu": outcome.cpu,
                }
                self.turns.setdefault((workload, server.name, point), []).append(found)
                print(
                    f"{workload}, {server.name}, {point}: {count / outcome.seconds:.0f}/s, "
                    f"median {np.median(found['times']) * 1e3:.1f} ms",
                    f"({time.monotonic() - began:.0f} s)",
                    flush=True,
                )
        found = self.alone.submit(_alone, texts, self.seconds).result()
        self.engine.setdefault(workload, []).append(found)
        self.averages.append(round(os.getloadavg()[0], 2))
        print(f"{workload}, engine alone: {1 / found[0]:.0f}/s, {1 / found[1]:.0f}/s", flush=True)

    def summary(self, workload: str) -> dict[str, Any]:
        """All turns of a workload together."""
        found: dict[str, Any] = {}
        for server in self.started:
            own = found[server.name] = {}
            for point in (*map(str, CALLERS), HALF):
                turns = self.turns[workload, server.name, point]
                times = np.concatenate([turn["times"] for turn in turns])
                seconds = sum(turn["seconds"] for turn in turns)
                own[point] = {
                    "requests": len(times),
                    "rate": len(times) / seconds,
                    "rates": [len(turn["times"]) / turn["seconds"] for turn in turns],
                    **{f"p{p}": float(np.percentile(times, p)) * 1e3 for p in (50, 95, 99)},
                    "p99s": [float(np.percentile(turn["times"], 99)) * 1e3 for turn in turns],
                    "server_cpu_us": sum(turn["server_cpu"] for turn in turns) / len(times) * 1e6,
                    "generator_cpu_us": sum(turn["generator_cpu"] for turn in turns)
                    / len(times)
                    * 1e6,
                }
        whole, bare = np.mean(self.engine[workload], axis=0)
        found["engine"] = {"rate": 1 / whole, "rate_less_tokenization": 1 / bare}
        found["engine"]["rates"] = [1 / bare for _, bare in self.engine[workload]]
        return found


def _requests(texts: Sequence[str]) -> list[bytes]:
    bodies = ({"input": text, "model": "model", "encoding_format": "base64"} for text in texts)
    return [load.request("/v1/embeddings", json.dumps(body).encode()) for body in bodies]


# --- the engine alone, in a process of its own ---------------------------------------------------

_engine: Any = None


def _load_engine(model: str) -> None:
    global _engine
    from bertrt import Engine

    _engine = Engine.load(model)


def _predict(texts: Sequence[str]) -> list[np.ndarray]:
    """Each text alone."""
    return [_engine.predict([text])[0].vector for text in texts]


def _alone(texts: Sequence[str], seconds: float) -> tuple[float, float]:
    """Seconds a text in batches, with tokenization and without."""
    batches = [list(texts[i : i + BATCH]) for i in range(0, len(texts) - BATCH + 1, BATCH)]
    took = {}
    for method, share in ((_engine.predict, 0.8), (_engine.tokenize, 0.2)):
        method(batches[0])
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds * share or count % len(batches):
            method(batches[count % len(batches)])
            count += 1
        took[method.__name__] = (time.perf_counter() - began) / (count * BATCH)
    return took["predict"], took["predict"] - took["tokenize"]


def _machine() -> dict[str, Any]:
    from bertrt.host.machine import cpu_name

    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }


def _versions(python: str) -> dict[str, str]:
    code = (
        "import importlib.metadata as m, json, platform\n"
        "found = {'python': platform.python_version()}\n"
        "for name in ('bertrt', 'infinity-emb', 'sentence-transformers', 'torch', 'transformers',"
        " 'optimum', 'fastapi', 'uvicorn', 'starlette', 'uvloop', 'numpy'):\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    found: dict[str, str] = json.loads(
        subprocess.check_output([python, "-c", code], env=servers.environment(python))
    )
    return found


if __name__ == "__main__":
    main()
