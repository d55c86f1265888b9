"""Ten times more load than the server can carry, and its end under load.

    python benchmarks/serve/overload.py MODEL [--seconds 60] [--wait-seconds 1] [--out DIR]

First what it answers at most, and a lone caller's times. Then requests at ten times that rate, at
random times; what is answered, refused and lost, how fast it is refused, and memory and files once
a second. After them a lone caller again. Last, SIGTERM while 64 callers ask: every request that has
got a connection must be answered, with 200 or 503.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import load
import numpy as np
import servers
import texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload; default: 60")
    parser.add_argument("--times", type=float, default=10.0, help="what it carries; default: 10")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serve"))
    parser.add_argument("--wait-seconds", default="1", help="bertrt serve's option; default: 1")
    given = parser.parse_args()
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as generator,
        tempfile.TemporaryDirectory() as scratch,
    ):
        log = Path(scratch, "log")
        with servers.bertrt(
            sys.executable, given.model, "--wait-seconds", given.wait_seconds, log=log
        ) as server:
            found = _measure(given, generator, server)
        events = [json.loads(line) for line in log.read_bytes().splitlines()]
    found["faults"] = sum(own["event"] == "fault" for own in events)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "overload.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({**found, "memory_mb": found["memory_mb"][::10]}, indent=1))
    failed = [what for what, well in _checks(found).items() if not well]
    print("failed: " + ", ".join(failed) if failed else "all is well")
    sys.exit(bool(failed))


def _measure(
    given: argparse.Namespace, generator: ProcessPoolExecutor, server: servers.Server
) -> dict[str, Any]:
    requests = [
        load.request(
            "/v1/embeddings", json.dumps({"input": text, "encoding_format": "base64"}).encode()
        )
        for text in texts.like_sst2(50_000)
    ]

    def run(what: Any, *arguments: Any, **more: Any) -> load.Outcome:
        return generator.submit(what, server.port, *arguments, **more).result()

    run(load.callers, requests[:2000], 64, 2.0)
    carried = run(load.callers, requests, 64, 3.0)
    rate = carried.statuses[200] / carried.seconds
    alone = run(load.callers, requests, 1, 3.0)
    memory: list[float] = []
    files: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            memory.append(server.status("VmRSS") / 1024)
            files.append(server.files())

    watcher = threading.Thread(target=watch)
    watcher.start()
    overload = run(
        load.at_rate, requests, given.times * rate, given.seconds, connections=16_000, linger=60.0
    )
    over.set()
    watcher.join()
    after = run(load.callers, requests, 1, 1.0)
    stop = generator.submit(load.callers, server.port, requests, 64, 3.0, once=True)
    time.sleep(1.0)
    status = server.end()
    stopped = stop.result()
    accepted, refused = overload.times(200), overload.times(429) + overload.times(503)
    half = len(memory) // 2
    return {
        "command": servers.command(),
        "wait_seconds": given.wait_seconds,
        "carried_per_second": rate,
        "sent_per_second": sum(overload.statuses.values()) / given.seconds,
        "seconds": given.seconds,
        "statuses": {str(key): value for key, value in overload.statuses.items() if value},
        "retry_after": overload.retry_after,
        "last_answer_after": max(own[2] + own[3] for own in overload.done) - given.seconds,
        "answered_per_second": len(accepted) / overload.seconds,
        "answered_ms": _percentiles(accepted),
        "refused_ms": _percentiles(refused),
        "alone_ms": _percentiles(alone.times()),
        "after_ms": _percentiles(after.times()),
        "memory_mb": [round(own, 1) for own in memory],
        "memory_grows_mb": max(memory[half:]) - max(memory[: half or 1]),
        "most_files": max(files),
        "sigterm_statuses": {str(key): value for key, value in stopped.statuses.items() if value},
        "sigterm_exit": status,
        "generator_cpu_us": overload.cpu / max(1, len(overload.done)) * 1e6,
    }


def _percentiles(times: list[float]) -> dict[str, float]:
    if not times:
        return {}
    return {f"p{p}": round(float(np.percentile(times, p)) * 1e3, 3) for p in (50, 95, 99, 100)}


def _checks(found: dict[str, Any]) -> dict[str, bool]:
    """What must be so."""
    refusals = sum(found["statuses"].get(status, 0) for status in ("429", "503"))
    return {
        "every request is answered with 200, 429 or 503": set(found["statuses"])
        <= {"200", "429", "503"},
        "every refusal says when to ask again": refusals == found["retry_after"],
        "memory is flat": found["memory_grows_mb"] < 20,
        "a lone caller's median afterwards": found["after_ms"]["p50"]
        < 2 * found["alone_ms"]["p50"] + 5,
        "no fault": found["faults"] == 0,
        "SIGTERM loses nothing": set(found["sigterm_statuses"]) <= {"200", "503"},
        "SIGTERM's exit status": found["sigterm_exit"] == 0,
    }


if __name__ == "__main__":
    main()
