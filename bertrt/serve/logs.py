"""Lines of JSON on standard error: what happened, and never what was in a text.

A thread writes them, so that nobody who answers requests waits for who reads them.
"""

from __future__ import annotations

import atexit
import datetime
import logging
import sys
import threading
import time
import traceback
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO

import orjson

__all__ = ["configure", "flush", "log"]

# Lines that wait to be written, at most; beyond them they are left out, and their number told.
_MOST = 10_000
# So long lines gather before they are written together.
_GATHER_SECONDS = 0.02
# What a reader that does not read is waited for at the end.
_END_SECONDS = 2.0


def log(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """One line: an event's name and what is known of it. Of an exception, as `error`, its
    traceback, which has the code's lines and no values. Nothing before `configure`."""
    if _writer is not None:
        _writer.put(time.time(), level, event, fields)


class _Writer(threading.Thread):
    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(name="bertrt-log", daemon=True)
        self._stream = stream
        self._lines: SimpleQueue[tuple[float, int, str, dict[str, Any]] | None] = SimpleQueue()
        self._left_out = 0

    def put(self, when: float, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._lines.qsize() < _MOST:
            self._lines.put((when, level, event, fields))
        else:
            self._left_out += 1

    def close(self) -> None:
        """Write what is left."""
        self._lines.put(None)
        self.join(_END_SECONDS)

    def run(self) -> None:
        """See threading.Thread."""
        ended = False
        while not ended:
            found = [self._lines.get()]
            if found[0] is not None:
                time.sleep(_GATHER_SECONDS)
            try:
                while len(found) < _MOST:
                    found.append(self._lines.get_nowait())
            except Empty:
                pass
            ended = None in found
            lines = [_line(*own) for own in found if own is not None]
            if self._left_out:
                left_out, self._left_out = self._left_out, 0
                lines.append(
                    _line(time.time(), logging.WARNING, "lines left out", {"count": left_out})
                )
            try:
                self._stream.write(b"".join(lines))
                self._stream.flush()
            except (OSError, ValueError):
                # Nobody reads them.
                pass


def _line(when: float, level: int, event: str, fields: dict[str, Any]) -> bytes:
    time_then = datetime.datetime.fromtimestamp(when, datetime.timezone.utc)
    line: dict[str, Any] = {
        "time": time_then.isoformat(timespec="milliseconds"),
        "level": logging.getLevelName(level).lower(),
        "event": event,
    }
    for name, value in fields.items():
        if isinstance(value, BaseException):
            line[name] = type(value).__name__
            line["trace"] = "".join(traceback.format_tb(value.__traceback__))
        elif value is not None:
            line[name] = value
    try:
        return orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        # JSON of orjson's has no lone surrogates (of a path that is not UTF-8) and no wide numbers.
        line = {name: ascii(value) for name, value in line.items()}
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


class _Handler(logging.Handler):
    """What others log, as such lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        error = record.exc_info[1] if record.exc_info else None
        fields = {} if error is None else {"error": error}
        if _writer is not None:
            # Behind asyncio's first line stand objects, with what they hold of texts.
            event = record.getMessage().partition("\n")[0]
            _writer.put(record.created, record.levelno, event, fields)


_writer: _Writer | None = None


def flush() -> None:
    """Write what is left, where nothing more is logged."""
    if _writer is not None:
        _writer.close()


def configure() -> None:
    """Send what the server, uvicorn and others log to standard error, a line each."""
    global _writer
    _writer = _Writer(sys.stderr.buffer)
    _writer.start()
    atexit.register(flush)
    logging.captureWarnings(True)
    logging.getLogger().handlers = [_Handler()]
    logging.getLogger("uvicorn").setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "asyncio"):
        logging.getLogger(name).handlers, logging.getLogger(name).propagate = [], True
    logging.getLogger("uvicorn.access").disabled = True
