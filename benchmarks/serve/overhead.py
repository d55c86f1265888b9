"""What the server itself costs a request: its processor time where the engine computes nothing.

    python benchmarks/serve/overhead.py MODEL [--callers 1 64] [--seconds 4] [--rounds 3]

MODEL is one of embeddings. The engine waits as long as its tokens would take, and gives ones. So
what is left is HTTP, JSON, tokenization and the scheduler, as microseconds of processor time, which
other programs on the machine disturb less than they do rates: of all threads, and of the one that
has the event loop. The least of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import load
import servers
import texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--seconds", type=float, default=4.0, help="of a round; default: 4")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--token-us", type=float, default=112.0, help="default: 112")
    given = parser.parse_args()
    requests = [
        load.request(
            "/v1/embeddings", json.dumps({"input": text, "encoding_format": "base64"}).encode()
        )
        for text in texts.like_sst2(2048)
    ]
    port = servers._port()
    command = [sys.executable, __file__, "--serve", str(given.token_us)]
    command += [f"model={given.model}", "--port", str(port), "--cache-mb", "0"]
    with servers.Server("bertrt", command, port, "/health/ready") as server:
        load.callers(port, requests, 8, 0.5)
        for count in given.callers:
            found = [_round(server, requests, count, given.seconds) for _ in range(given.rounds)]
            whole, loop = (min(column) for column in zip(*found, strict=True))
            print(f"{count:4} callers: {whole:5.0f} us a request, {loop:5.0f} of the event loop")


def _round(
    server: servers.Server, requests: list[bytes], count: int, seconds: float
) -> tuple[float, float]:
    before = _spent(server.process.pid)
    outcome = load.callers(server.port, requests, count, seconds)
    after = _spent(server.process.pid)
    answered = outcome.statuses[200]
    assert dict(+outcome.statuses) == {200: answered}, outcome.statuses
    return tuple((b - a) / answered for a, b in zip(before, after, strict=True))  # type: ignore[return-value]


def _spent(process: int) -> tuple[float, float]:
    """Microseconds that all threads have computed that live, and the first one alone."""
    spent = {
        thread.name: int((thread / "schedstat").read_text().split()[0]) / 1e3
        for thread in Path(f"/proc/{process}/task").iterdir()
    }
    return sum(spent.values()), spent[str(process)]


def serve(token_us: float, arguments: list[str]) -> int:
    """`bertrt serve` on an engine that computes nothing."""
    import numpy as np

    from bertrt.backends.native import NativeBackend
    from bertrt.commands.main import main

    run = NativeBackend.run
    widths: dict[str, Any] = {}

    def wait(self: NativeBackend, batch: Any, outputs: Any) -> dict[str, np.ndarray]:
        if not all(name in widths for name in outputs):
            widths.update(
                {name: rows.shape[1:] for name, rows in run(self, batch, outputs).items()}
            )
        tokens = len(batch.token_ids)
        time.sleep(tokens * token_us / 1e6)
        return {name: np.ones((tokens, *widths[name]), np.float32) for name in outputs}

    NativeBackend.run = wait  # type: ignore[method-assign]
    return main(["serve", *arguments])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        os._exit(serve(float(sys.argv[2]), sys.argv[3:]))
    main()
