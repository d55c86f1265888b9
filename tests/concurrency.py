"""Threads that load, run, share, close and pickle engines, for some seconds: every answer has to be
the one that a thread alone gets.

    python tests/concurrency.py [SECONDS]

`make sanitize` runs it on an extension that is built for the thread sanitizer, whose reports make
the exit status 66.
"""

from __future__ import annotations

import argparse
import pickle
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

THREADS = 8
PRECISIONS = ("fp32", "bf16", "int8")


class Stress:
    """What the threads share, and what they do."""

    def __init__(self, directory: Path) -> None:
        from conftest import HuggingFace

        from bertrt import Engine

        made = HuggingFace(directory)
        modules = made.modules("Transformer", "Pooling")
        self.paths = [made.write(name=name, pooling=made.pooling, modules=modules) for name in "ab"]
        self.texts = ["the boat", "the cafe the sea", "boats"] * 3
        # More than a part of a batch holds, and less than a part.
        self.ids = [np.arange(rows * 16).reshape(rows, 16) % 30 for rows in (5, 300)]
        self.load_engine = Engine.load
        self.expected: dict[str, list[bytes]] = {}
        for precision in PRECISIONS:
            with Engine.load(self.paths[0], precision=precision, threads=1) as engine:
                self.expected[precision] = self.answers(engine)
        self.shared = [self.load(random.Random(i)) for i in range(3)]
        self.done: Counter[str] = Counter()
        self.failures: list[BaseException] = []
        self.actions: list[Callable[[random.Random], Any]] = [
            *(self.run_alone, self.run_shared, self.run_shared, self.replace, self.copy),
            *(self.look, self.submit),
        ]

    def answers(self, engine: Any) -> list[bytes]:
        found = [engine.run(ids)["pooled_output"].tobytes() for ids in self.ids]
        return found + [result.vector.tobytes() for result in engine.predict(self.texts)]

    def check(self, engine: Any) -> None:
        precision = engine.precision
        assert self.answers(engine) == self.expected[precision], f"other bits in {precision}"

    def load(self, draw: random.Random) -> Any:
        return self.load_engine(
            draw.choice(self.paths), precision=draw.choice(PRECISIONS), threads=draw.randint(1, 3)
        )

    def run_alone(self, draw: random.Random) -> None:
        """An engine of the thread's own."""
        with self.load(draw) as engine:
            self.check(engine)

    def run_shared(self, draw: random.Random) -> None:
        """One that others use and close meanwhile."""
        from bertrt import BertrtError

        try:
            self.check(draw.choice(self.shared))
        except BertrtError as error:
            assert "closed" in str(error), error

    def submit(self, draw: random.Random) -> None:
        """To the scheduler of one that others use and close meanwhile, and cancel some of it."""
        from bertrt import BertrtError

        engine = draw.choice(self.shared)
        try:
            expected = self.expected[engine.precision][len(self.ids) :]
            sent = [engine.submit(self.texts, priority=draw.randint(-9, 9)) for _ in range(4)]
            late = engine.submit(self.texts, deadline=0)
            cancelled = sent.pop().cancel()
            for one in sent:
                assert [result.vector.tobytes() for result in one.result(300)] == expected
            assert isinstance(late.exception(300), BertrtError) and cancelled in (True, False)
        except BertrtError as error:
            assert "closed" in str(error), error

    def replace(self, draw: random.Random) -> None:
        """Close what others are using."""
        place = draw.randrange(len(self.shared))
        before, self.shared[place] = self.shared[place], self.load(draw)
        before.close(timeout=300)

    def copy(self, draw: random.Random) -> None:
        """By pickle, and left to be collected."""
        from bertrt import BertrtError

        try:
            content = pickle.dumps(draw.choice(self.shared))
        except BertrtError:
            return
        self.check(pickle.loads(content))

    def look(self, draw: random.Random) -> None:
        """What an engine says of itself."""
        from bertrt import BertrtError

        engine = draw.choice(self.shared)
        try:
            assert f"threads    {engine.threads}\n" in engine.explain()
        except BertrtError as error:
            assert "closed" in str(error), error

    def work(self, seed: int, end: float) -> None:
        """One thread's turn."""
        draw = random.Random(seed)
        try:
            while time.monotonic() < end and not self.failures:
                action = draw.choice(self.actions)
                action(draw)
                self.done[action.__name__] += 1
        except BaseException as error:
            self.failures.append(error)


def stress(seconds: float, directory: Path) -> Counter[str]:
    """How often each action was done. Raises what an action raised."""
    shared = Stress(directory)
    end = time.monotonic() + seconds
    threads = [threading.Thread(target=shared.work, args=(i, end)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if shared.failures:
        raise shared.failures[0]
    for engine in shared.shared:
        engine.close()
    return shared.done


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=60)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as directory:
        done = stress(options.seconds, Path(directory))
    print(", ".join(f"{name} {count}" for name, count in sorted(done.items())))


if __name__ == "__main__":
    main()
