"""The page that the server shows in a browser, what it draws, and the API's description."""

from __future__ import annotations

import functools
import hashlib
from importlib.resources import files

import msgspec
from starlette.responses import Response

from bertrt.serve.description import describe, render
from bertrt.serve.endpoint import Call, Endpoint, json_response
from bertrt.serve.protocols.operation import refuse
from bertrt.serve.statistics import SPAN, STEP, Series, Summary
from bertrt.version import __version__

__all__ = ["ENDPOINTS"]

_TAG = "page"

# Nothing but its own script, style and data; shown in nobody else's page.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # Asked for again each time, and answered with 304: a new version is seen at once.
    "cache-control": "no-cache",
}


class Batches(msgspec.Struct):
    """The batches that were executed since the model was loaded.

    `by_tokens`: how many had so many tokens: up to each power of two, and more than the one before.
    """

    count: int
    sequences: int
    tokens: int
    by_tokens: dict[str, int]


class ModelStatistics(msgspec.Struct):
    """A model: "READY", "LOADING" or "UNAVAILABLE"; `waiting` inputs are in its queue."""

    name: str
    state: str
    waiting: int
    cache_bytes: int
    batches: Batches
    minute: Summary


class StatisticsResponse(msgspec.Struct):
    """What the server does and has done, in the last minute and in the last ten.

    `state`: "ready" or "loading". `under_way`: requests that are not answered yet. `uptime` and
    `step`, what a value of `series` stands for, are in seconds. `model`: the one that `series` is
    of, null: all together.
    """

    version: str
    state: str
    uptime: float
    under_way: int
    models: list[ModelStatistics]
    minute: Summary
    model: str | None
    span: int
    step: int
    series: Series


async def _statistics(call: Call) -> Response:
    state = call.state
    names = [entry.name for entry in state.models.index()]
    served = {own.name: own for own in state.models.served()}
    models = []
    for entry in state.models.index():
        own = served.get(entry.name)
        found = None if own is None else own.statistics()
        models.append(
            ModelStatistics(
                entry.name,
                entry.state,
                found.waiting if found else 0,
                own.cache_bytes if own else 0,
                Batches(
                    found.batches if found else 0,
                    found.sequences if found else 0,
                    found.tokens if found else 0,
                    {str(size): count for size, count in sorted(found.by_tokens.items())}
                    if found
                    else {},
                ),
                state.recent.minute([entry.name]),
            )
        )
    model = call.request.query_params.get("model") or None
    if model is not None:
        state.models.entry(model)
    body = StatisticsResponse(
        __version__,
        "ready" if state.ready else "loading",
        round(state.recent.uptime, 1),
        state.under_way,
        models,
        state.recent.minute(names),
        model,
        SPAN,
        STEP,
        state.recent.series(names if model is None else [model]),
    )
    return Response(
        msgspec.json.encode(body),
        headers={"cache-control": "no-store"},
        media_type="application/json",
    )


async def _openapi(call: Call) -> Response:
    return json_response(_described(call))


async def _docs(call: Call) -> Response:
    return _page(call, render(_described(call)).encode(), "text/html")


def _described(call: Call) -> dict:
    endpoints = tuple(call.request.app.state.endpoints)
    return _describe(endpoints, bool(call.state.settings.api_keys))


_describe = functools.lru_cache(maxsize=2)(describe)


def _page(call: Call, content: bytes, kind: str) -> Response:
    """A file of the page's, or word that the browser has it already."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "etag": tag}
    if tag in (call.header("if-none-match") or ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=kind)


def _file(path: str, name: str, kind: str) -> Endpoint:
    """A file of the page's; without a tag it is no part of the API."""
    content = files("bertrt.serve").joinpath("page", name).read_bytes()

    async def handle(call: Call) -> Response:
        return _page(call, content, kind)

    return Endpoint(path, handle, refuse, method="GET", open=True)


ENDPOINTS = [
    _file("/", "index.html", "text/html"),
    _file("/page/page.css", "page.css", "text/css"),
    _file("/page/favicon.svg", "favicon.svg", "image/svg+xml"),
    *(
        _file(f"/page/{name}.js", f"{name}.js", "text/javascript")
        for name in ("basics", "page", "plots", "server", "tryout")
    ),
    Endpoint(
        "/stats",
        _statistics,
        refuse,
        method="GET",
        answers=StatisticsResponse,
        summary="What the page draws; ?model=NAME: the series of that model alone.",
        tag=_TAG,
        quiet=True,
    ),
    *(
        Endpoint(
            path,
            handle,
            refuse,
            method="GET",
            answers=answers,
            summary=summary,
            tag=_TAG,
            open=True,
        )
        for path, handle, answers, summary in (
            ("/openapi.json", _openapi, dict, "This description, as OpenAPI 3.1 has it."),
            ("/api-doc/openapi.json", _openapi, dict, "The same, where other servers have it."),
            ("/docs", _docs, None, "This description, to read."),
        )
    ),
]
