"""More than the server can do, and its end at work. Counts only: no time is measured."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import uvicorn

from bertrt.errors import QueueFull
from bertrt.serve.app import make_app
from bertrt.serve.backlog import Backlog
from bertrt.serve.crowd import Crowd
from bertrt.serve.endpoint import CONNECTION
from bertrt.serve.http import BoundedProtocol
from bertrt.serve.server import _Server
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


class Told(_Server):
    """A server that tells its event loop."""

    loop: Any = None

    async def startup(self, sockets: Any = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)


@contextlib.contextmanager
def serving(app: Any) -> Iterator[tuple[Told, int]]:
    """A server in a thread of this process, and its port."""
    config = uvicorn.Config(app, port=0, http=BoundedProtocol, lifespan="on", log_config=None)
    server = Told(config, app.state.bertrt)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield server, server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def late() -> Iterator[tuple[Any, int]]:
    """The state of a server whose event loop is always late, and its port."""
    app = make_app(Settings(models={}))
    state = app.state.bertrt
    state.crowd.tick = Mock()
    state.crowd.late = True
    with serving(app) as (_, port):
        yield state, port


def exchange(port: int, sent: bytes) -> bytes:
    """What comes until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as own:
        own.sendall(sent)
        return b"".join(iter(lambda: own.recv(1 << 16), b""))


def test_who_comes_while_the_loop_is_late_is_refused_unread(late: Any) -> None:
    state, port = late
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        connection.request(method, path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        assert not answer.read() or method != "HEAD"
        return answer

    # The connection is kept; a body of parts is chunked.
    for body in (b"{", b" " * (1 << 20), iter([b"{", b"}"])):
        answer = ask("POST", "/models/m/predict", body)
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert answer.headers["connection"] is None
    assert ask("HEAD", "/models/m/predict").status == 429
    assert ask("GET", "/health/live").status == 200
    state.crowd.late = False
    assert ask("POST", "/models/m/predict", b"{").status == 400
    assert b"bertrt_turned_away_total 4.0" in state.metrics.text()
    connection.close()


@pytest.mark.parametrize(
    ("head", "begin"),
    [
        (b"POST /a HTTP/1.0\r\n", b"HTTP/1.1 429 "),
        (b"POST /a HTTP/1.1\r\nconnection: close\r\n", b"HTTP/1.1 429 "),
        (
            b"POST /a HTTP/1.1\r\nconnection: close\r\nexpect: 100-continue\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 429 ",
        ),
        (
            b"POST /a HTTP/1.1\r\nconnection: close, upgrade\r\nupgrade: h2c\r\n",
            b"HTTP/1.1 429 ",
        ),
    ],
)
def test_a_refusal_closes_where_the_client_wants_it(late: Any, head: bytes, begin: bytes) -> None:
    found = exchange(late[1], head + b"content-length: 2\r\n\r\n{}")
    assert found.startswith(begin)
    head, body = found.split(b"\r\n\r\n")[-2:]
    assert b"\r\nretry-after: 1" in head and b"\r\nconnection: close" in head
    assert json.loads(body) == {"error": "the server has more requests than it can read; ask later"}


def test_refusals_come_in_the_order_of_their_requests(late: Any) -> None:
    post = b"POST /a HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"
    get = b"GET /health/live HTTP/1.1\r\n\r\n"
    last = b"POST /a HTTP/1.1\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
    found = exchange(late[1], post + post + get + post + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", found) == [b"429", b"429", b"200", b"429", b"429"]


def test_a_request_in_one_piece_with_a_refused_one_may_take_its_time() -> None:
    app = make_app(Settings(models={}))
    app.state.bertrt.crowd.comes = Mock(return_value=True)
    timers = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        timers.append(scope[CONNECTION].timeout_keep_alive_task)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with serving(app) as (server, port):
        server.config.loaded_app = slow
        post = b"POST /a HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"
        found = exchange(port, post + b"GET /a HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+)", found) == [b"429", b"200"]
    # Else the connection would be closed as an idle one while the request is under way.
    assert timers == [None]


def test_refusals_wait_for_a_client_that_takes_none() -> None:
    app = make_app(Settings(models={}))
    app.state.bertrt.crowd.comes = Mock(return_value=True)
    with (
        serving(app) as (server, port),
        socket.create_connection(("127.0.0.1", port), timeout=60) as own,
    ):
        state, end = server.server_state, time.monotonic() + 60
        while not state.connections and time.monotonic() < end:
            time.sleep(0.01)
        (connection,) = state.connections
        server.loop.call_soon_threadsafe(connection.pause_writing)
        while not connection.flow.write_paused and time.monotonic() < end:
            time.sleep(0.01)
        own.sendall(b"POST /a HTTP/1.1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        while not (connection.cycle or state.total_requests) and time.monotonic() < end:
            time.sleep(0.01)
        assert connection.cycle and not state.total_requests
        server.loop.call_soon_threadsafe(connection.resume_writing)
        assert own.recv(12) == b"HTTP/1.1 429"


def test_more_than_a_loop_takes_in_at_a_time_are_refused() -> None:
    loop, models = Mock(), Mock(full=False)
    crowd = Crowd(models, 1.0)
    assert [crowd.comes(loop) for _ in range(257)] == [False] * 256 + [True]
    ((all_came,),) = [call.args for call in loop.call_soon.call_args_list]
    all_came()
    assert crowd.comes(loop)  # until a tick finds that there is room
    crowd.tick(1.0, 100)
    all_came()
    assert not any(crowd.comes(loop) for _ in range(256))
    # As many more come at a time as more may be waited for.
    assert not any(Crowd(models, 10.0).comes(loop) for _ in range(2560))


def test_with_a_full_queue_few_are_refused_in_words() -> None:
    crowd = Crowd(Mock(full=True), 1.0)
    assert [crowd.comes(Mock()) for _ in range(9)] == [False] * 8 + [True]
    assert not crowd.late


def test_a_late_tick_refuses_until_there_is_room() -> None:
    models = Mock(full=False)
    crowd = Crowd(models, 1.0)
    found = []
    for now, connections, full in [
        *((0.0, 300, False), (0.1, 300, False), (0.35, 200, False)),
        *((0.6, 300, False), (0.75, 300, True), (0.95, 300, True), (1.0, 300, False)),
    ]:
        models.full = full
        crowd.tick(now, connections)
        found.append(crowd.late)
    assert found == [False, False, False, True, True, True, False]
    patient = Crowd(models, 10.0)
    for now, late in ((0.0, False), (1.0, False), (2.2, True)):
        patient.tick(now, 300)
        assert patient.late == late


def test_connections_that_come_at_a_time_are_accepted_in_few_rounds() -> None:
    app = make_app(Settings(models={}))
    with serving(app) as (server, port), contextlib.ExitStack() as stack:
        here, accepted = threading.Event(), threading.Event()
        rounds = 0

        def block() -> None:
            here.wait(60)
            look()

        def look() -> None:
            nonlocal rounds
            if len(server.server_state.connections) < 64:
                rounds += 1
                server.loop.call_soon(look)
            else:
                accepted.set()

        server.loop.call_soon_threadsafe(block)
        for _ in range(64):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
        here.set()
        assert accepted.wait(60)
        assert rounds < 16
