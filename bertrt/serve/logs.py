"""Lines of JSON on standard error: what happened, and never what was in a text."""

from __future__ import annotations

import datetime
import json
import logging
import traceback
from typing import Any

__all__ = ["configure", "log"]

_LOGGER = logging.getLogger("bertrt.serve")


def log(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """One line: an event's name and what is known of it. Of an exception, as `error`, its
    traceback, which has the code's lines and no values."""
    _LOGGER.log(level, event, extra={"fields": fields})


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        line: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        for name, value in getattr(record, "fields", {}).items():
            if isinstance(value, BaseException):
                line[name] = type(value).__name__
                line["trace"] = "".join(traceback.format_tb(value.__traceback__))
            elif value is not None:
                line[name] = value
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = type(record.exc_info[1]).__name__
            line["trace"] = "".join(traceback.format_tb(record.exc_info[1].__traceback__))
        return json.dumps(line, ensure_ascii=False, default=str)


def configure() -> None:
    """Send what the server and uvicorn log to standard error, a line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    for name in ("bertrt.serve", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name != "uvicorn.error" else []
        logger.propagate = name == "uvicorn.error"
        logger.setLevel(logging.INFO)
    logging.getLogger("uvicorn.access").disabled = True
