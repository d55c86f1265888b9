"""The servers that are measured: how each is started, and held while another one is."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

__all__ = ["Server", "bertrt", "command", "environment", "fastapi", "infinity"]

HERE = Path(__file__).parent


class Server:
    """A server's process.

    Attributes:
        name: what the report calls it.
        port: where it listens.
        path: of its route for embeddings.
        command: how it was started.
    """

    path = "/v1/embeddings"

    def __init__(
        self, name: str, command: list[str], port: int, ready: str, log: Path | None = None
    ) -> None:
        self.name, self.port, self.command = name, port, command
        with open(log or os.devnull, "wb") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, env=environment(command[0])
            )
        end = time.monotonic() + 180
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"{name} ended: {' '.join(command)}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=5):
                    return
            except OSError:
                if time.monotonic() > end:
                    self.process.kill()
                    raise RuntimeError(f"{name} is not ready within 180 s") from None
                time.sleep(0.1)

    def hold(self) -> None:
        """Stop it where it is, so that another one has the machine."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        self.process.send_signal(signal.SIGCONT)

    def cpu(self) -> float:
        """Seconds that it has computed."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def status(self, name: str) -> int:
        """A number of /proc/PID/status: VmRSS in kB, Threads."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
        raise KeyError(name)

    def files(self) -> int:
        """Its open file descriptors."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def end(self, seconds: float = 60) -> int:
        """Ask it to stop; its exit status."""
        self.go_on()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: Any) -> None:
        self.end()


def command() -> str:
    """What was called, without the places that things have on this machine."""
    script, *given = sys.argv
    shown = [Path(one).name if os.path.isabs(one) else one for one in given]
    return f"python benchmarks/serve/{Path(script).name} {' '.join(shown)}"


def environment(python: str) -> dict[str, str]:
    """For an interpreter: another one's packages are not its own."""
    own = os.path.dirname(python) == os.path.dirname(sys.executable)
    return {name: value for name, value in os.environ.items() if own or name != "PYTHONPATH"}


def _port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def bertrt(python: str, model: str, *more: str, log: Path | None = None) -> Server:
    """This project's, without a cache; `more` are options of `bertrt serve`."""
    port = _port()
    command = [python, "-m", "bertrt", "serve", f"model={model}", "--port", str(port)]
    return Server("bertrt", [*command, "--cache-mb", "0", *more], port, "/health/ready", log)


def infinity(python: str, model: str) -> Server:
    """infinity-emb with its PyTorch engine."""
    port = _port()
    script = str(Path(python).with_name("infinity_emb"))
    command = [script, "v2", "--model-id", model, "--served-model-name", "model"]
    command += ["--engine", "torch", "--device", "cpu", "--url-prefix", "/v1"]
    command += ["--no-model-warmup", "--port", str(port), "--host", "127.0.0.1"]
    return Server("infinity", command, port, "/health")


def fastapi(python: str, model: str) -> Server:
    """sentence-transformers behind FastAPI."""
    port = _port()
    command = [python, str(HERE / "peer_fastapi.py"), model, str(port)]
    return Server("sentence-transformers, FastAPI", command, port, "/openapi.json")
