"""Latency of the backends on the same ragged batches, each in a process of its own.

    python benchmarks/bench_latency.py BUNDLE [--texts FILE] [--batch 32] [--threads 2]
        [--backends native native:bf16 native:int8 onnxruntime mxnet]

The processes take turns, batch by batch, so that a machine that slows down slows all of them.
Before a turn the others' threads get time to stop spinning, and the batch runs once untimed. No
time is printed before the outputs of every backend were compared with those of the native one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import platform
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from bertrt import BertrtError, Engine, MissingDependencyError
from bertrt.backends.base import BACKENDS
from bertrt.cores import usable_cores

# onnxruntime's threads go on looking for work after a run: whoever runs next has half a machine.
SETTLE_S = 0.1

# On outputs of magnitude 1: a wrong run is far beyond, rounding far below.
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-1, "int8": 3e-1}

SENTENCES = [
    "Good morning!",
    "The ferry leaves at nine and comes back before dark.",
    "Nobody had expected the committee to agree within a week, least of all its chair.",
    "Please send the signed form together with a copy of your passport, the receipt of the payment "
    "and two recent photographs to the address printed on the back of this letter.",
    "Is it going to rain tomorrow?",
    "She plays the cello in an orchestra that meets on Thursdays, and on most other evenings she "
    "can be found in her workshop, where old clocks wait for new springs and new owners, and where "
    "the radio has been tuned to the same station for as long as anybody can remember.",
]


def split(backend: str) -> tuple[str, str]:
    """A backend and its precision: "native:bf16" -> ("native", "bf16")."""
    name, _, precision = backend.partition(":")
    return name, precision or "fp32"


def serve(pipe: Connection, bundle: str, backend: str, threads: int) -> None:
    """One backend: loads, then answers each batch with (seconds, outputs)."""
    name, precision = split(backend)
    try:
        start = time.perf_counter()
        engine = Engine.load(bundle, backend=name, precision=precision, threads=threads)
        pipe.send({"load": time.perf_counter() - start, "explain": engine.explain()})
    except BertrtError as error:
        pipe.send(error)
        return
    while (batch := pipe.recv()) is not None:
        engine.run(*batch)
        start = time.perf_counter()
        outputs = engine.run(*batch)
        pipe.send((time.perf_counter() - start, {k: np.asarray(v) for k, v in outputs.items()}))


def cpu_name() -> str:
    """The CPU as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


class Worker:
    """A backend's process."""

    def __init__(self, bundle: str, backend: str, threads: int) -> None:
        context = mp.get_context("spawn")
        self.backend = backend
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, bundle, backend, threads))
        self._process.start()
        theirs.close()
        self.ready = self._pipe.recv()

    def run(self, batch: tuple[np.ndarray, ...]) -> tuple[float, dict[str, np.ndarray]]:
        self._pipe.send(batch)
        return self._pipe.recv()

    def close(self) -> None:
        if not isinstance(self.ready, BertrtError):
            self._pipe.send(None)
        self._process.join()


def padded(encodings: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, token types and valid lengths as (batch, seq), (batch, seq), (batch,)."""
    lengths = np.array([len(e.ids) for e in encodings], np.int32)
    ids, types = np.zeros((2, len(lengths), lengths.max()), np.int32)
    for row, encoding in enumerate(encodings):
        ids[row, : lengths[row]] = encoding.ids
        types[row, : lengths[row]] = encoding.types
    return ids, types, lengths


def compare(
    bundle: str,
    batches: list[tuple[np.ndarray, ...]],
    *,
    backends: list[str],
    threads: int,
    repeats: int,
) -> dict:
    """Times `backends` on `batches`; returns what was measured, JSON-ready."""
    workers = [Worker(bundle, backend, threads) for backend in backends]
    try:
        missing = {w.backend: str(w.ready) for w in workers if isinstance(w.ready, BertrtError)}
        for worker in workers:
            ready = worker.ready
            if isinstance(ready, BertrtError) and not isinstance(ready, MissingDependencyError):
                raise ready
        active = [w for w in workers if w.backend not in missing]
        times: dict[str, list[float]] = {w.backend: [] for w in active}
        worst: dict[str, float] = {w.backend: 0.0 for w in active}
        for _ in range(repeats):
            for batch in batches:
                reference = None
                for worker in active:
                    time.sleep(SETTLE_S)
                    seconds, outputs = worker.run(batch)
                    reference = reference or outputs
                    for name, expected in reference.items():
                        scale = max(1.0, float(np.abs(expected).max()))
                        difference = float(np.abs(outputs[name] - expected).max()) / scale
                        worst[worker.backend] = max(worst[worker.backend], difference)
                    times[worker.backend].append(seconds)
    finally:
        for worker in workers:
            worker.close()
    wrong = {n: value for n, value in worst.items() if not value <= TOLERANCE[split(n)[1]]}
    if wrong:
        raise SystemExit(f"outputs differ by {wrong}, more than {TOLERANCE}: no times to report")
    return {
        "machine": f"{cpu_name()}, {threads} threads",
        "tokens": int(sum(batch[2].sum() for batch in batches)),
        "padded_tokens": int(sum(batch[0].size for batch in batches)),
        "sequences": int(sum(len(batch[2]) for batch in batches)),
        "backends": {
            w.backend: {
                "load_s": w.ready["load"],
                "p50_ms": statistics.median(times[w.backend]) * 1e3,
                "best_ms": min(times[w.backend]) * 1e3,
                "total_s": sum(times[w.backend]) / repeats,
                "largest_difference": worst[w.backend],
            }
            for w in active
        },
        "not_installed": missing,
    }


def table(result: dict) -> str:
    """What `compare` measured, for people."""
    rows = result["backends"]
    native = rows["native"]["total_s"]
    lines = [
        f"{'backend':<12} {'load':>8} {'median':>10} {'seq/s':>8} {'time':>7} {'difference':>11}"
    ]
    for name, row in rows.items():
        lines.append(
            f"{name:<12} {row['load_s']:>6.2f} s {row['p50_ms']:>7.2f} ms "
            f"{result['sequences'] / row['total_s']:>8.0f} {row['total_s'] / native:>6.2f}x "
            f"{row['largest_difference']:>11.1e}"
        )
    lines += [f"{name:<12} not installed" for name in result["not_installed"]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--texts", type=Path, help="a file with a text per line; tabs split pairs")
    parser.add_argument("--batch", type=int, default=32, help="texts a batch")
    parser.add_argument("--batches", type=int, default=8, help="batches to time")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--backends",
        nargs="+",
        default=list(BACKENDS),
        choices=[*BACKENDS, "native:bf16", "native:int8"],
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if "native" not in args.backends:
        parser.error("--backends must name native: the others are compared with it")

    texts: list = SENTENCES * (args.batch * args.batches // len(SENTENCES) + 1)
    if args.texts:
        lines = [line for line in args.texts.read_text("utf-8").split("\n") if line.strip()]
        texts = [tuple(line.split("\t")[:2]) if "\t" in line else line for line in lines]
    with Engine.load(args.bundle, threads=args.threads) as engine:
        batches = [
            padded(engine.tokenize(texts[start : start + args.batch]))
            for start in range(0, min(len(texts), args.batch * args.batches), args.batch)
        ]
    result = compare(
        str(args.bundle),
        batches,
        backends=["native", *(b for b in args.backends if b != "native")],
        threads=args.threads,
        repeats=args.repeats,
    )
    if args.json:
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        print(
            f"{result['sequences']} texts in batches of {args.batch}: {result['tokens']} tokens, "
            f"{result['padded_tokens']} with padding; {result['machine']}\n"
        )
        print(table(result))


if __name__ == "__main__":
    main()
