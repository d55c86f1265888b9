"""More than the server can do, and its end at work. Counts only: no time is measured."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import uvicorn

from bertrt.errors import QueueFull
from bertrt.serve.app import make_app
from bertrt.serve.backlog import Backlog
from bertrt.serve.http import BoundedProtocol
from bertrt.serve.settings import Settings


class Callers:
    """Threads that ask, each over a connection of its own, until they are refused or closed.

    Attributes:
        sent: requests.
        statuses: how many answers of each; "lost" for none.
        untold: refusals that do not say when to ask again.
        vectors: by text.
    """

    def __init__(self, server: Any, count: int, requests: int, *, stay: bool) -> None:
        self.sent = 0
        self.statuses: Counter[Any] = Counter()
        self.untold = 0
        self.vectors: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._server, self._requests, self._stay = server, requests, stay
        self.first = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(own,), daemon=True) for own in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()

    def _ask(self, own: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60)
        connection.connect()
        for i in range(self._requests):
            text = f"the text {own} {i} of a caller"
            with self._lock:
                self.sent += 1
            try:
                body = json.dumps({"batch": [text]})
                kind = {"content-type": "application/json"}
                connection.request("POST", "/models/embedder/predict", body, kind)
                answer = connection.getresponse()
                found = json.loads(answer.read())
            except (OSError, http.client.HTTPException):
                with self._lock:
                    self.statuses["lost"] += 1
                return
            with self._lock:
                self.statuses[answer.status] += 1
                if answer.status == 200:
                    self.vectors[text] = found["results"][0]["vector"]
                    self.first.set()
                else:
                    self.untold += answer.headers["retry-after"] is None
            if answer.headers["connection"] == "close":
                return
            if answer.status != 200 and not self._stay:
                return


def test_overload(start: Callable[..., Any], models: Any, engines: Any) -> None:
    server = start(f"embedder={models['embedder']}", "--queue", "2", "--cache-mb", "0")
    callers = Callers(server, 32, 20, stay=True)
    callers.join()
    assert set(callers.statuses) == {200, 429}, callers.statuses
    assert callers.statuses.total() == callers.sent == 32 * 20
    assert callers.untold == 0
    for text, vector in callers.vectors.items():
        np.testing.assert_array_equal(
            np.float32(vector), engines["embedder"].predict([text])[0].vector
        )
    status, _, _ = server.post("/models/embedder/predict", {"batch": ["and a text after it"]})
    assert status == 200
    assert not [line for line in server.log if line["event"] == "fault"]


def test_end_under_load(start: Callable[..., Any], models: Any) -> None:
    server = start(f"embedder={models['embedder']}", "--cache-mb", "0")
    callers = Callers(server, 16, 100_000, stay=False)
    assert callers.first.wait(60)
    assert server.stop() == 0
    callers.join()
    assert set(callers.statuses) <= {200, 503}, callers.statuses
    assert callers.statuses.total() == callers.sent
    assert callers.untold == 0


def test_what_would_wait_too_long_is_refused() -> None:
    now = 0.0
    backlog = Backlog(10.0, clock=lambda: now)
    # One alone tells nothing of the pace, however long it takes.
    lone = backlog.enter(["x" * 84], 512)
    now = 1000.0
    backlog.leave(lone, ran=True)
    places = [backlog.enter(["x" * 84], 512) for _ in range(100)]
    backlog.check()
    # Of a hundred characters each, 0.2 s a text.
    for i, place in enumerate(places[:49]):
        now = 1000.0 + 0.2 * (i + 1)
        backlog.leave(place, ran=True)
    assert backlog.seconds == pytest.approx(51 * 0.2)
    with pytest.raises(QueueFull, match=r"would wait 10\.2 s; at most 10 s"):
        backlog.check()
    backlog.leave(places[49], ran=False)
    backlog.leave(places[50], ran=False)
    backlog.check()


def test_who_comes_while_the_loop_is_late_is_refused_unread() -> None:
    app = make_app(Settings(models={}))
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, http=BoundedProtocol, lifespan="on", log_config=None)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
        connection.request(method, path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer

    # The connection is kept.
    app.state.bertrt.late = True
    for body in (b"{", b" " * (1 << 20)):
        answer = ask("POST", "/models/m/predict", body)
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert answer.headers["connection"] is None
    assert ask("GET", "/health/live").status == 200
    app.state.bertrt.late = False
    assert ask("POST", "/models/m/predict", b"{").status == 400
    assert b"bertrt_turned_away_total 2.0" in app.state.bertrt.metrics.text()
    connection.close()
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()
