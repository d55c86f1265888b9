"""What whoever runs the server asks: is it alive, is it ready, what has it done."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from bertrt.serve.endpoint import Call, Endpoint, json_response
from bertrt.serve.refusals import Refusal

__all__ = ["ENDPOINTS", "Error", "refuse"]

_TAG = "operation"


class Error(msgspec.Struct):
    """Why there is no answer."""

    error: str
    status: int


def refuse(refusal: Refusal) -> Response:
    """A refusal in bertrt's own words."""
    return json_response({"error": str(refusal), "status": refusal.status}, refusal.status)


async def _live(call: Call) -> Response:
    return Response("live\n", media_type="text/plain")


async def _ready(call: Call) -> Response:
    if call.state.ready:
        return Response("ready\n", media_type="text/plain")
    what = "draining" if call.state.draining else "loading"
    return Response(f"{what}\n", 503, {"retry-after": "1"}, media_type="text/plain")


async def _metrics(call: Call) -> Response:
    metrics = call.state.metrics
    metrics.under_way.set(call.state.under_way)
    return Response(metrics.text(), media_type=metrics.content_type)


ENDPOINTS = [
    Endpoint(
        path,
        handle,
        refuse,
        method="GET",
        summary=summary,
        tag=_TAG,
        open=True,
    )
    for path, handle, summary in (
        ("/health/live", _live, "200 while the process runs."),
        ("/health/ready", _ready, "200 when every model is warm; 503 before, and while draining."),
        ("/health", _ready, "As /health/ready; the name that text-embeddings-inference has."),
        ("/metrics", _metrics, "Counters in Prometheus' text format."),
    )
]
