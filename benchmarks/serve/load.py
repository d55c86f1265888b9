"""Callers of an HTTP server: as many as asked for, each waiting for its answer, or requests at
times that do not wait for answers.

One thread over epoll and prebuilt requests: some 20 us of its own a request, which it counts.
"""

from __future__ import annotations

import errno
import random
import select
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Outcome", "at_rate", "callers", "request"]

# What a request that gets no answer is counted as: its connection was refused, or closed before it.
REFUSED, LOST = -1, -2


def request(path: str, body: bytes, host: str = "127.0.0.1") -> bytes:
    """A request's bytes, for a connection that is kept."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        seconds: from the first request to the last answer.
        cpu: seconds that the generator computed.
        statuses: how many answers of each status; REFUSED and LOST beside them.
        done: for each answer (the request's place, its status, seconds since the start at which it
            was sent or due, seconds that it took).
        bodies: of each request's place, where they were asked for.
        retry_after: answers other than 200 that say when to ask again.
    """

    seconds: float = 0.0
    cpu: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    done: list[tuple[int, int, float, float]] = field(default_factory=list)
    bodies: dict[int, bytes] = field(default_factory=dict)
    retry_after: int = 0

    def times(self, status: int = 200, since: float = 0.0, until: float = 1e9) -> list[float]:
        """Seconds of the answers with a status, of requests that were sent in that time."""
        return [own[3] for own in self.done if own[1] == status and since <= own[2] < until]


class _Connection:
    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        code = self.socket.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            self.socket.close()
            raise OSError(code, "connect")
        self.place = -1
        self.since = 0.0
        self.unsent = b""
        self.found = b""


class _Generator:
    def __init__(
        self, port: int, requests: Sequence[bytes], *, keep: bool = False, once: bool = False
    ) -> None:
        self.address = ("127.0.0.1", port)
        self.requests, self.keep, self.once = requests, keep, once
        self.poll = select.epoll()
        self.open: dict[int, _Connection] = {}
        self.outcome = Outcome()
        self.sent = self.under_way = 0
        self.start = time.perf_counter()
        self.cpu = time.process_time()

    def connect(self) -> _Connection | None:
        try:
            made = _Connection(self.address)
        except OSError:
            self.outcome.statuses[REFUSED] += 1
            return None
        self.open[made.socket.fileno()] = made
        self.poll.register(made.socket.fileno(), select.EPOLLIN)
        return made

    def send(self, connection: _Connection, since: float) -> bool:
        """The next request; False where the connection is gone."""
        connection.place, connection.since = self.sent % len(self.requests), since
        self.sent += 1
        self.under_way += 1
        connection.unsent = self.requests[connection.place]
        return self.push(connection)

    def push(self, connection: _Connection) -> bool:
        try:
            count = connection.socket.send(connection.unsent)
        except BlockingIOError:
            count = 0
        except OSError as error:
            kind = REFUSED if error.errno in (errno.ECONNREFUSED, errno.EPIPE) else LOST
            self.drop(connection, kind)
            return False
        connection.unsent = connection.unsent[count:]
        if connection.unsent or count == 0:
            self.poll.modify(connection.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)
        return True

    def drop(self, connection: _Connection, kind: int) -> None:
        if connection.place >= 0:
            self.outcome.statuses[kind] += 1
            self.under_way -= 1
        del self.open[connection.socket.fileno()]
        self.poll.unregister(connection.socket.fileno())
        connection.socket.close()

    def events(self, until: float | None) -> list[_Connection]:
        """Wait until then at most; the connections whose answers have come, or that are gone."""
        if until is not None:
            # epoll alone counts in milliseconds.
            wait = max(0.0, until - time.perf_counter())
            select.select([self.poll.fileno()], [], [], wait)
        free = []
        for number, event in self.poll.poll(0 if until is not None else 1.0):
            connection = self.open[number]
            if event & select.EPOLLOUT and connection.unsent:
                if not self.push(connection):
                    continue
                if not connection.unsent:
                    self.poll.modify(number, select.EPOLLIN)
            if event & ~select.EPOLLOUT and self.read(connection):
                free.append(connection)
        return free

    def read(self, connection: _Connection) -> bool:
        """Read what is there; whether that ends an answer, and another request may be sent."""
        try:
            part = connection.socket.recv(1 << 18)
        except BlockingIOError:
            return False
        except OSError as error:
            self.drop(connection, REFUSED if error.errno == errno.ECONNREFUSED else LOST)
            return False
        if not part:
            self.drop(connection, LOST)
            return False
        found = connection.found = connection.found + part if connection.found else part
        end = found.find(b"\r\n\r\n")
        if end < 0:
            return False
        at = found.lower().find(b"content-length: ", 0, end) + 16
        if at < 16:
            raise ValueError(f"an answer without a length: {found[:end]!r}")
        stop = found.find(b"\r", at)
        if len(found) < end + 4 + int(found[at:stop]):
            return False
        now, out = time.perf_counter(), self.outcome
        status = int(found[9:12])
        out.statuses[status] += 1
        since = connection.since
        out.done.append((connection.place, status, since - self.start, now - since))
        if self.keep:
            out.bodies[connection.place] = found[end + 4 :]
        if status != 200:
            out.retry_after += b"\r\nretry-after: " in found[:end].lower()
        self.under_way -= 1
        connection.place, connection.found = -1, b""
        left = self.once and status != 200
        if left or b"\r\nconnection: close" in found[:end].lower():
            self.drop(connection, LOST)
            return False
        return True

    def end(self) -> Outcome:
        self.outcome.seconds = time.perf_counter() - self.start
        self.outcome.cpu = time.process_time() - self.cpu
        for connection in list(self.open.values()):
            connection.socket.close()
        self.poll.close()
        return self.outcome


def callers(
    port: int,
    requests: Sequence[bytes],
    count: int,
    seconds: float,
    *,
    most: int | None = None,
    keep: bool = False,
    once: bool = False,
    linger: float = 60.0,
) -> Outcome:
    """So many callers, each with a connection, that send their next request when they have the
    answer to the last one.

    Args:
        port: the server's, of this machine.
        requests: what is sent, in turn.
        count: the callers.
        seconds: after them no more is sent, and what was sent is waited for.
        most: requests in all; None: as many as there is time for.
        keep: keep the answers' bodies.
        once: callers whose connection is closed, or who are refused, leave; else they come again.
        linger: seconds to wait for the last answers.
    """
    run = _Generator(port, requests, keep=keep, once=once)
    end, most = run.start + seconds, most or 1 << 60
    missing = count
    while True:
        now = time.perf_counter()
        if now < end:
            for _ in range(min(missing, most - run.sent)):
                connection = run.connect()
                if connection is not None:
                    run.send(connection, time.perf_counter())
        for connection in run.events(time.perf_counter() + 0.05):
            now = time.perf_counter()
            if now < end and run.sent < most:
                run.send(connection, now)
        missing = 0 if once else count - len(run.open)
        now = time.perf_counter()
        if (once and not run.open) or (
            (now >= end or run.sent >= most) and (not run.under_way or now > end + linger)
        ):
            break
    run.outcome.statuses[LOST] += run.under_way
    return run.end()


def at_rate(
    port: int,
    requests: Sequence[bytes],
    rate: float,
    seconds: float,
    *,
    seed: int = 0,
    connections: int = 4096,
    linger: float = 60.0,
) -> Outcome:
    """Requests at random times, `rate` a second in the mean (a Poisson process), whether or not
    those before are answered. A request's time counts from when it was due.

    Args:
        port, requests, seconds, linger: see `callers`.
        rate: requests a second.
        seed: of the times.
        connections: how many are open at most; a request that finds none waits for one.
    """
    chance = random.Random(seed)
    run = _Generator(port, requests)
    free: list[_Connection] = [made for _ in range(64) if (made := run.connect())]
    run.start = due = time.perf_counter()
    end = run.start + seconds
    while True:
        now = time.perf_counter()
        while due < end and due <= now:
            while free and free[-1].socket.fileno() < 0:
                free.pop()
            if free:
                connection: Any = free.pop()
            elif len(run.open) < connections:
                connection = run.connect()
            else:
                break
            if connection is not None:
                run.send(connection, due)
            due += chance.expovariate(rate)
        waits = due < end and due <= now
        free += run.events(now + 0.05 if waits or due >= end else due)
        if time.perf_counter() > end + (linger if run.under_way else 0) and due >= end:
            break
    run.outcome.statuses[LOST] += run.under_way
    return run.end()
