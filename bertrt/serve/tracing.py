"""Spans of OpenTelemetry, where its API is installed; without its SDK set up they cost nothing and
say nothing. ``opentelemetry-instrument bertrt serve ...`` sets it up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.requests import Request

    from bertrt.serve.served import Answered

try:
    from opentelemetry import propagate, trace
except ImportError:
    trace = None

__all__ = ["answered", "request", "span", "stages"]


def request(head: Request, route: str) -> AbstractContextManager[Any]:
    """The span of a request, below the one that the client names in `traceparent`."""
    if trace is None:
        return nullcontext()
    return trace.get_tracer("bertrt.serve").start_as_current_span(
        f"{head.method} {route}",
        context=propagate.extract(dict(head.headers)),
        kind=trace.SpanKind.SERVER,
        attributes={"http.request.method": head.method, "http.route": route},
        # An error's message may hold what was sent.
        record_exception=False,
        set_status_on_exception=False,
    )


def answered(status: int) -> None:
    """Tell the request's span how it was answered."""
    if trace is None:
        return
    made = trace.get_current_span()
    made.set_attribute("http.response.status_code", status)
    if status >= 500:
        made.set_status(trace.StatusCode.ERROR)


def span(name: str, **attributes: Any) -> AbstractContextManager[Any]:
    """A span within it."""
    return nullcontext() if trace is None else _span(name, attributes)


@contextmanager
def _span(name: str, attributes: dict[str, Any]) -> Iterator[Any]:
    with trace.get_tracer("bertrt.serve").start_as_current_span(
        name,
        attributes={f"bertrt.{key}": value for key, value in attributes.items()},
        record_exception=False,
        set_status_on_exception=False,
    ) as made:
        yield made


def stages(made: Any, answered: Answered) -> None:
    """What an answer went through, as spans that end now, one before the other."""
    if made is None or not made.is_recording():
        return
    made.set_attribute("bertrt.tokens", sum(answered.tokens))
    made.set_attribute("bertrt.cached", answered.cached)
    end = time.time_ns()
    for name in ("execute", "queue", "tokenize"):
        begin = end - int(getattr(answered, name) * 1e9)
        trace.get_tracer("bertrt.serve").start_span(name, start_time=begin).end(end)
        end = begin
