"""What the scheduler costs a lone caller and gains many, and what two engines do to each other.

    python benchmarks/batching.py MODEL [--threads 64] [--seconds 5] [--only lone many engines]

Prints, for this version or an older one (put its directory before PYTHONPATH):

- lone: a caller's time for one text, by `predict` and by `submit(...).result()`, in turn.
- many: texts a second that threads get who ask for one short text after the other, and a list.
- engines: sequences a second of two engines with two threads each that run at once, each 1 x 64.

A second counts twice: on the clock, and of processor time, which other programs on the machine
disturb less.
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bertrt import Engine

TEXT = "the boat was seen at sea near a small town where old people walk"


def once(call: Callable[[], Any]) -> float:
    """The microseconds of a call."""
    begun = time.perf_counter()
    call()
    return 1e6 * (time.perf_counter() - begun)


def together(calls: list[Callable[[], Any]], seconds: float) -> tuple[float, float]:
    """How often these are called a second, each by a thread again and again: on the clock, and of
    processor time."""
    done = [0] * len(calls)
    ends = time.perf_counter() + seconds

    def work(number: int) -> None:
        while time.perf_counter() < ends:
            calls[number]()
            done[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    begun, spent = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - begun), sum(done) / (time.process_time() - spent)


def lone(model: str) -> None:
    """See above."""
    with Engine.load(model) as engine:
        ways: dict[str, Callable[[], Any]] = {"predict": lambda: engine.predict(TEXT)}
        if hasattr(engine, "submit"):
            ways["submit"] = lambda: engine.submit(TEXT).result()
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(1000):
            for way, call in ways.items():
                times[way].append(once(call))
    for way, found in times.items():
        tenths = statistics.quantiles(found, n=10)
        print(f"lone     {way:8} p10 {tenths[0]:7.0f} us   p50 {tenths[4]:7.0f} us")


def many(model: str, threads: int, seconds: float) -> None:
    """See above."""
    draw = random.Random(7)
    texts = [" ".join(draw.choices(TEXT.split(), k=draw.randint(1, 6))) for _ in range(500)]
    with Engine.load(model) as engine:
        engine.predict(texts[:8])

        def ask() -> None:
            engine.predict(draw.choice(texts))

        for count in sorted({1, 2, threads}):
            clock, processor = together([ask] * count, seconds)
            print(f"many     {count:3} threads   {clock:7.0f} texts/s   {processor:7.0f} a cpu s")
        clock, processor = together([lambda: engine.predict(texts)], seconds)
        print(
            f"many     a list of 500  {500 * clock:7.0f} texts/s  {500 * processor:7.0f} per cpu s"
        )


def engines(model: str, seconds: float) -> None:
    """See above."""
    ids = np.random.default_rng(7).integers(1000, 2000, (1, 64))
    with Engine.load(model, threads=2) as one, Engine.load(model, threads=2) as other:
        for loaded in ([one], [one, other]):
            for engine in loaded:
                engine.run(ids)
            clock, processor = together([lambda e=e: e.run(ids) for e in loaded], seconds)
            print(
                f"engines  {len(loaded)} at once    {clock:7.1f} seqs/s    {processor:7.1f} a cpu s"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--only", nargs="+", default=["lone", "many", "engines"])
    chosen = parser.parse_args()
    if "lone" in chosen.only:
        lone(chosen.model)
    if "many" in chosen.only:
        many(chosen.model, chosen.threads, chosen.seconds)
    if "engines" in chosen.only:
        engines(chosen.model, chosen.seconds)


if __name__ == "__main__":
    main()
