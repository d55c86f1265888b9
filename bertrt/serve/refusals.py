"""Why a request is not answered: what every protocol says in words of its own."""

from __future__ import annotations

import re

from bertrt.errors import (
    BertrtError,
    BusyError,
    DeadlineExceeded,
    InvalidInputError,
    InvalidTypeError,
    OutOfMemoryError,
    QueueFull,
)

__all__ = ["Refusal", "refusal_of"]


class Refusal(BertrtError):  # noqa: N818
    """A request is not answered.

    Attributes:
        status: HTTP's number for it: 400 no such body or argument, 401 no key, 403 from a page of
            another site, 404 no such model or place, 405, 408 a body that did not come, 413 a body
            or list that is too long, 415 a wrong content type, 422 an input that cannot be
            answered, 424 a model of another kind, 429 too much waits, 500 a fault of the server's,
            503 not ready, draining, or out of memory, 504 the deadline was over before it ran.
        retry_after: seconds after which to ask again; None: asking again does not help.
    """

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it, whatever the protocol."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.status == 408:
            headers["connection"] = "close"
        return headers


def refusal_of(error: BertrtError, index: int | None = None) -> Refusal:
    """What an error of the engine's is to a client.

    Args:
        error: the error.
        index: which of the request's inputs it is about; None: what the message says.
    """
    message = str(error)
    if index is not None:
        message = re.sub(r"^batch\[\d+\]", f"input[{index}]", message)
    match error:
        case Refusal():
            return error
        case QueueFull():
            return Refusal(429, message, retry_after=1)
        case DeadlineExceeded():
            return Refusal(504, message)
        case InvalidInputError() | InvalidTypeError():
            return Refusal(422, message)
        case OutOfMemoryError() | BusyError():
            return Refusal(503, message, retry_after=1)
        case _:
            return Refusal(500, message)
