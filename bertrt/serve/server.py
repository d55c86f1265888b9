"""The process: a socket, uvicorn, and an end that loses no request."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import prometheus_client
import uvicorn
import uvloop  # noqa: F401  # uvicorn's, which imports it late

from bertrt.serve.app import make_app
from bertrt.serve.endpoint import State
from bertrt.serve.http import BoundedProtocol
from bertrt.serve.logs import configure, flush, log
from bertrt.serve.refusals import Refusal
from bertrt.serve.settings import Settings

__all__ = ["serve"]

# A connection without a request is kept so long: longer than by balancers, whose usual minute would
# else end with a request on a connection that is closed under it.
_IDLE_SECONDS = 75
# Connections that wait to be accepted; the system may have a bound of its own (somaxconn). One that
# finds no place is tried again by its client's system after a second, and then after two.
_BACKLOG = 8192
# The event loop accepts one connection of a socket in each of its rounds, since libuv 1.45
# (https://github.com/libuv/libuv/pull/3696), and a round may take a tenth of a second: thousands
# that come at a time would wait for minutes. So it has the socket so many times.
_LISTENERS = 16
# So long no request is under way before the socket is closed, at the end: what a client has sent
# and nobody has read yet, is read and told by then.
_QUIET = 0.3


def serve(
    settings: Settings,
    host: str,
    port: int,
    *,
    grpc_port: int | None = None,
    tls: dict[str, Any] | None = None,
) -> int:
    """Serve until the process is asked to stop (SIGTERM, SIGINT).

    Then new requests are refused with 503, /health/ready says so, and those under way have
    `settings.drain_seconds` to end, by when the process ends, whatever it does. Asked a second
    time, it ends at once, with the status that shells have for the signal.

    Args:
        settings: how it is set up.
        host, port: where it listens; port 0: any, which the log tells.
        grpc_port: where it listens for gRPC; None: nowhere.
        tls: uvicorn's options of that, ``ssl_certfile`` and so on; they are gRPC's too, which takes
            no password of a key.

    Returns:
        The exit status: 0, or 1 where a model cannot be loaded or the port not be had.
    """
    configure()
    # A connection is a file, and the usual limit of 1,024 is a shell's.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # The times at which counters were made: nobody's question, and as many lines as the counters.
    prometheus_client.disable_created_metrics()
    status = 0

    def failed(refusal: Refusal) -> None:
        nonlocal status
        status = 1
        server.should_exit = True

    beside = None
    if grpc_port is not None:
        from bertrt.serve.protocols.inference_grpc import serving

        beside = functools.partial(serving, host=host, port=grpc_port, tls=tls or {})
    app = make_app(settings, failed, beside)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=BoundedProtocol,
        ws="none",
        loop="uvloop",
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_keep_alive=_IDLE_SECONDS,
        backlog=_BACKLOG,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        **(tls or {}),
    )
    server = _Server(config, app.state.bertrt)
    try:
        server.run()
    except SystemExit:
        # uvicorn's word for a port that cannot be had; it has told why.
        return 1
    except KeyboardInterrupt:
        pass
    return 1 if server.lifespan.should_exit else status


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self._state = state
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: Any = None) -> None:
        """uvicorn's; it listens several times over then."""
        await super().startup(sockets)
        make = functools.partial(
            BoundedProtocol, self.config, self.server_state, self.lifespan.state
        )
        loop, config = asyncio.get_running_loop(), self.config
        for own in [own for server in self.servers for own in server.sockets]:
            for _ in range(_LISTENERS - 1):
                again = socket.socket(fileno=os.dup(own.fileno()))
                self.servers.append(
                    await loop.create_server(
                        make, sock=again, ssl=config.ssl, backlog=config.backlog
                    )
                )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal's handler: drain, or, if that is under way, end."""
        if self._state.draining:
            _end(128 + sig)
        self._state.draining = True
        log("draining", signal=signal.Signals(sig).name, under_way=self._state.under_way)
        # By a thread: the event loop may be waiting for what nobody can stop, such as a load.
        timer = threading.Timer(self._state.settings.drain_seconds, self._give_up)
        timer.daemon = True
        with contextlib.suppress(RuntimeError):  # the system gives no thread
            timer.start()

    def _give_up(self) -> None:
        log("not drained", level=logging.WARNING, left=self._state.under_way)
        _end(0)

    def _log_started_message(self, listeners: Sequence[Any]) -> None:
        """What uvicorn says when it listens, with the port apart."""
        address = listeners[0].getsockname()
        log("listening", host=address[0], port=address[1], tls=self.config.is_ssl)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second, where the event loop is not late."""
        now = asyncio.get_running_loop().time()
        self._state.crowd.tick(now, len(self.server_state.connections))
        if self._state.draining and self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
        return bool(await super().on_tick(counter))

    async def _drain(self) -> None:
        """Wait until all that was taken is answered and nothing more comes."""
        loop = asyncio.get_running_loop()
        quiet = loop.time()
        while (now := loop.time()) - quiet < _QUIET:
            if self._state.under_way:
                quiet = now
            await asyncio.sleep(0.02)
        log("drained")
        self.should_exit = True


def _end(status: int) -> NoReturn:
    """End the process now, whatever its threads do."""
    flush()
    os._exit(status)
