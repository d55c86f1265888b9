"""SIGTERM ends the server within its time, and a second one at once, whatever it does."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

# Loads of these servers never end, as one from a disk that does not answer.
_NEVER = """
import time
from bertrt.serve.models import Models
def _load(self, place):
    time.sleep(1000)
Models._load = _load
"""


@pytest.fixture
def never_loads(tmp_path: Path) -> dict[str, str]:
    """An environment in which a server's loads never end."""
    (tmp_path / "sitecustomize.py").write_text(_NEVER)
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), *([before] if before else [])])}


def events(server) -> list[str]:
    return [line["event"] for line in server.log]


def until(server, event: str) -> None:
    end = time.monotonic() + 60
    while event not in events(server):
        assert time.monotonic() < end, server.log
        time.sleep(0.01)


def ask(server, path: str) -> threading.Thread:
    def ask() -> None:
        with contextlib.suppress(OSError):
            server.post(path, {})

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


@pytest.mark.parametrize("grpc", [False, True])
def test_an_end_while_it_loads_at_the_start(start, models, never_loads, grpc: bool) -> None:
    more = ("--grpc-port", "0") if grpc else ()
    server = start(
        f"m={models['tagger']}",
        *("--drain-seconds", "0.5"),
        *more,
        ready=False,
        environment=never_loads,
    )
    until(server, "loading")
    server.process.terminate()
    assert server.process.wait(60) == 0
    server._reader.join(5)
    assert "not drained" in events(server) and not server.noise


def test_an_end_while_it_loads_for_a_request(start, models, never_loads) -> None:
    server = start(
        *("--repository", str(models["tagger"].parent), "--drain-seconds", "0.5"),
        ready=False,
        environment=never_loads,
    )
    thread = ask(server, f"/v2/repository/models/{models['tagger'].name}/load")
    until(server, "loading")
    server.process.terminate()
    assert server.process.wait(60) == 0
    thread.join()
    server._reader.join(5)
    assert [line.get("left") for line in server.log if line["event"] == "not drained"] == [1]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(start, models, never_loads, second) -> None:
    server = start(
        *(f"m={models['tagger']}", "--drain-seconds", "600"), ready=False, environment=never_loads
    )
    until(server, "loading")
    server.process.terminate()
    until(server, "draining")
    server.process.send_signal(second)
    assert server.process.wait(60) == 128 + second
