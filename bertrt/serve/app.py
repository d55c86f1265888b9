"""The application: all endpoints, the models behind them, and what happens at start and end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from bertrt.serve.endpoint import Endpoint, State
from bertrt.serve.protocols import inference_http, openai, operation, page, plain, rerank, tei
from bertrt.serve.refusals import Refusal
from bertrt.serve.settings import Settings

__all__ = ["ENDPOINTS", "make_app"]

# Each protocol's, in the order of the API's description.
ENDPOINTS: list[Endpoint] = [
    *plain.ENDPOINTS,
    *openai.ENDPOINTS,
    *tei.ENDPOINTS,
    *rerank.ENDPOINTS,
    *inference_http.ENDPOINTS,
    *operation.ENDPOINTS,
    *page.ENDPOINTS,
]


def make_app(
    settings: Settings,
    failed: Callable[[Refusal], None] | None = None,
    beside: Callable[[State], AbstractAsyncContextManager[None]] | None = None,
) -> Starlette:
    """The ASGI application.

    Its models are loaded beside it once it runs, one after the other; until they are there,
    requests for them are refused with 503.

    Args:
        settings: how it is set up.
        failed: called with the reason when a model of `settings` cannot be loaded; None: it is then
            a model that is not there.
        beside: what serves the same models beside HTTP, for as long; None: nothing.
    """
    state = State(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with beside(state) if beside is not None else contextlib.nullcontext():
            loading = asyncio.ensure_future(_load_all(state, failed))
            try:
                yield
            finally:
                loading.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await loading
        await state.models.close()

    app = _App(
        routes=_routes(ENDPOINTS),
        lifespan=lifespan,
        exception_handlers={HTTPException: _nowhere},
    )
    # A path with a slash behind it is no other path's: a redirect would be built from what a client
    # says that the host is called.
    app.router.redirect_slashes = False
    app.state.bertrt = state
    app.state.endpoints = ENDPOINTS
    return app


class _App(Starlette):
    """Starlette, with a shorter way to the endpoints whose paths have nothing to be filled in: its
    own layers take longer for a request than what they lead to."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self._whole = {(own.method, own.path): own for own in ENDPOINTS if "{" not in own.path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        found = self._whole.get((scope.get("method", ""), scope.get("path", "")))
        if found is None:
            await super().__call__(scope, receive, send)
        else:
            scope["app"] = self
            await found(scope, receive, send)


async def _load_all(state: State, failed: Callable[[Refusal], None] | None) -> None:
    for name in state.settings.models:
        try:
            await state.models.load(name)
        except Refusal as refusal:
            if failed is not None:
                failed(refusal)
                return


def _routes(endpoints: Iterable[Endpoint]) -> list[Route]:
    return [Route(own.path, own, methods=[own.method]) for own in endpoints]


async def _nowhere(request: Request, error: Exception) -> Response:
    """What a path or method that there is not is answered with."""
    assert isinstance(error, HTTPException)
    refusal = Refusal(
        error.status_code,
        f"{request.method} {request.url.path[:200]}: "
        f"{HTTPStatus(error.status_code).phrase.lower()}; /docs lists what there is",
    )
    response = operation.refuse(refusal)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response
