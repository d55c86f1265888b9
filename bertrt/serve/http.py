"""uvicorn's HTTP, with bounds that it does not have: on a request's head, and on its time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bertrt.serve.endpoint import CONNECTION, State
from bertrt.serve.logs import log

__all__ = ["BoundedProtocol"]

# Bytes and seconds of a request's line and headers.
_HEAD = 64 << 10
_HEAD_SECONDS = 10.0
# What an answer to "Expect: 100-continue" begins with.
_CONTINUE = b"HTTP/1.1 100 "
# Connections that may be open at a time; requests of more are refused at once.
_CONNECTIONS = 8192
# In this time the event loop reads at least once.
_READ_SECONDS = 0.1
# Seconds in which a client may take nothing of an answer, and in which it has to take all of it.
_SEND_SECONDS = 30.0
_ANSWER_SECONDS = 120.0
# Bytes of answers that their clients have not taken, of all connections.
_UNTAKEN = 512 << 20
# What is said to who is refused so.
_CROWDED = b'{"error":"too many connections are open; ask later"}'
_LATE = b'{"error":"the server has more requests than it can read; ask later"}'
# So long, in seconds, a closed connection may take at the server's end.
_GOODBYE_SECONDS = 0.5
# Seconds of a whole request: the endpoint refuses a body that is slow long before.
_REQUEST_SECONDS = 120.0


class _Parser(httptools.HttpRequestParser):
    """A parser for which an upgrade is not the end of a request, since none is taken.

    Clients that offer HTTP/2 so (Java's HttpClient, unless told otherwise) send a body with it,
    which llhttp would leave unread: the client would be answered as if it had sent none, and its
    body taken for the next request. What follows the head is read by a parser that knows of none.
    """

    def __init__(self, protocol: BoundedProtocol) -> None:
        super().__init__(protocol)
        self._protocol = protocol
        with contextlib.suppress(AttributeError):  # as uvicorn; httptools before 0.6.3 has none
            self.set_dangerous_leniencies(lenient_data_after_close=True)

    def feed_data(self, data: Any) -> None:
        """See httptools."""
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as told:
            self._protocol.go_on(data[told.args[0] :])


class _Answer:
    """A connection as one answer writes to it, which has a body: the head goes with what follows
    it, in one call of the system's. By itself it would wake a client who can do nothing with it
    yet."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self._begun = False
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """See asyncio.Transport."""
        if self.is_closing():
            return  # uvicorn tells only the last of several requests that their client has gone
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.writelines([head, data])
        elif self._begun or data.startswith(_CONTINUE):
            self._transport.write(data)
        else:
            self._begun, self._head = True, data

    def close(self) -> None:
        """See asyncio.Transport."""
        if self._head is not None:
            self.write(b"")
        self._transport.close()


class BoundedProtocol(HttpToolsProtocol):
    """A connection.

    It is closed where a client sends no request within 10 s of connecting, takes longer for a
    request's head than that or longer than 120 s for its body, takes nothing of an answer for 30 s
    or longer than 120 s for all of it; and, of those whose answers have not been taken, the one
    that has taken longest where together they have more than 512 MiB. A head of more than 64 KiB is
    answered with 431. A request of one connection too many is
    answered with 503, and one that comes while the event loop is late with 429, before anything
    else is done for it: what would cost those who wait more than it helps who comes.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        app: Any = self.config.app
        self._state: State = app.state.bertrt
        self.parser = _Parser(self)
        # Whether the request that is coming is refused, and nothing made of it.
        self._refused = False
        # Whether it is told of a head for the second time.
        self._again = False
        # What is called if the client goes, and whether it has.
        self._leave: Callable[[], None] | None = None
        self._gone = False
        self._timer: asyncio.TimerHandle | None = None
        # Bytes since the head began; None: the head is there.
        self._head: int | None = 0
        self._sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._within(_HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._within(None)
        self._taken()
        super().connection_lost(exc)
        self._gone = True
        self.when_gone(self._leave)

    def when_gone(self, leave: Callable[[], None] | None) -> None:
        """Have the request that is under way call this when its client goes, or now if it has
        gone; None: it needs no more."""
        self._leave = leave
        if leave is None:
            return
        # Of a long body reading was put off, and with it the word of a client's end.
        self.flow.resume_reading()
        if self._gone:
            leave()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._taken()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """uvicorn's word for an answer's end."""
        super().on_response_complete()
        self._watch_end()

    def _watch_end(self) -> None:
        """A transport that is closed goes when all that it has is taken."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._watch()

    def _watch(self) -> None:
        """Give up a client who takes nothing, or too long: what waits for it is memory."""
        if self._sending is not None:
            return
        untaken, end = self._state.untaken, self.loop.time() + _ANSWER_SECONDS

        def look() -> None:
            now = self.transport.get_write_buffer_size()
            if now >= untaken.get(self, 0) or self.loop.time() >= end:
                self._give_up()
            else:
                untaken[self] = now
                look_later()

        def look_later() -> None:
            seconds = min(_SEND_SECONDS, max(0.0, end - self.loop.time()))
            self._sending = self.loop.call_later(seconds, look)

        untaken[self] = self.transport.get_write_buffer_size()
        look_later()
        size = sum(untaken.values())
        for connection in list(untaken):
            if size <= _UNTAKEN:
                break
            size -= untaken.pop(connection)
            connection._give_up()

    def _give_up(self) -> None:
        left, client = self.transport.get_write_buffer_size(), self.client
        log("answer not taken", logging.WARNING, left=left, client=client[0] if client else None)
        self.transport.abort()

    def _taken(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        self._state.untaken.pop(self, None)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._head is not None:
            self._head += len(data)
            # A body may have come with it; uvicorn's own parser tells where the head ends.
            if self._head > _HEAD + len(data) or (self._head > _HEAD and b"\r\n\r\n" not in data):
                self._refuse(b"431 Request Header Fields Too Large")
                return
        super().data_received(data)

    def go_on(self, data: bytes) -> None:
        """Read what follows a head that asked for an upgrade."""
        body = (b"content-length", b"transfer-encoding")
        lines = [b"%s: %s\r\n" % own for own in self.headers if own[0] in body]
        self.parser, self._again = _Parser(self), True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(lines) + b"\r\n" + data)

    def on_url(self, url: bytes) -> None:
        """httptools' word for what is asked for."""
        if not self._again:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools' word for a header."""
        if not self._again:
            super().on_header(name, value)

    def on_message_begin(self) -> None:
        """httptools' word for a request's first byte."""
        if self._again:
            return
        self._head = self._head or 0
        self._within(_HEAD_SECONDS)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """httptools' word for the head's end."""
        if self._again:
            self._again = False
            return
        self._head = None
        self._within(_REQUEST_SECONDS)
        # It may have come in one piece with a request that was refused, whose end began this.
        self._unset_keepalive_if_required()
        app, before = self.app, self.cycle
        if len(self.connections) > _CONNECTIONS:
            self.app = _crowded
        elif self._state.crowd.comes(self.loop) and self.parser.get_method() != b"GET":
            self._state.metrics.turned_away.inc()
            self._within(_HEAD_SECONDS)
            if self._may_be_short():
                self._refused = True
                return
            self.app = _late
        try:
            super().on_headers_complete()
        finally:
            self.app = app
        made: Any = self.cycle
        made.scope[CONNECTION] = self
        if made is not before and self.parser.get_method() != b"HEAD":
            made.transport = _Answer(self.transport)

    def _may_be_short(self) -> bool:
        """Whether an answer may be written as it is: to a POST, with none before it under way, and
        to a client that takes its answers; one that does not has to wait before it is read on."""
        return (
            self.parser.get_method() == b"POST"
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and not self.expect_100_continue
            and not self.parser.should_upgrade()
        )

    def on_body(self, body: bytes) -> None:
        """httptools' word for a part of the body."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """httptools' word for the body's end."""
        if self.parser.should_upgrade():
            return  # the body is to come; see go_on
        self._head = 0
        self._within(None)
        if self._refused:
            self._refused = False
            self._turn_away()
        else:
            super().on_message_complete()

    def _turn_away(self) -> None:
        """What `_late` answers, by less: no task, and one call of the system's."""
        if self.transport.is_closing():
            return
        stays = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        headers = [*self.server_state.default_headers, *_headers_of(_LATE)]
        if not stays:
            headers.append((b"connection", b"close"))
        lines = b"".join(b"%s: %s\r\n" % own for own in headers)
        self.transport.write(b"HTTP/1.1 429 Too Many Requests\r\n" + lines + b"\r\n" + _LATE)
        if not stays:
            self.transport.close()
        self.on_response_complete()

    def _within(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self._due)

    def shutdown(self) -> None:
        """uvicorn's word for the server's end."""
        super().shutdown()
        self._hang_up()

    def _hang_up(self, waited: bool = False) -> None:
        """Wait no longer than a moment for a client's word that a connection over TLS is closed,
        which one that waits for no answer does not give."""
        if self._gone:
            return
        over = self.transport.is_closing() and not self.transport.get_write_buffer_size()
        if over and waited:
            self.transport.abort()
        else:
            self.loop.call_later(_GOODBYE_SECONDS, self._hang_up, over)

    def timeout_keep_alive_handler(self) -> None:
        """uvicorn's word for a connection without a request; see `_due`."""

        def close() -> None:
            super(BoundedProtocol, self).timeout_keep_alive_handler()
            self._watch_end()

        self.timeout_keep_alive_task = self.loop.call_later(_READ_SECONDS, close)

    def _due(self) -> None:
        # Where the event loop itself is late, what has come may not have been read yet.
        self._timer = self.loop.call_later(_READ_SECONDS, self._late)

    def _late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._head:
            self._refuse(b"408 Request Timeout")
        else:
            self.transport.close()
            self._watch_end()

    def _refuse(self, status: bytes) -> None:
        self.transport.write(
            b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
        self.transport.close()
        self._watch_end()


async def _crowded(scope: Any, receive: Any, send: Any) -> None:
    await _answer(503, _CROWDED, receive, send, (b"connection", b"close"))


async def _late(scope: Any, receive: Any, send: Any) -> None:
    await _answer(429, _LATE, receive, send)


async def _answer(status: int, body: bytes, receive: Any, send: Any, *more: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    headers = [*_headers_of(body), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _headers_of(body: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"retry-after", b"1"),
    ]
